"""Journal events as sentences. Pure: an event gives one line, or None where only a machine cares."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.canonical import Json
from engine.report.words import count, microseconds, money, times

__all__ = ["HIDDEN", "count", "line", "microseconds", "money", "times"]

INDENT = "  "
HIDDEN = frozenset(
    {"label", "classification", "timing", "ratio", "metric", "candidate", "advice_unreadable", "prompt_drift", "step"}
)
"""Kinds without a line of their own: a line that follows says what they led to."""


def line(event: Json) -> str | None:
    """The line for one event, indented under its task and stage; None for kinds that are not shown."""
    kind = event["kind"]
    return _LINES[kind](event) if kind in _LINES else None


def _last_line(text: str) -> str:
    """The line of a traceback that says what happened."""
    return text.strip().rpartition("\n")[2].strip()


def _first_line(text: str, limit: int = 160) -> str:
    head = text.strip().splitlines()[0] if text.strip() else ""
    return head if len(head) <= limit else head[: limit - 1] + "…"


def _both_ends(text: str) -> str:
    """First and last line: of a compiler's message the one says where, the other what."""
    head, last = _first_line(text), _first_line(_last_line(text))
    return head if head == last else f"{head} … {last}"


def _run_started(event: Json) -> str:
    return f"run {event['run_id']}: backend {event['backend']}, llm {event['provider']}"


def _environment(event: Json) -> str:
    return f"on {event['device']['name']}"


def _sweep_job(event: Json) -> str:
    return f"sweep {event['sweep_id']}, job {event['job']}: {' '.join(event['overrides'])}"


def _task_started(event: Json) -> str:
    return f"{event['task_id']}: {event['category']}" + (" (named)" if event["named"] else "")


def _baseline(event: Json) -> str:
    floor = f", floor {microseconds(event['floor_us'])}" if event["floor_us"] is not None else ""
    return f"{INDENT}baseline {event['who']} {microseconds(event['median_us'])} ({event['score_kind']}){floor}"


def _stage_started(event: Json) -> str:
    return f"{INDENT}stage {event['stage']}"


def _rule(event: Json) -> str | None:
    if not event["fired"]:
        return None
    ignored = "" if event["obeyed"] else " (not obeyed)"
    return f"{INDENT * 2}{event['rule_kind']} {event['rule']}: {event['why']}{ignored}"


def _llm_call(event: Json) -> str:
    again = f" {event['attempt']}" if event["attempt"] else ""
    tokens = f"{count(event['input_tokens'])} in, {count(event['output_tokens'])} out"
    return f"{INDENT * 2}{event['role']}{again}: {tokens}, {event['latency_s']:.1f} s"


def _llm_failed(event: Json) -> str:
    return f"{INDENT * 2}{event['role']} failed, {event['failure']}: {_first_line(event['message'])}"


def _reply_unusable(event: Json) -> str:
    return f"{INDENT * 2}{event['role']} reply unusable, {event['problem']}: {_first_line(event['message'])}"


def _verdict(event: Json) -> str:
    words = event["status"] if event["reason"] is None else f"{event['status']}, {event['reason']}"
    told = "" if event["status"] == "correct" else f": {_first_line(event['message'])}"
    return f"{INDENT * 2}{event['candidate_id'][:8]} {words}{told}"


def _promotion(event: Json) -> str:
    said = "is best now" if event["promoted"] else "is not promoted"
    return f"{INDENT * 2}{event['candidate_id'][:8]} {said}: {event['why']}"


def _confirmation(event: Json) -> str:
    words = event["outcome"] if event["reason"] is None else f"{event['outcome']}, {event['reason']}"
    if event["outcome"] == "confirmed":
        return f"{INDENT}{event['candidate_id'][:8]} {words} at {count(len(event['variants']))} new shapes"
    return f"{INDENT}{event['candidate_id'][:8]} {words}: {_first_line(event['message'])}"


def _stage_ended(event: Json) -> str:
    why = f": {event['why']}" if event["why"] else ""
    return f"{INDENT}stage {event['stage']} {event['outcome']}{why}"


def _task_ended(event: Json) -> str:
    if event["best_id"] is None:
        return f"{INDENT}{event['outcome']}: no correct kernel; {_first_line(event['why'])}"
    if event["score_kind"] is None:
        return f"{INDENT}{event['outcome']}: a correct kernel, not timed; {_first_line(event['why'])}"
    fastest = f", {times(event['speedup_fastest'])} over {event['fastest']}" if event["fastest"] else ""
    return f"{INDENT}{event['outcome']}: {times(event['speedup'])} over eager{fastest} ({event['score_kind']})"


def _task_failed(event: Json) -> str:
    return f"{INDENT}failed, {event['error']}: {_first_line(_last_line(event['message']))}"


def _job_failed(event: Json) -> str:
    return f"the job ended with {event['error']}: {_first_line(event['message'])}"


def _waiting(event: Json) -> str:
    return f"waiting for replies in {event['where']}; the same command continues"


def _run_ended(event: Json) -> str:
    return f"run {event['run_id']} {event['outcome']}: {event['tasks']} operators in {event['wall_s']:.1f} s"


_LINES: Mapping[str, Callable[[Json], str | None]] = {
    "run_started": _run_started,
    "environment": _environment,
    "sweep_job": _sweep_job,
    "task_started": _task_started,
    "baseline": _baseline,
    "stage_started": _stage_started,
    "rule": _rule,
    "llm_call": _llm_call,
    "llm_failed": _llm_failed,
    "reply_unusable": _reply_unusable,
    "verdict": _verdict,
    "promotion": _promotion,
    "confirmation": _confirmation,
    "stage_ended": _stage_ended,
    "task_ended": _task_ended,
    "task_failed": _task_failed,
    "waiting": _waiting,
    "job_failed": _job_failed,
    "run_ended": _run_ended,
}
