"""One operator as its section of the page tells it: stages with the rules that decided, calls, candidates, evidence.

Fields of type Json are events as docs/journal.md describes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.canonical import Json
from engine.report.events import present
from engine.report.plots import Reached, Roofline
from engine.report.rows import EAGER, CandidatePoint, OperatorRow, Place, Score, StageRow, rows

PROBLEMS = ("llm_failed", "reply_unusable", "advice_unreadable", "prompt_drift")
RATES = {"fp32_tflops": "fp32", "tf32_tflops": "TF32", "fp16_tflops": "fp16"}
"""Of the device record, under the names that the roofline shows."""

Slot = tuple[str, str, int, int]
"""Stage, role, attempt and sample: what names a call within a task."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """`number` as on the score curve; `verdict`, `timing` and `promotion` are None where there was none."""

    number: int
    point: CandidatePoint
    event: Json
    verdict: Json | None
    timing: Json | None
    promotion: Json | None


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the model and what came of it. `asked`: the reply's event, None without one. `candidates`: at most
    one, unless the call was made again after an edit."""

    slot: Slot
    asked: Json | None
    problems: tuple[Json, ...]
    candidates: tuple[Candidate, ...]

    @property
    def stem(self) -> str:
        """Of its files in exchanges/."""
        return ".".join(map(str, self.slot))


@dataclass(frozen=True, slots=True)
class Stage:
    row: StageRow
    audit: bool
    rules: tuple[Json, ...]
    calls: tuple[Call, ...]

    @property
    def deciding(self) -> list[Json]:
        """Rules that fired, obeyed or not."""
        return [rule for rule in self.rules if rule["fired"]]

    @property
    def quiet(self) -> list[Json]:
        return [rule for rule in self.rules if not rule["fired"]]


@dataclass(frozen=True, slots=True)
class Operator:
    row: OperatorRow
    started: Json
    matched: Json | None
    """The evaluation of the rule by which the classifier chose the category; None of a category given by name."""
    baselines: tuple[Json, ...]
    stages: tuple[Stage, ...]
    candidates: tuple[Candidate, ...]
    confirmations: tuple[Json, ...]
    metrics: tuple[Json, ...]
    """Those with a value."""
    roofline: Roofline | None

    @property
    def floor_us(self) -> float | None:
        return next((base["floor_us"] for base in self.baselines if base["floor_us"]), None)

    @property
    def best(self) -> Candidate | None:
        return next((found for found in self.candidates if found.point.candidate_id == self.row.best_id), None)


@dataclass(slots=True)
class _Task:
    """What the journal holds of one task, by what it belongs to."""

    started: Json
    evaluations: Json = None
    baselines: dict[str, Json] = field(default_factory=dict)
    audits: set[str] = field(default_factory=set)
    rules: dict[str, list[Json]] = field(default_factory=dict)
    calls: dict[Slot, Json] = field(default_factory=dict)
    """None for a call that was never answered."""
    problems: dict[Slot, list[Json]] = field(default_factory=dict)
    drafts: dict[Slot, list[str]] = field(default_factory=dict)
    candidates: dict[Place, Json] = field(default_factory=dict)
    verdicts: dict[str, Json] = field(default_factory=dict)
    timings: dict[str, Json] = field(default_factory=dict)
    promotions: dict[Place, Json] = field(default_factory=dict)
    confirmations: list[Json] = field(default_factory=list)
    metrics: list[Json] = field(default_factory=list)


def operators(events: Sequence[Json]) -> tuple[Operator, ...]:
    """One per operator, in the order of `rows`."""
    tasks: dict[str, _Task] = {}
    hardware: Json = {}
    for event in present(events):
        if event["kind"] == "environment":
            hardware = event["device"].get("hardware") or {}
        elif event["kind"] == "task_started":
            tasks.setdefault(event["task_id"], _Task(event))
        elif event["task_id"] in tasks:
            _take(tasks[event["task_id"]], event)
    return tuple(_operator(tasks[row.task_id], row, hardware) for row in rows(events))


def _take(task: _Task, event: Json) -> None:
    kind = event["kind"]
    if kind in ("llm_call", "candidate", *PROBLEMS):
        _take_call(task, event, kind)
    elif kind in ("verdict", "timing", "promotion", "metric", "confirmation"):
        _take_evidence(task, event, kind)
    elif kind == "classification":
        task.evaluations = event["evaluations"]
    elif kind == "baseline":
        task.baselines[event["who"]] = event
    elif kind == "stage_started" and event["audit"]:
        task.audits.add(event["stage"])
    elif kind == "rule":
        task.rules.setdefault(event["stage"], []).append(event)


