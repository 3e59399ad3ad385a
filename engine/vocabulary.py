"""The names that rules may use: facts of the task, scores of the best kernel, named thresholds, metrics."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from enum import StrEnum

from engine.records import Facts
from engine.settings import Metric

THRESHOLD_PREFIX = "thresholds."


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


def traced(metrics: Mapping[str, Metric]) -> frozenset[str]:
    """Metrics that every launch record gives, so that rules may use them without a profile."""
    return frozenset(name for name, metric in metrics.items() if "trace" in metric.spellings)
