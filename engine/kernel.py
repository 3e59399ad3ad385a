"""A correct kernel with its times, the scores that rules and prompts read from it, and which kernels may be paired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.prompts import ScoreView
from engine.records import Facts, Judged, Measurement, Mode, ScoreKind, Trace, Verdict
from engine.rules import Value
from engine.settings import Settings


@dataclass(frozen=True, slots=True)
class Kernel:
    """A candidate that the judge found correct, with its measurement beside the baselines."""

    candidate_id: str
    source: str
    stage: str
    verdict: Verdict
    measurement: Measurement
    timed: bool = True
    """False: a budget or another stop forbade its timing; `measurement.note` has the budget's words."""

    @property
    def judged(self) -> Judged:
        """What a back-end needs to time or profile it again."""
        timed = self.measurement.timing("candidate")
        known = timed is not None and timed.score_kind is not ScoreKind.ESTIMATED
        return Judged(self.source, self.verdict.trace, timed.median_us if timed and known else None)


UNTIMED = Measurement((), (), None, {})


CLEARLY_SLOWER = 1.25
"""A kernel this much slower in separate runs, intervals apart, is not worth a paired measurement with the best."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of the best kernel; None where there is no kernel, no measurement, or only an estimate that does not
    count. `speedup` is eager time over kernel time, `headroom` kernel time over the floor."""

    speedup: float | None
    speedup_fastest: float | None
    fastest: str | None
    headroom: float | None
    score_kind: ScoreKind | None
    best_us: float | None
    eager_us: float | None
    floor_us: float | None


BASELINES = ("eager", "compile", "eager_graph", "compile_graph")


def fastest_baseline(measurement: Measurement) -> str | None:
    """The baseline with the lowest median among those that were timed."""
    timed = [timing for timing in measurement.timings if timing.who in BASELINES]
    return min(timed, key=lambda timing: timing.median_us).who if timed else None


def scores(best: Kernel | None, baseline: Measurement | None) -> Scores:
    """The scores of `best`; of nothing, or of a kernel that was not timed, only the baseline's own times."""
    known = best.measurement if best and best.timed else baseline
    if known is None:
        return Scores(None, None, None, None, None, None, None, None)
    eager, mine = known.timing("eager"), known.timing("candidate")
    fastest = fastest_baseline(known)
    over_eager = known.ratio("eager")
    over_fastest = known.ratio(fastest) if fastest else None
    return Scores(
        speedup=over_eager.value if over_eager else None,
        speedup_fastest=over_fastest.value if over_fastest else None,
        fastest=fastest,
        headroom=mine.median_us / known.floor_us if mine and known.floor_us else None,
        score_kind=mine.score_kind if mine else None,
        best_us=mine.median_us if mine else None,
        eager_us=eager.median_us if eager else None,
        floor_us=known.floor_us,
    )


def score_view(view: Scores) -> ScoreView:
    """The scores as prompts show them."""
    return ScoreView(
        speedup=view.speedup,
        speedup_fastest=view.speedup_fastest,
        fastest=view.fastest,
        headroom=view.headroom,
        score_kind=view.score_kind.value if view.score_kind else None,
        best_us=view.best_us,
        eager_us=view.eager_us,
        floor_us=view.floor_us,
    )


def accepts_estimates(settings: Settings) -> bool:
    """Whether estimated times count in rules and promotion: as the search says, else as the back-end declares."""
    accept = settings.search.accept_estimates
    return settings.backends[settings.backend].accept_estimates if accept is None else accept


def comparable(settings: Settings, kernel: Kernel | None) -> bool:
    """Whether the kernel's time counts: it is measured, or estimates are accepted."""
    timing = kernel.measurement.timing("candidate") if kernel else None
    estimated = timing is not None and timing.score_kind is ScoreKind.ESTIMATED
    return not estimated or accepts_estimates(settings)


def verifies(kernel: Kernel, best: Kernel) -> bool:
    """Whether a measured time meets an unverified one: they never rank together, and only the first can be believed."""
    mine, other = kernel.measurement.timing("candidate"), best.measurement.timing("candidate")
    kinds = (mine.score_kind if mine else None, other.score_kind if other else None)
    return kinds == (ScoreKind.MEASURED, ScoreKind.UNVERIFIED)


def refusal(settings: Settings, kernel: Kernel, best: Kernel | None) -> str | None:
    """Why a kernel cannot become the best one before anything is paired, or None."""
    if kernel.measurement.refuted:
        return f"while it was timed it computed something else: {kernel.measurement.refuted}"
    if kernel.verdict.mode is Mode.FALLBACK and not settings.judge.allow_unverified:
        return "judge.allow_unverified is false and its launch plan is not verified"
    if best is None:
        return None
    if best.candidate_id == kernel.candidate_id:
        return "the same source as the best"
    if not comparable(settings, kernel):
        return "its time is an estimate, and search.accept_estimates is false"
    if verifies(kernel, best):
        return None
    return _incomparable(kernel, best)


def _incomparable(kernel: Kernel, best: Kernel) -> str | None:
    if not kernel.timed:
        return f"not timed: {kernel.measurement.note}" if kernel.measurement.note else "not timed"
    if not best.timed and best.verdict.mode is not kernel.verdict.mode:
        return "its time would be of another kind than that of the best"
    mine, other = kernel.measurement.timing("candidate"), best.measurement.timing("candidate")
    if mine is None or (other is not None and mine.score_kind is not other.score_kind):
        return "its time cannot be compared with the best"
    estimated = mine.score_kind is ScoreKind.ESTIMATED
    if other is not None and not estimated and mine.lo_us > other.hi_us * CLEARLY_SLOWER:
        return "clearly slower than the best in separate runs"
    return None


SIZES = ("flops", "bytes", "intensity")


def fact_operands(facts: Facts) -> Mapping[str, Value | None]:
    """Facts as rule operands: all unknown for a reference that could not be followed; its sizes, too, where only a
    small variant was run, because rules mean the operator at full size."""
    names = [name for name in facts.__dataclass_fields__ if name not in ("costs", "note", "traced")]
    known = {name: getattr(facts, name) for name in names}
    if facts.traced == "none":
        return {name: value if name == "dtype" else None for name, value in known.items()}
    if facts.traced == "small":
        return {name: None if name in SIZES else value for name, value in known.items()}
    return known


def counted(view: Scores, *, accept_estimates: bool) -> Mapping[str, Value | None]:
    """The scores as rule operands: estimates are unknown unless they are accepted. Headroom of an estimate never
    counts, because estimate and floor come from one formula: one launch is near 1 however badly it is written."""
    estimated = view.score_kind is ScoreKind.ESTIMATED
    hidden = estimated and not accept_estimates
    return {
        "speedup": None if hidden else view.speedup,
        "speedup_fastest": None if hidden else view.speedup_fastest,
        "headroom": None if estimated else view.headroom,
    }


def trace_metrics(trace: Trace | None, facts: Facts) -> Mapping[str, float | None]:
    """What the launch record alone tells: launches of one call, launches per timestep, programs of all grids."""
    if trace is None:
        return {"launches": None, "launches_per_timestep": None, "grid_programs": None}
    programs = sum(launch.count * launch.grid[0] * launch.grid[1] * launch.grid[2] for launch in trace.launches)
    steps = facts.time_steps
    return {
        "launches": float(trace.launch_count),
        "launches_per_timestep": trace.launch_count / steps if steps else None,
        "grid_programs": float(programs),
    }
