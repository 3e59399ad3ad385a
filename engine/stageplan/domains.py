"""Which values each operand of a rule can take: what facts and scores are, what conf/metric declares. Pure."""

from __future__ import annotations

import math

from engine.kernel import SIZES, fact_operands
from engine.records import Facts
from engine.settings import Settings, Stage
from engine.stageplan.ranges import ANY_TEXT, Domain, Span, Words, number, whole_from
from engine.vocabulary import FACTS, SCORES, TEXT_FACTS, THRESHOLD_PREFIX

FROM_ONE = frozenset({"kernel_size", "time_steps"})
"""Facts that, where they are known, count at least one."""

RATIOS = SCORES - {"failures"}


def domains(settings: Settings, stage: Stage | None) -> dict[str, Domain]:
    """Every operand's domain; `stage`: the one whose draft count bounds `failures`."""
    found: dict[str, Domain] = {}
    for name, metric in settings.metrics.items():
        low = -math.inf if metric.low is None else float(metric.low)
        high = math.inf if metric.high is None else float(metric.high)
        found[name] = Span(low, high)
    found |= {f"{THRESHOLD_PREFIX}{name}": number(value) for name, value in settings.thresholds.items()}
    found |= {name: _fact(name) for name in FACTS}
    found |= {name: Span(0.0, low_open=True) for name in RATIOS}
    most = math.inf if stage is None else float(stage.budget.candidates)
    return {**found, "failures": Span(0.0, most, whole=True)}


def _fact(name: str) -> Domain:
    if name in TEXT_FACTS:
        return ANY_TEXT
    if name in SIZES:
        return Span(0.0)
    return whole_from(1 if name in FROM_ONE else 0)


def known_facts(facts: Facts) -> tuple[dict[str, Domain], frozenset[str]]:
    """What is known of one operator, each fact a single value, and the names of the facts that are not."""
    values = fact_operands(facts)
    found: dict[str, Domain] = {}
    for name, value in values.items():
        if isinstance(value, str):
            found[name] = Words(frozenset({value}))
        elif value is not None:
            found[name] = number(float(value))
    return found, frozenset(values) - frozenset(found)
