"""Canonical metrics from what a ladder of profilers answered: aggregation, scale, range check, substitution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.records import MetricValue
from engine.settings import Metric, Spelling
from profilers.seam import KernelSample

SUBSTITUTE_CONFIDENCE = 0.5
"""Confidence lost with each rung that a metric falls below the first profiler that spells it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one profiler said: its samples, or in `note` why there are none. `cut`: it stopped at its launch limit."""

    profiler: str
    samples: tuple[KernelSample, ...]
    note: str = ""
    cut: bool = False


def metric_values(
    wanted: Sequence[str],
    vocabulary: Mapping[str, Metric],
    answers: Sequence[Answer],
    launches: int | None = None,
) -> tuple[MetricValue, ...]:
    """One value for each wanted metric, from the first answer, in ladder order, that can give it.

    `launches`: launches of one call where known; a profiler that saw fewer has its sums extrapolated and noted.
    """
    return tuple(_first_value(name, vocabulary[name], answers, launches) for name in wanted)


def counters_of(wanted: Sequence[str], vocabulary: Mapping[str, Metric], profiler: str) -> tuple[str, ...]:
    """The raw counters, each once, that `profiler` must read for the wanted metrics."""
    spellings = (vocabulary[name].spellings for name in wanted)
    return tuple(dict.fromkeys(spelled[profiler].name for spelled in spellings if profiler in spelled))


def _first_value(name: str, metric: Metric, answers: Sequence[Answer], launches: int | None) -> MetricValue:
    refused: list[str] = []
    spelling_answers = [answer for answer in answers if answer.profiler in metric.spellings]
    for rung, answer in enumerate(spelling_answers):
        spelling = metric.spellings[answer.profiler]
        value, note = _aggregate(metric.aggregate, spelling, answer, launches)
        if value is None:
            refused.append(f"{answer.profiler}: {note}")
            continue
        confidence = SUBSTITUTE_CONFIDENCE**rung * (SUBSTITUTE_CONFIDENCE if note else 1.0)
        problem = _range_problem(value, metric)
        notes = "; ".join([*refused, *filter(None, (note, problem))])
        return MetricValue(name, value, metric.unit, answer.profiler, 0.0 if problem else confidence, notes)
    why = "; ".join(refused) or f"no profiler of this back-end spells it (it is known to {_names(metric)})"
    return MetricValue(name, None, metric.unit, "", 0.0, why)


def _names(metric: Metric) -> str:
    return ", ".join(sorted(metric.spellings)) or "none"


def _aggregate(how: str, spelling: Spelling, answer: Answer, launches: int | None) -> tuple[float | None, str]:
    """The value over one call and a note on what weakens it; None with the reason when there is no value."""
    if not answer.samples:
        return None, answer.note or "gave no samples"
    given = [(sample, sample.counters[spelling.name]) for sample in answer.samples if spelling.name in sample.counters]
    if not given:
        return None, f"no counter {spelling.name}"
    partial = f"{len(given)} of {len(answer.samples)} launches have {spelling.name}" if _partial(given, answer) else ""
    values = [value for _, value in given]
    if how == "sum":
        return (None, partial) if partial else _sum(values, spelling, answer, launches)
    if how == "time_mean":
        mean, note = _time_mean(given)
        return mean * spelling.scale, "; ".join(filter(None, (partial, note)))
    picked = {"max": max(values), "min": min(values), "last": values[-1]}[how]
    return picked * spelling.scale, partial


def _partial(given: Sequence[tuple[KernelSample, float]], answer: Answer) -> bool:
    return len(given) < len(answer.samples)


def _sum(values: Sequence[float], spelling: Spelling, answer: Answer, launches: int | None) -> tuple[float | None, str]:
    total = math.fsum(values) * spelling.scale
    one_sample_a_launch = all(sample.duration_us is not None for sample in answer.samples)
    if launches is not None and one_sample_a_launch and len(values) < launches:
        return total * launches / len(values), f"extrapolated from {len(values)} of {launches} launches"
    return total, f"a lower bound from the first {len(values)} launches" if answer.cut and launches is None else ""


def _time_mean(given: Sequence[tuple[KernelSample, float]]) -> tuple[float, str]:
    weights = [sample.duration_us for sample, _ in given]
    known = [weight for weight in weights if weight is not None]
    if len(known) == len(weights) and math.fsum(known) > 0:
        products = [weight * value for weight, (_, value) in zip(known, given, strict=True)]
        return math.fsum(products) / math.fsum(known), ""
    mean = math.fsum(value for _, value in given) / len(given)
    return mean, "unweighted: no durations" if len(given) > 1 else ""


def _range_problem(value: float, metric: Metric) -> str:
    low = -math.inf if metric.low is None else metric.low
    high = math.inf if metric.high is None else metric.high
    if low <= value <= high:
        return ""
    return f"{value:g} {metric.unit} lies outside {low:g} to {high:g}: not to be relied on"
