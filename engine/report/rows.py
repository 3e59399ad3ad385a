"""Events folded into one row per operator, in the order in which the operators were started."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from engine.canonical import Json
from engine.report.events import present

EAGER = "eager"
REPAIR = "repair"
RUNNING = "running"
"""An operator or stage that has not ended, a candidate that the judge has not answered on."""
OPEN = frozenset({RUNNING, "waiting"})

Place = tuple[str, str]
"""Stage and candidate: two stages can draft the same source, and decide differently on it."""


@dataclass(frozen=True, slots=True)
class Score:
    """Time of `over` divided by the candidate's, with its 95 % interval where one was measured."""

    over: str
    value: float
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True, slots=True)
class CandidatePoint:
    """One candidate of the score curve, in the order of the journal. `speedup` over eager with its 95 % interval, None
    when never timed; `score_kind` is that of its own time."""

    candidate_id: str
    stage: str
    status: str
    reason: str | None
    speedup: float | None
    promoted: bool
    lo: float | None
    hi: float | None
    score_kind: str | None


@dataclass(frozen=True, slots=True)
class StageRow:
    """What one stage did. `gain`: best time before divided by best time after, without kernels whose confirmation
    refused them; None where nothing was timed."""

    name: str
    outcome: str
    """done, skipped, exited or audited; running where the journal stops inside the stage. The drafts before the first
    stage come first, under the name that their events carry."""
    why: str
    rule: str | None
    gain: float | None
    candidates: int
    """Judged ones: drafts and their repairs."""
    repairs: int
    """Of `candidates`."""
    correct: int
    """Of `candidates`."""


@dataclass(frozen=True, slots=True)
class OperatorRow:
    task_id: str
    name: str
    category: str
    named: bool
    """The category was given by name instead of found by the classifier."""
    outcome: str
    """done, exited, unsolved, budget, failed, waiting or running."""
    why: str
    best_id: str | None
    """Of an operator that has not ended, with `vs_eager` and `score_kind`: the best so far."""
    vs_eager: Score | None
    vs_fastest: Score | None
    score_kind: str | None
    headroom: float | None
    input_tokens: int
    output_tokens: int
    calls: int
    cost_usd: float | None
    """None where at least one call had no known price. As the tokens and calls, with those for an earlier text of an
    operator that was edited."""
    confirmed: bool | None
    """Whether the best kernel held when it was judged again at the end; None: that was not done, or not decided."""
    best_path: str | None
    """Relative to the run's folder."""
    stages: tuple[StageRow, ...]
    points: tuple[CandidatePoint, ...]

    @property
    def ended(self) -> bool:
        return self.outcome not in OPEN

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    @property
    def solved(self) -> bool:
        return self.best_id is not None


@dataclass(slots=True)
class _Stage:
    name: str
    announced: bool
    """False of the drafts before the first stage: no event says that they begin or end."""
    outcome: str = RUNNING
    why: str = ""
    rule: str | None = None
    gain: float | None = None


@dataclass(slots=True)
class _Point:
    candidate_id: str
    stage: str
    role: str
    promoted: bool = False
    ratio: float | None = None
    """Paired, with which it was promoted."""


@dataclass(slots=True)
class _Spent:
    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0
    unpriced: int = 0
    usd: float = 0.0


@dataclass(slots=True)
class _Task:
    task_id: str
    name: str
    category: str
    named: bool
    spent: _Spent
    outcome: str = RUNNING
    why: str = ""
    best_id: str | None = None
    speedup: float | None = None
    speedup_fastest: float | None = None
    fastest: str | None = None
    score_kind: str | None = None
    headroom: float | None = None
    confirmed: bool | None = None
    stages: dict[str, _Stage] = field(default_factory=dict)
    points: dict[Place, _Point] = field(default_factory=dict)
    bests: list[str] = field(default_factory=list)
    """Candidates in the order in which they became the best."""
    refused: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Status and reason of those that were refused as they were confirmed."""
    verdicts: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    """Score kind of a candidate's own time."""
    ratios: dict[tuple[str, str], Score] = field(default_factory=dict)
    confirmed_ratios: dict[tuple[str, str], Score] = field(default_factory=dict)


