"""Canonical metrics from what a ladder of profilers answered: arithmetic, aggregation, confidence, substitution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.records import MetricValue
from engine.settings import Metric, Spelling
from profilers.seam import KernelSample, coverage

SAMPLED = 0.8
"""Confidence left where fewer launches were profiled than a call makes; the rest are taken to be like them."""
LOWER_BOUND = 0.5
"""Left to a sum that ends at the launch limit, the number of launches being unknown."""
UNWEIGHTED = 0.5
"""Left to a mean over launches whose durations are unknown."""

DURATION = "duration_us"
"""Spelling of a sample's own duration, which is no counter."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one profiler said: its samples, or in `note` why there are none. `cut`: it stopped at its launch limit;
    `of`: launches of one call, where it counted them itself."""

    profiler: str
    samples: tuple[KernelSample, ...]
    note: str = ""
    cut: bool = False
    of: int | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """A value over one call, what weakens it, and the share of its confidence that is left."""

    value: float
    notes: tuple[str, ...] = ()
    kept: float = 1.0


class _Absent(Exception):
    """This answer has no value for the metric; the message says why."""


def metric_values(
    wanted: Sequence[str],
    vocabulary: Mapping[str, Metric],
    answers: Sequence[Answer],
    launches: int | None = None,
) -> tuple[MetricValue, ...]:
    """One value for each wanted metric, from the answer that gives it with the greatest declared confidence, of equals
    the first in ladder order.

    `launches`: launches of one call where known; a profiler that saw fewer has its sums extrapolated and noted.
    Confidence is the spelling's, less what partial data cost; 0 outside the declared range.
    """
    return tuple(_first_value(name, vocabulary[name], answers, launches) for name in wanted)


def left_for(
    profiler: str,
    wanted: Sequence[str],
    vocabulary: Mapping[str, Metric],
    answers: Sequence[Answer],
    launches: int | None = None,
) -> tuple[str, ...]:
    """The wanted metrics that no answer gives, or that `profiler` is declared to give with greater confidence."""

    def better(value: MetricValue) -> bool:
        spelled = vocabulary[value.metric].spellings
        if value.value is None or profiler not in spelled:
            return value.value is None
        return spelled[profiler].confidence > spelled[value.source].confidence

    values = metric_values(wanted, vocabulary, answers, launches)
    return tuple(value.metric for value in values if better(value))


def counters_of(wanted: Sequence[str], vocabulary: Mapping[str, Metric], profiler: str) -> tuple[str, ...]:
    """The raw counters, each once, that `profiler` must read for the wanted metrics."""
    spellings = (vocabulary[name].spellings for name in wanted)
    needed = (counter for spelled in spellings if profiler in spelled for counter in spelled[profiler].counters)
    return tuple(dict.fromkeys(needed))


def _first_value(name: str, metric: Metric, answers: Sequence[Answer], launches: int | None) -> MetricValue:
    refused: list[str] = []
    best: MetricValue | None = None
    for answer in answers:
        if answer.profiler not in metric.spellings or (
            best and metric.spellings[answer.profiler].confidence <= metric.spellings[best.source].confidence
        ):
            continue
        spelling = metric.spellings[answer.profiler]
        try:
            found = _aggregate(metric.aggregate, spelling, answer, launches)
        except _Absent as reason:
            refused.append(f"{answer.profiler}: {reason}")
            continue
        problem = _range_problem(found.value, metric)
        confidence = 0.0 if problem else spelling.confidence * found.kept
        notes = "; ".join(filter(None, (*refused, spelling.note, *found.notes, problem)))
        best = MetricValue(name, found.value, metric.unit, answer.profiler, confidence, notes)
    if best is not None:
        return best
    why = "; ".join(refused) or f"no profiler of this back-end spells it (it is known to {_names(metric)})"
    return MetricValue(name, None, metric.unit, "", 0.0, why)


def _names(metric: Metric) -> str:
    return ", ".join(sorted(metric.spellings)) or "none"


def compute(spelling: Spelling, sample: KernelSample) -> float | None:
    """The spelling's value for one launch, in the metric's unit; None where a counter is absent, not a number, or a
    divisor 0."""
    values = [_counter(name, sample) for name in spelling.counters]
    known = [value for value in values if value is not None and math.isfinite(value)]
    if len(known) < len(values):
        return None
    if spelling.over:
        dividend, divisor = known
        return dividend / divisor * spelling.scale if divisor != 0 else None
    return (min(known) if spelling.least else math.fsum(known)) * spelling.scale


def _counter(name: str, sample: KernelSample) -> float | None:
    if name in sample.counters:
        return sample.counters[name]
    return sample.duration_us if name == DURATION else None


def _aggregate(how: str, spelling: Spelling, answer: Answer, launches: int | None) -> _Found:
    if not answer.samples:
        raise _Absent(answer.note or "gave no samples")
    computed = [(sample, compute(spelling, sample)) for sample in answer.samples]
    given = [(sample, value) for sample, value in computed if value is not None]
    if not given:
        raise _Absent(_why_absent(spelling, answer.samples))
    whole = _sampled(answer, launches)
    if len(given) == len(computed):
        partial = _Found(0.0)
    else:
        said = f"{len(given)} of {len(computed)} launches have {' and '.join(spelling.counters)}"
        partial = _Found(0.0, (said,), len(given) / len(computed))
    values = [value for _, value in given]
    if how == "sum":
        if partial.notes:
            raise _Absent(partial.notes[0])
        if _stand_for_others(answer):
            whole_call = math.fsum(value * sample.launches for sample, value in given)
            return _Found(whole_call, *_covered(answer))
        return _sum(values, answer, launches if answer.of is None else answer.of, whole)
    weakened = [partial, _seen(len(answer.samples), whole), _Found(0.0, *_covered(answer))]
    if how == "time_mean":
        found = _time_mean(given)
        weakened.append(found)
    else:
        found = _Found({"max": max(values), "min": min(values), "last": values[-1]}[how])
    notes = tuple(note for part in weakened for note in part.notes)
    return _Found(found.value, notes, math.prod(part.kept for part in weakened))


def _why_absent(spelling: Spelling, samples: Sequence[KernelSample]) -> str:
    missing = [name for name in spelling.counters if all(_counter(name, sample) is None for sample in samples)]
    if missing:
        return f"no counter {', '.join(missing)}"
    return f"the divisor {spelling.over[1]} is 0" if spelling.over else "its counters are not numbers"


def _stand_for_others(answer: Answer) -> bool:
    """Whether its samples say themselves how many launches each speaks of."""
    return any(sample.launches != 1 for sample in answer.samples)


def _covered(answer: Answer) -> tuple[tuple[str, ...], float]:
    """A note and the confidence left, from samples that stand for other launches too."""
    said = coverage(answer.samples) if _stand_for_others(answer) else ""
    return ((said,), SAMPLED) if said else ((), 1.0)


def _sampled(answer: Answer, launches: int | None) -> int | None:
    """Launches of one call where fewer were profiled, else None. Samples without durations are no launches: such an
    answer speaks of all of them."""
    if _stand_for_others(answer):
        return None
    total = launches if answer.of is None else answer.of
    one_sample_a_launch = all(sample.duration_us is not None for sample in answer.samples)
    return total if total is not None and one_sample_a_launch and len(answer.samples) < total else None


def _seen(profiled: int, whole: int | None) -> _Found:
    return _Found(0.0) if whole is None else _Found(0.0, (f"from {profiled} of {whole} launches",), SAMPLED)


def _sum(values: Sequence[float], answer: Answer, launches: int | None, whole: int | None) -> _Found:
    total = math.fsum(values)
    if whole is not None:
        note = f"extrapolated from {len(values)} of {whole} launches"
        return _Found(total * whole / len(values), (note,), SAMPLED)
    if answer.cut and launches is None:
        return _Found(total, (f"a lower bound from the first {len(values)} launches",), LOWER_BOUND)
    return _Found(total)


def _time_mean(given: Sequence[tuple[KernelSample, float]]) -> _Found:
    weights = [None if sample.duration_us is None else sample.duration_us * sample.launches for sample, _ in given]
    known = [weight for weight in weights if weight is not None]
    if len(known) == len(weights) and math.fsum(known) > 0:
        products = [weight * value for weight, (_, value) in zip(known, given, strict=True)]
        return _Found(math.fsum(products) / math.fsum(known))
    mean = math.fsum(value for _, value in given) / len(given)
    return _Found(mean, ("unweighted: no durations",), UNWEIGHTED) if len(given) > 1 else _Found(mean)


def _range_problem(value: float, metric: Metric) -> str:
    low = -math.inf if metric.low is None else metric.low
    high = math.inf if metric.high is None else metric.high
    if low <= value <= high:
        return ""
    return f"{value:g} {metric.unit} lies outside {low:g} to {high:g}: not to be relied on"
