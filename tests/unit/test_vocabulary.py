"""Names that rules may use."""

from __future__ import annotations

import pytest

from engine.settings import Metric, Spelling
from engine.vocabulary import FACTS, SCORES, TEXT_FACTS, OperandKind, operands, traced


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("launches", OperandKind.METRIC),
        ("thresholds.floor", OperandKind.THRESHOLD),
        ("kernel_size", OperandKind.FACT),
        ("dtype", OperandKind.FACT),
        ("stage_gain", OperandKind.SCORE),
        ("headroom", OperandKind.SCORE),
        ("intensity", OperandKind.FACT),
    ],
)
def test_kinds(name, kind):
    assert operands(("launches", "headroom", "intensity"), ("floor",))[name] is kind


def test_only_scalar_facts():
    assert {"costs", "note", "traced"} & FACTS == set()
    assert sorted(TEXT_FACTS) == ["dtype"]
    assert not FACTS & SCORES


def test_plain_threshold_names_are_unknown():
    assert "floor" not in operands((), ("floor",))


def test_traced_are_those_spelled_by_the_trace():
    def metric(tool):
        return Metric("u", "min", "m", None, None, "sum", {tool: Spelling("x")})

    assert traced({"a": metric("trace"), "b": metric("static")}) == {"a"}
