"""One row per kind of score: kinds are never ranked or averaged together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from engine.report.rows import OperatorRow

FAST_P = (0.0, 1.0, 1.5, 2.0)
"""fast_p: share of all operators that have a correct kernel and a speed-up over eager above p (KernelBench)."""


@dataclass(frozen=True, slots=True)
class KindTotals:
    """Of all operators whose best kernel has a score of this kind."""

    kind: str
    solved: int
    geomean: float | None
    """Of the speed-ups over eager; None where no kernel was timed against it."""
    median: float | None
    fast: dict[str, float]
    """fast_p by p, over all operators of the run, those without a kernel included."""


def by_kind(operators: Sequence[OperatorRow]) -> tuple[KindTotals, ...]:
    kinds = sorted({row.score_kind for row in operators if row.score_kind is not None})
    return tuple(_totals(kind, operators) for kind in kinds)


def _totals(kind: str, operators: Sequence[OperatorRow]) -> KindTotals:
    mine = [row for row in operators if row.score_kind == kind]
    values = [row.vs_eager.value for row in mine if row.vs_eager is not None]
    return KindTotals(
        kind=kind,
        solved=sum(row.solved for row in mine),
        geomean=geomean(values),
        median=statistics.median(values) if values else None,
        fast={f"{p:g}": sum(value > p for value in values) / len(operators) for p in FAST_P},
    )


def geomean(values: Sequence[float]) -> float | None:
    """None of nothing, or where a value is not positive."""
    if not values or min(values) <= 0:
        return None
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def spent_usd(operators: Sequence[OperatorRow]) -> float | None:
    """None where at least one call had no known price."""
    known = [row.cost_usd for row in operators if row.cost_usd is not None]
    return math.fsum(known) if len(known) == len(operators) else None
