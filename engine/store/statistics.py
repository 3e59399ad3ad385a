"""Intervals of figures over tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

RESAMPLES = 10_000
SEED = 0


def known_sum(values: Iterable[float | None]) -> float | None:
    """None where any value is unknown; 0 of nothing."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known, 0.0) if len(known) == len(found) else None


def geometric_mean(values: Sequence[float]) -> float | None:
    """None of nothing; values are above 0."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else None


def bootstrap_geomean(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % percentile interval of the geometric mean over resampled tasks (Efron and Tibshirani 1993, chapter 13); the
    seed is fixed. None below two values: one task tells nothing of the spread over tasks."""
    if len(values) < 2:
        return None
    import numpy

    logs = numpy.log(numpy.asarray(values, dtype=float))
    draws = numpy.random.default_rng(SEED).integers(0, len(logs), size=(RESAMPLES, len(logs)))
    low, high = numpy.percentile(logs[draws].mean(axis=1), (2.5, 97.5))
    return math.exp(low), math.exp(high)
