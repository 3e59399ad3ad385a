"""Cross-evidence: whether profiled values agree with the timing, the facts and physics. Pure.

A contradiction says what was expected and found, and names the metrics that it makes unusable: they keep their value
and lose all confidence, so that no rule or prompt rests on them. docs/floors.md lists the checks and their bounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from engine.backends.ceilings import COMPUTE, COPY, READ, KnownRates
from engine.backends.floors import STRUCTURED, split_flops
from engine.backends.ladder import Answer
from engine.records import Facts, MetricValue, Trace
from profilers.seam import Workload

COUNTING = frozenset({"ncu", "cupti", "msprof", "msprof_op"})
"""Sources that read counters while a kernel runs; the others only compute."""

DRAM = ("dram_read_bytes", "dram_write_bytes", "dram_pct")
TIME = ("time_us", "time_share_pct")
MOVED = 0.9
"""Least share of the compulsory bytes, less what L2 can hold back, that a cold call moves."""

TIMES = 2.0
"""Factor within which profiled and measured time agree: a profiler may hold the clock at its base."""

GAP_US = 3.0
"""Between launches, in a measured time and not in the kernels' own, or of overhead in each profiled one."""

PEAK = 1.05
READ_OVER_COPY = 1.12
"""The memory's own rate over that of a copy where reading was not measured: 4800 over 4300 GB/s on an H200."""

MOVES = tuple([name] for name in (
    "copy_", "clone", "contiguous", "_to_copy", "fill_", "zero_", "zeros", "ones", "full", "zeros_like", "ones_like",
    "full_like", "new_zeros", "new_ones", "new_full",
))  # fmt: skip
"""Host operations that compute nothing and still move bytes."""

PERCENT = (-0.5, 101.0)


