"""Events folded into one row per operator, in the order in which the operators were started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from engine.canonical import Json
from engine.journal import EVENTS

EAGER = "eager"
REPAIR = "repair"
RUNNING = "running"
"""An operator or stage that has not ended, a candidate that the judge has not answered on."""
OPEN = frozenset({RUNNING, "waiting"})


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
    """What one stage did. `gain`: best time before divided by best time after; None where nothing was timed."""

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
    """None where at least one call had no known price."""
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
    kind: str | None = None
    """Score kind of its own time."""
    status: str = RUNNING
    reason: str | None = None
    promoted: bool = False


@dataclass(slots=True)
class _Task:
    task_id: str
    name: str
    category: str
    named: bool
    outcome: str = RUNNING
    why: str = ""
    best_id: str | None = None
    speedup: float | None = None
    speedup_fastest: float | None = None
    fastest: str | None = None
    score_kind: str | None = None
    headroom: float | None = None
    confirmed: bool | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0
    unpriced: int = 0
    cost_usd: float = 0.0
    stages: dict[str, _Stage] = field(default_factory=dict)
    points: dict[str, _Point] = field(default_factory=dict)
    ratios: dict[tuple[str, str], Score] = field(default_factory=dict)
    confirmed_ratios: dict[tuple[str, str], Score] = field(default_factory=dict)


def with_every_field(events: Iterable[Json]) -> list[Json]:
    """Events of a journal that an older engine wrote, with null for fields that have come since."""
    return [{**dict.fromkeys(EVENTS[e["kind"]]), **e} if e["kind"] in EVENTS else e for e in events]


def rows(events: Iterable[Json]) -> tuple[OperatorRow, ...]:
    """One row per operator. Works on an unfinished journal: what has not happened is None or `running`."""
    tasks: dict[str, _Task] = {}
    for event in events:
        task_id = event["task_id"]
        if event["kind"] == "task_started" and task_id not in tasks:
            tasks[task_id] = _Task(task_id, event["name"], event["category"], bool(event["named"]))
        elif task_id in tasks and event["kind"] in _FOLDS:
            _FOLDS[event["kind"]](tasks[task_id], event)
    return tuple(_row(task) for task in tasks.values())


def _stage_started(task: _Task, event: Json) -> None:
    task.stages[event["stage"]] = _Stage(event["stage"], announced=True)


def _llm_call(task: _Task, event: Json) -> None:
    task.calls += 1
    task.input_tokens += event["input_tokens"]
    task.output_tokens += event["output_tokens"]
    if event["cost_usd"] is None:
        task.unpriced += 1
    else:
        task.cost_usd += event["cost_usd"]


def _candidate(task: _Task, event: Json) -> None:
    task.stages.setdefault(event["stage"], _Stage(event["stage"], announced=False))
    task.points.setdefault(event["candidate_id"], _Point(event["candidate_id"], event["stage"], event["role"]))


def _verdict(task: _Task, event: Json) -> None:
    if event["candidate_id"] in task.points:
        point = task.points[event["candidate_id"]]
        point.status, point.reason = event["status"], event["reason"]


def _timing(task: _Task, event: Json) -> None:
    if event["who"] == "candidate" and event["candidate_id"] in task.points:
        task.points[event["candidate_id"]].kind = event["score_kind"]


def _ratio(task: _Task, event: Json) -> None:
    score = Score(event["over"], event["value"], event["lo"], event["hi"])
    task.ratios.setdefault((event["candidate_id"], event["over"]), score)


def _promotion(task: _Task, event: Json) -> None:
    if not event["promoted"] or event["candidate_id"] not in task.points:
        return
    point = task.points[event["candidate_id"]]
    point.promoted = True
    if task.outcome in OPEN:
        own = task.ratios.get((point.candidate_id, EAGER))
        task.best_id, task.speedup, task.score_kind = point.candidate_id, own.value if own else None, point.kind


def _confirmation(task: _Task, event: Json) -> None:
    """The kernel's times in fresh processes take the place of its first ones."""
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
    "llm_call": _llm_call,
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
        input_tokens=task.input_tokens,
        output_tokens=task.output_tokens,
        calls=task.calls,
        cost_usd=None if task.unpriced else task.cost_usd,
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
    judged = [point for point in task.points.values() if point.stage == stage.name and point.status != RUNNING]
    over = not stage.announced and (task.outcome not in OPEN or len(task.stages) > 1)
    return StageRow(
        stage.name,
        "done" if over else stage.outcome,
        stage.why,
        stage.rule,
        stage.gain,
        candidates=len(judged),
        repairs=sum(point.role == REPAIR for point in judged),
        correct=sum(point.status == "correct" for point in judged),
    )


def _point(task: _Task, point: _Point) -> CandidatePoint:
    ratio = task.ratios.get((point.candidate_id, EAGER))
    return CandidatePoint(
        candidate_id=point.candidate_id,
        stage=point.stage,
        status=point.status,
        reason=point.reason,
        speedup=ratio.value if ratio else None,
        promoted=point.promoted,
        lo=ratio.lo if ratio else None,
        hi=ratio.hi if ratio else None,
        score_kind=point.kind,
    )