def rows(events: Iterable[Json]) -> tuple[OperatorRow, ...]:
    """One row per operator. Works on an unfinished journal: what has not happened is None or `running`."""
    told = list(events)
    tasks: dict[str, _Task] = {}
    spent: dict[str, _Spent] = defaultdict(_Spent)
    for event in told:
        if event["kind"] == "llm_call":
            _llm_call(spent[event["task_id"]], event)
    for event in present(told):
        task_id = event["task_id"]
        if event["kind"] == "task_started":
            _task_started(tasks, event, spent[task_id])
        elif task_id in tasks and event["kind"] in _FOLDS:
            _FOLDS[event["kind"]](tasks[task_id], event)
    return tuple(_row(tasks[task_id]) for task_id in started(told))


def started(events: Iterable[Json]) -> tuple[str, ...]:
    """Ids of the operators in the order of their first start."""
    return tuple(dict.fromkeys(event["task_id"] for event in events if event["kind"] == "task_started"))


def _task_started(tasks: dict[str, _Task], event: Json, spent: _Spent) -> None:
    task_id = event["task_id"]
    if task_id not in tasks:
        tasks[task_id] = _Task(task_id, event["name"], event["category"], bool(event["named"]), spent)
    else:
        # Edited and edited back: it began once more, and its end is told once more.
        tasks[task_id].outcome, tasks[task_id].why = RUNNING, ""


def _stage_started(task: _Task, event: Json) -> None:
    task.stages[event["stage"]] = _Stage(event["stage"], announced=True)


def _llm_call(spent: _Spent, event: Json) -> None:
    spent.calls += 1
    spent.input_tokens += event["input_tokens"]
    spent.output_tokens += event["output_tokens"]
    if event["cost_usd"] is None:
        spent.unpriced += 1
    else:
        spent.usd += event["cost_usd"]


def _candidate(task: _Task, event: Json) -> None:
    task.stages.setdefault(event["stage"], _Stage(event["stage"], announced=False))
    place = event["stage"], event["candidate_id"]
    task.points.setdefault(place, _Point(event["candidate_id"], event["stage"], event["role"]))


def _verdict(task: _Task, event: Json) -> None:
    task.verdicts[event["candidate_id"]] = event["status"], event["reason"]


def _timing(task: _Task, event: Json) -> None:
    if event["who"] == "candidate":
        task.kinds[event["candidate_id"]] = event["score_kind"]


def _ratio(task: _Task, event: Json) -> None:
    score = Score(event["over"], event["value"], event["lo"], event["hi"])
    task.ratios.setdefault((event["candidate_id"], event["over"]), score)
    # That it became the best may have been told before, on another device.
    _best_so_far(task)


def _promotion(task: _Task, event: Json) -> None:
    place = event["stage"], event["candidate_id"]
    if not event["promoted"] or place not in task.points:
        return
    point = task.points[place]
    point.promoted, point.ratio = True, event["ratio"]
    task.bests.append(point.candidate_id)
    _best_so_far(task)


def _best_so_far(task: _Task) -> None:
    if task.outcome in OPEN:
        best = next((name for name in reversed(task.bests) if name not in task.refused), None)
        own = task.ratios.get((best or "", EAGER))
        task.best_id, task.speedup = best, own.value if own else None
        task.score_kind = task.kinds.get(best or "")


def _confirmation(task: _Task, event: Json) -> None:
    """The kernel's times in fresh processes take the place of its first ones; of a refused one nothing stays."""
    task.refused.pop(event["candidate_id"], None)
    if event["outcome"] == "refused":
        task.refused[event["candidate_id"]] = event["status"], event["reason"]
    _best_so_far(task)
    if event["chosen"] is not None:
        for ratio in event["ratios"][event["chosen"]]:
            score = Score(ratio["over"], ratio["value"], ratio["lo"], ratio["hi"])
            task.confirmed_ratios[event["candidate_id"], ratio["over"]] = score


def _stage_ended(task: _Task, event: Json) -> None:
    stage = task.stages.setdefault(event["stage"], _Stage(event["stage"], announced=True))
    stage.outcome, stage.why, stage.rule = event["outcome"], event["why"] or "", event["rule"]
    stage.gain = event["stage_gain"]


