"""A correct kernel with its times, and the scores that rules and prompts read from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.records import Facts, Judged, Measurement, ScoreKind, Trace, Verdict
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

    @property
    def judged(self) -> Judged:
        """What a back-end needs to time or profile it again."""
        timed = self.measurement.timing("candidate")
        known = timed is not None and timed.score_kind is not ScoreKind.ESTIMATED
        return Judged(self.source, self.verdict.trace, timed.median_us if timed and known else None)


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
    """The scores of `best`, or of nothing: then only the baseline's own times are known."""
    known = best.measurement if best else baseline
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


def accepts_estimates(settings: Settings) -> bool:
    """Whether estimated times count in rules and promotion: as the search says, else as the back-end declares."""
    accept = settings.search.accept_estimates
    return settings.backends[settings.backend].accept_estimates if accept is None else accept


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
