"""A small journal for tests of what is derived from journals: two solved operators, one failed, one waiting."""

from __future__ import annotations

from typing import Any

from engine.journal import EVENTS

RUN = "0123456789abcdef"


class Writer:
    """Numbers events as a journal does, refuses fields that it does not declare, and fills those not given with null;
    times advance one second an event."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, kind: str, task_id: str | None = None, stage: str | None = None, **fields: Any) -> None:
        assert set(fields) <= set(EVENTS[kind]), f"{kind} has no such fields"
        seq = len(self.events)
        head = {"v": 1, "run_id": RUN, "seq": seq, "t": 1000.0 + seq, "kind": kind, "task_id": task_id, "stage": stage}
        self.events.append({**head, **dict.fromkeys(EVENTS[kind]), **fields})


def start(write: Writer, task: str, category: str, named: str | None = None) -> None:
    write("task_started", task, name=task, category=category, named=named, classified=category)
    write("classification", task, evaluations=[])
    baseline = {"score_kind": "measured", "floor_us": 10.0}
    write("baseline", task, who="eager", median_us=100.0, **baseline)
    write("baseline", task, who="compile", median_us=80.0, **baseline)


def call(write: Writer, task: str, stage: str, *, usd: float | None = 0.01, tokens: int = 100) -> None:
    usage = {"input_tokens": tokens, "output_tokens": 50, "cached_tokens": 0, "reasoning_tokens": 0}
    fields = {"role": "optimise", "attempt": 0, "sample": 0, "model": "m", "cost_usd": usd, "latency_s": 1.5}
    write("llm_call", task, stage, **usage, **fields)


def draft(
    write: Writer,
    task: str,
    stage: str,
    name: str,
    *,
    reason: str | None,
    speedup: float | None = None,
    role: str = "optimise",
) -> None:
    write("candidate", task, stage, candidate_id=name, parent_id=None, role=role, proposer="llm", audit=False)
    status = "correct" if reason is None else "rejected"
    message = "" if reason is None else "out[3] is 4.0, expected 2.0\nsecond line"
    write("verdict", task, stage, candidate_id=name, status=status, reason=reason, message=message, error_ratio=1.0)
    if speedup is not None:
        ratio = {"over": "eager", "value": speedup, "lo": speedup - 0.1, "hi": speedup + 0.1, "n": 20}
        write("ratio", task, stage, candidate_id=name, **ratio)
        fast = {"over": "compile", "value": speedup * 0.8, "lo": speedup * 0.7, "hi": speedup * 0.9, "n": 20}
        write("ratio", task, stage, candidate_id=name, **fast)


def promote(write: Writer, task: str, stage: str, name: str, *, promoted: bool = True) -> None:
    write("promotion", task, stage, candidate_id=name, incumbent_id=None, promoted=promoted, why="because", ratio=None)


def stage_end(
    write: Writer,
    task: str,
    stage: str,
    outcome: str,
    *,
    why: str = "",
    rule: str | None = None,
    gain: float | None = None,
    speedup: float | None = None,
) -> None:
    end = {"outcome": outcome, "why": why, "rule": rule, "stage_gain": gain, "speedup": speedup, "failures": 0}
    write("stage_ended", task, stage, **end)


def end(write: Writer, task: str, outcome: str, best: str | None, speedup: float | None, why: str = "") -> None:
    scores = {
        "speedup": speedup,
        "speedup_fastest": speedup * 0.8 if speedup else None,
        "fastest": "compile" if speedup else None,
        "headroom": 5.0 if speedup else None,
        "score_kind": "measured" if speedup else None,
    }
    write("task_ended", task, outcome=outcome, why=why, best_id=best, **scores)


def sample_events() -> list[dict[str, Any]]:
    write = Writer()
    write("run_started", config_hash="c", version="0", backend="cuda", category="auto", provider="replay", model="m")
    write("environment", device={"backend": "cuda", "name": "H200"}, facts={})
    start(write, "alpha", "pointy")
    call(write, "alpha", "seed")
    draft(write, "alpha", "seed", "aaaaaaaaaaaa", reason="wrong_result")
    call(write, "alpha", "seed")
    draft(write, "alpha", "seed", "bbbbbbbbbbbb", reason=None, speedup=0.5, role="repair")
    promote(write, "alpha", "seed", "bbbbbbbbbbbb")
    write("stage_started", "alpha", "tile", audit=False)
    call(write, "alpha", "tile")
    draft(write, "alpha", "tile", "cccccccccccc", reason=None, speedup=2.0)
    # Paired with the incumbent, its ratio over eager is measured again and comes out otherwise.
    write("ratio", "alpha", "tile", candidate_id="cccccccccccc", over="eager", value=9.0, lo=8.0, hi=10.0, n=20)
    promote(write, "alpha", "tile", "cccccccccccc")
    stage_end(write, "alpha", "tile", "done", gain=4.0, speedup=2.0)
    write("stage_started", "alpha", "fuse", audit=False)
    rule = {"rule": "nothing", "rule_kind": "skip", "outcome": "true", "operands": {}, "missing": []}
    write("rule", "alpha", "fuse", fired=True, obeyed=True, why="nothing to fuse", **rule)
    stage_end(write, "alpha", "fuse", "skipped", why="nothing to fuse", rule="nothing", speedup=2.0)
    end(write, "alpha", "done", "cccccccccccc", 2.0)
    start(write, "level1/beta", "flat", named="flat")
    call(write, "level1/beta", "seed", usd=None)
    draft(write, "level1/beta", "seed", "dddddddddddd", reason=None, speedup=0.5)
    promote(write, "level1/beta", "seed", "dddddddddddd")
    end(write, "level1/beta", "done", "dddddddddddd", 0.5)
    start(write, "gamma", "flat")
    write("task_failed", "gamma", error="WorkerError", message="Traceback\n  worker died")
    end(write, "gamma", "failed", None, None, why="WorkerError: worker died")
    start(write, "delta", "flat")
    write("waiting", "delta", where="box/out")
    write("run_ended", outcome="failed", tasks=4, failed=["gamma"], wall_s=12.5)
    return write.events