def _take_evidence(task: _Task, event: Json, kind: str) -> None:
    if kind == "verdict":
        task.verdicts[event["candidate_id"]] = event
    elif kind == "timing" and event["who"] == "candidate":
        # Paired with an incumbent it is timed again; its own measurement is the first.
        task.timings.setdefault(event["candidate_id"], event)
    elif kind == "promotion":
        task.promotions[event["stage"], event["candidate_id"]] = event
    elif kind == "confirmation":
        task.confirmations.append(event)
    elif kind == "metric" and event["value"] is not None:
        task.metrics.append(event)


def _take_call(task: _Task, event: Json, kind: str) -> None:
    slot = _slot(event)
    task.calls.setdefault(slot, None)
    if kind == "llm_call":
        task.calls[slot] = event
    elif kind == "candidate":
        task.drafts.setdefault(slot, []).append(event["candidate_id"])
        task.candidates.setdefault((event["stage"], event["candidate_id"]), event)
    else:
        task.problems.setdefault(slot, []).append(event)


def _slot(event: Json) -> Slot:
    if event["kind"] != "prompt_drift":
        return (event["stage"], event["role"], event["attempt"], event["sample"])
    role, attempt, sample = event["slot"].rpartition("/")[2].rsplit(".", 2)
    return (event["stage"], role, int(attempt), int(sample))


def _operator(task: _Task, row: OperatorRow, hardware: Mapping[str, float]) -> Operator:
    found = {(made.point.stage, made.point.candidate_id): made for made in _candidates(task, row.points)}
    return Operator(
        row=row,
        started=task.started,
        matched=None if row.named else _matched(task.evaluations, row.category),
        baselines=tuple(task.baselines.values()),
        stages=tuple(_stage(task, stage, found) for stage in row.stages),
        candidates=tuple(found.values()),
        confirmations=tuple(task.confirmations),
        metrics=tuple(task.metrics),
        roofline=_roofline(task, row, hardware),
    )


def _matched(evaluations: Json, category: str) -> Json | None:
    return next((found for found in evaluations or () if found["rule"] == category), None)


def _candidates(task: _Task, points: Iterable[CandidatePoint]) -> Iterable[Candidate]:
    for number, point in enumerate(points, start=1):
        name, place = point.candidate_id, (point.stage, point.candidate_id)
        verdict, timing = task.verdicts.get(name), task.timings.get(name)
        yield Candidate(number, point, task.candidates[place], verdict, timing, task.promotions.get(place))


def _stage(task: _Task, row: StageRow, candidates: Mapping[Place, Candidate]) -> Stage:
    def made(slot: Slot) -> tuple[Candidate, ...]:
        return tuple(candidates[slot[0], name] for name in dict.fromkeys(task.drafts.get(slot) or ()))

    calls = tuple(
        Call(slot, asked, tuple(task.problems.get(slot) or ()), made(slot))
        for slot, asked in task.calls.items()
        if slot[0] == row.name
    )
    return Stage(row, row.name in task.audits, tuple(task.rules.get(row.name) or ()), calls)


def _roofline(task: _Task, row: OperatorRow, hardware: Mapping[str, float]) -> Roofline | None:
    """None where intensity, FLOPs or every time is unknown."""
    facts = task.started["facts"] or {}
    flops, intensity = facts.get("flops"), facts.get("intensity")
    if not flops or not intensity:
        return None
    reached = []
    eager = task.baselines.get(EAGER)
    if eager is not None and eager["median_us"]:
        reached.append(Reached(EAGER, _tflops(flops, eager["median_us"]), eager["score_kind"], best=False))
    floor_us = next((base["floor_us"] for base in task.baselines.values() if base["floor_us"]), None)
    best_us = best_time(row, task.timings.get(row.best_id or ""), floor_us)
    if best_us:
        reached.append(Reached("best", _tflops(flops, best_us), row.score_kind, best=True))
    if not reached:
        return None
    rates = {shown: hardware[name] for name, shown in RATES.items() if hardware.get(name)}
    floor = _tflops(flops, floor_us) if floor_us else None
    return Roofline(intensity, tuple(reached), floor, rates, hardware.get("dram_gbps") or None)


def best_time(row: OperatorRow, timing: Json | None, floor_us: float | None) -> float | None:
    """Microseconds of the best kernel: those behind the reported headroom, which a confirmation may have measured
    anew, else its first measurement."""
    if row.headroom and floor_us:
        return row.headroom * floor_us
    median: float | None = timing["median_us"] if timing else None
    return median


def _tflops(flops: float, time_us: float) -> float:
    return flops / time_us / 1e6


def interval(score: Score | None) -> tuple[float, float] | None:
    """Where it was measured and says anything."""
    if score is None or score.lo is None or score.hi is None or score.lo == score.hi:
        return None
    return score.lo, score.hi