@dataclass(frozen=True, slots=True)
class Run:
    """What was run, as a profiler or the clock says it; None and empty: it does not say. `sampled`: it stopped before
    the last launch. `us`: the kernels' time, summed over the launches that were seen."""

    us: float | None = None
    launches: int | None = None
    sampled: bool = False
    dtype: str = ""
    precision: str = ""
    shape: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that values are held against. `profiled`: by counting source; `timed`: of the measurement; `trace`: the
    launch record, None for the eager reference."""

    facts: Facts
    known: KnownRates
    l2_bytes: float
    trace: Trace | None
    timed: Run
    profiled: Mapping[str, Run]


@dataclass(frozen=True, slots=True)
class Contradiction:
    """`metrics`: those that it makes unusable; `source`: where given, only values of that source."""

    check: str
    message: str
    metrics: tuple[str, ...]
    source: str = ""

    def concerns(self, value: MetricValue) -> bool:
        return value.metric in self.metrics and self.source in ("", value.source)


def profiled(answers: Sequence[Answer]) -> Mapping[str, Run]:
    """What each counting source of a ladder ran, as far as its samples tell."""
    found = {}
    for answer in answers:
        if answer.profiler in COUNTING and answer.samples:
            spent = [s.duration_us * s.launches for s in answer.samples if s.duration_us is not None]
            us = sum(spent) if len(spent) == len(answer.samples) else None
            stands_for = round(sum(sample.launches for sample in answer.samples))
            launches = stands_for if answer.of is None else answer.of
            seen = sum(sample.seen for sample in answer.samples)
            found[answer.profiler] = _said(Run(us, launches, answer.cut or launches > seen), answer.samples[0].workload)
    return found


def _said(run: Run, workload: Workload | None) -> Run:
    if workload is None:
        return run
    # A plan fixes its dtypes: what was replayed from it cannot have had others.
    dtype = "" if workload.plan else workload.dtype
    return dataclasses.replace(run, dtype=dtype, precision=workload.precision, shape=workload.shape)


def checked(values: Sequence[MetricValue], evidence: Evidence) -> tuple[MetricValue, ...]:
    """The values, those that are contradicted without confidence and with the evidence."""
    found = contradictions(values, evidence)
    return tuple(_marked(value, [one for one in found if one.concerns(value)]) for value in values)


def contradictions(values: Sequence[MetricValue], evidence: Evidence) -> tuple[Contradiction, ...]:
    """Every check that fails; a check whose operands are unknown says nothing."""
    counted = {value.metric: value for value in values if value.value is not None and value.source in COUNTING}
    found = [one for check in _CHECKS for one in check(counted, evidence)]
    return tuple(found)


def _marked(value: MetricValue, found: Sequence[Contradiction]) -> MetricValue:
    if not found or value.value is None:
        return value
    told = "; ".join(f"{one.check}: {one.message}" for one in found)
    note = "; ".join(filter(None, (value.note, f"contradicted, not to be relied on: {told}")))
    return dataclasses.replace(value, confidence=0.0, note=note, contradiction=told)


Counted = Mapping[str, MetricValue]


def _amount(counted: Counted, name: str) -> float | None:
    return counted[name].value if name in counted else None


def _moved(counted: Counted) -> float | None:
    parts = [_amount(counted, name) for name in DRAM[:2]]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _hosted_bytes(trace: Trace | None) -> float:
    """What torch's own kernels move: a profile of the candidate's kernels does not see it. Allocations and views move
    nothing, though the record states the bytes of their tensors."""
    if trace is None:
        return 0.0
    return sum(op.bytes for op in trace.host_ops if op.compute or op.name.split(".")[1:2] in MOVES)


def _kernels_us(counted: Counted, evidence: Evidence) -> float | None:
    """Time of the profiled kernels of a whole call."""
    own = _amount(counted, TIME[0])
    if own is not None:
        return own
    whole = [run.us for run in evidence.profiled.values() if run.us is not None and _is_whole(run, evidence)]
    return whole[0] if whole else None


def _is_whole(run: Run, evidence: Evidence) -> bool:
    """Whether every launch of the call was seen, as far as the launch record tells."""
    planned = 0 if evidence.trace is None else evidence.trace.launch_count
    return not run.sampled and (run.launches is None or run.launches >= planned)


def _compulsory(counted: Counted, evidence: Evidence) -> list[Contradiction]:
    moved, facts = _moved(counted), evidence.facts
    if moved is None or facts.traced != "full":
        return []
    # A profiler that repeats a launch for each of its passes finds up to one L2 of it cached.
    held = evidence.l2_bytes * max([1, *(run.launches or 1 for run in evidence.profiled.values())])
    least = MOVED * (facts.bytes - held - _hosted_bytes(evidence.trace))
    if moved >= least:
        return []
    told = f"{moved:.4g} bytes moved, at least {least:.4g} are compulsory beside what L2 can hold"
    return [Contradiction("compulsory bytes", told, DRAM)]


def _times(counted: Counted, evidence: Evidence) -> list[Contradiction]:
    timed = evidence.timed.us
    if timed is None:
        return []
    found = []
    for source, run in evidence.profiled.items():
        if run.us is None or not _is_whole(run, evidence) or _hosted_bytes(evidence.trace):
            continue
        gaps = GAP_US * (run.launches or 1)
        if not (timed - gaps) / TIMES <= run.us <= TIMES * timed + gaps:
            told = f"kernels took {run.us:.4g} us under {source}, the measured call {timed:.4g} us"
            found.append(Contradiction("profiled time", told, _of(counted, source), source))
    return found


def _bandwidth(counted: Counted, evidence: Evidence) -> list[Contradiction]:
    moved, spent, rates = _moved(counted), _kernels_us(counted, evidence), evidence.known.values
    if moved is None or not spent or COPY not in rates:
        return []
    peak = max(rates[COPY], rates[READ]) if READ in rates else READ_OVER_COPY * rates[COPY]
    if moved / spent <= PEAK * peak * 1e3:
        return []
    told = f"{moved / spent / 1e3:.4g} GB/s, the memory reaches {peak:.4g}"
    return [Contradiction("bandwidth", told, (*DRAM, *TIME))]


def _arithmetic(counted: Counted, evidence: Evidence) -> list[Contradiction]:
    facts, spent = evidence.facts, _kernels_us(counted, evidence)
    rates = [evidence.known.values[name] for name in COMPUTE if name in evidence.known.values]
    structured = any(cost.name in STRUCTURED for cost in facts.costs)
    if not spent or not rates or facts.traced != "full" or structured or _hosted_bytes(evidence.trace):
        return []
    products, _ = split_flops(facts)
    if products / spent <= PEAK * max(rates) * 1e6:
        return []
    told = f"{products / spent / 1e6:.4g} TFLOP/s of useful products, the fastest arithmetic reaches {max(rates):.4g}"
    return [Contradiction("arithmetic", told, TIME)]


def _launches(counted: Counted, evidence: Evidence) -> list[Contradiction]:
    if evidence.trace is None or not evidence.trace.launches or _hosted_bytes(evidence.trace):
        return []
    planned, found = evidence.trace.launch_count, []
    for source, run in evidence.profiled.items():
        if run.launches is None:
            continue
        # Fewer are a sample: the ladder extrapolates sums and lowers their confidence.
        if run.launches > planned:
            told = f"{source} saw {run.launches} launches of the candidate's kernels, its plan has {planned}"
            found.append(Contradiction("launches", told, _of(counted, source), source))
    return found


def _same_run(counted: Counted, evidence: Evidence) -> list[Contradiction]:
    found = []
    for source, run in evidence.profiled.items():
        for what in ("dtype", "precision", "shape"):
            seen, timed = getattr(run, what), getattr(evidence.timed, what)
            if seen and timed and seen != timed:
                told = f"{source} ran {seen}, the clock {timed}"
                found.append(Contradiction(what, told, _of(counted, source), source))
    return found


def _percentages(counted: Counted, evidence: Evidence) -> list[Contradiction]:
    low, high = PERCENT
    return [
        Contradiction("percentage", f"{value.value:.4g} percent, expected 0 to 100", (name,))
        for name, value in counted.items()
        if value.unit == "percent" and value.value is not None and not low <= value.value <= high
    ]


def _of(counted: Counted, source: str) -> tuple[str, ...]:
    return tuple(name for name, value in counted.items() if value.source == source)


_CHECKS: tuple[Callable[[Counted, Evidence], list[Contradiction]], ...] = (
    _compulsory,
    _times,
    _bandwidth,
    _arithmetic,
    _launches,
    _same_run,
    _percentages,
)