def _task_ended(task: _Task, event: Json) -> None:
    task.outcome, task.why, task.best_id = event["outcome"], event["why"] or "", event["best_id"]
    task.speedup, task.speedup_fastest = event["speedup"], event["speedup_fastest"]
    task.fastest, task.headroom, task.score_kind = event["fastest"], event["headroom"], event["score_kind"]
    task.confirmed = event["confirmed"]


def _task_failed(task: _Task, event: Json) -> None:
    last = event["message"].strip().rpartition("\n")[2].strip()
    task.outcome, task.why = "failed", f"{event['error']}: {last}"


def _waiting(task: _Task, event: Json) -> None:
    task.outcome, task.why = "waiting", f"for replies in {event['where']}"


_FOLDS: Mapping[str, Callable[[_Task, Json], None]] = {
    "stage_started": _stage_started,
    "candidate": _candidate,
    "verdict": _verdict,
    "timing": _timing,
    "ratio": _ratio,
    "promotion": _promotion,
    "confirmation": _confirmation,
    "stage_ended": _stage_ended,
    "task_ended": _task_ended,
    "task_failed": _task_failed,
    "waiting": _waiting,
}


def _row(task: _Task) -> OperatorRow:
    points = tuple(_point(task, point) for point in task.points.values())
    return OperatorRow(
        task_id=task.task_id,
        name=task.name,
        category=task.category,
        named=task.named,
        outcome=task.outcome,
        why=task.why,
        best_id=task.best_id,
        vs_eager=_score(task, EAGER, task.speedup),
        vs_fastest=_score(task, task.fastest, task.speedup_fastest),
        score_kind=task.score_kind,
        headroom=task.headroom,
        confirmed=task.confirmed,
        input_tokens=task.spent.input_tokens,
        output_tokens=task.spent.output_tokens,
        calls=task.spent.calls,
        cost_usd=None if task.spent.unpriced else task.spent.usd,
        best_path=f"tasks/{task.task_id}/best.py" if task.best_id else None,
        stages=tuple(_stage_row(task, stage) for stage in task.stages.values()),
        points=points,
    )


def _score(task: _Task, over: str | None, value: float | None) -> Score | None:
    """The value of the task's end, with the interval of the ratio that it was taken from: the one of its confirmation,
    else, of the several that it has once it was paired with an incumbent, the first, which is its own measurement."""
    if task.best_id is None or over is None or value is None:
        return None
    ratio = (task.ratios | task.confirmed_ratios).get((task.best_id, over))
    return ratio if ratio is not None and ratio.value == value else Score(over, value)


def _stage_row(task: _Task, stage: _Stage) -> StageRow:
    mine = [point for point in task.points.values() if point.stage == stage.name]
    judged = [point for point in mine if _said(task, point)[0] != RUNNING]
    promoted = [point for point in mine if point.promoted]
    kept = [point.ratio or 1.0 for point in promoted if point.candidate_id not in task.refused]
    gain = stage.gain if stage.gain is None or len(kept) == len(promoted) else prod(kept)
    over = not stage.announced and (task.outcome not in OPEN or len(task.stages) > 1)
    return StageRow(
        stage.name,
        "done" if over else stage.outcome,
        stage.why,
        stage.rule,
        gain,
        candidates=len(judged),
        repairs=sum(point.role == REPAIR for point in judged),
        correct=sum(_said(task, point)[0] == "correct" for point in judged),
    )


def _said(task: _Task, point: _Point) -> tuple[str, str | None]:
    """Status and reason of its verdict, or of its confirmation where that refused it."""
    return task.refused.get(point.candidate_id) or task.verdicts.get(point.candidate_id) or (RUNNING, None)


def _point(task: _Task, point: _Point) -> CandidatePoint:
    status, reason = _said(task, point)
    ratio = task.ratios.get((point.candidate_id, EAGER))
    return CandidatePoint(
        candidate_id=point.candidate_id,
        stage=point.stage,
        status=status,
        reason=reason,
        speedup=ratio.value if ratio else None,
        promoted=point.promoted and point.candidate_id not in task.refused,
        lo=ratio.lo if ratio else None,
        hi=ratio.hi if ratio else None,
        score_kind=task.kinds.get(point.candidate_id),
    )
