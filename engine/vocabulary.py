"""The names that rules may use: facts of the task, scores of the best kernel, named thresholds, metrics."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from enum import StrEnum

from engine.records import Facts, MetricValue
from engine.settings import Metric, RawMetric, Spelling

THRESHOLD_PREFIX = "thresholds."
RAW_PREFIX = "raw."


class OperandKind(StrEnum):
    """Where a rule's operand comes from."""

    FACT = "fact"
    SCORE = "score"
    THRESHOLD = "threshold"
    METRIC = "metric"


_NOT_OPERANDS = ("costs", "note", "traced")
_FACT_TYPES = typing.get_type_hints(Facts)

FACTS = frozenset(field.name for field in dataclasses.fields(Facts) if field.name not in _NOT_OPERANDS)
"""Scalar fields of `records.Facts`, except the remarks on how they were found."""

TEXT_FACTS = frozenset(name for name in FACTS if _FACT_TYPES[name] is str)
"""Facts that are texts; every other operand is a number."""

SCORES = frozenset({"speedup", "speedup_fastest", "headroom", "stage_gain", "failures"})
"""speedup: eager time over the best kernel's; speedup_fastest: over the fastest baseline; headroom: the best kernel's
time over the floor; stage_gain and failures: of the stage that just ended, so only exit rules know them."""


def operands(metrics: Iterable[str], thresholds: Iterable[str]) -> Mapping[str, OperandKind]:
    """Every name a rule may use. A metric that is also a fact or a score (headroom, intensity) counts as the latter,
    because that value needs no profiler."""
    return {
        **dict.fromkeys(metrics, OperandKind.METRIC),
        **{f"{THRESHOLD_PREFIX}{name}": OperandKind.THRESHOLD for name in thresholds},
        **dict.fromkeys(sorted(FACTS), OperandKind.FACT),
        **dict.fromkeys(sorted(SCORES), OperandKind.SCORE),
    }


LAUNCH_RECORD = frozenset({"launches", "launches_per_timestep", "grid_programs"})
"""Metrics that the launch record gives without a profile; `kernel.trace_metrics` reads them."""


def traced(metrics: Mapping[str, Metric]) -> frozenset[str]:
    """Metrics that every launch record gives, so that rules may use them though their stage does not list them."""
    return LAUNCH_RECORD & frozenset(metrics)


def with_raw(metrics: Mapping[str, Metric], raw: Mapping[str, RawMetric]) -> dict[str, Metric]:
    """The canonical metrics and, as raw.<alias>, each raw counter."""
    return {**metrics, **{f"{RAW_PREFIX}{alias}": raw_metric(counter) for alias, counter in raw.items()}}


def raw_metric(raw: RawMetric) -> Metric:
    """A raw counter as a metric without direction, range or meaning."""
    named = {"ncu": raw.ncu, "cupti": raw.cupti or raw.ncu, "msprof": raw.msprof, "msprof_op": raw.msprof_op}
    spellings = {tool: Spelling(name) for tool, name in named.items() if name is not None}
    counters = ", ".join(dict.fromkeys(name for name in named.values() if name is not None))
    meaning = f"the raw counter {counters}, passed through as the tool gives it"
    return Metric(raw.unit, "none", meaning, None, None, raw.aggregate, spellings)


def trusted(value: MetricValue, least: float) -> MetricValue:
    """`value` as rules and prompts may use it: missing, with the reason in its note, where its confidence is below
    `least` or other evidence contradicts it."""
    if value.value is None or (value.confidence >= least and not value.contradiction):
        return value
    why = value.contradiction or f"confidence {value.confidence:.2g} is below this stage's min_confidence {least:g}"
    return dataclasses.replace(value, value=None, note="; ".join(filter(None, (f"not used: {why}", value.note))))


def is_substitute(metric: Metric, value: MetricValue) -> bool:
    """Whether the value stands for the metric without measuring it."""
    return value.source in metric.spellings and metric.spellings[value.source].confidence < 1
