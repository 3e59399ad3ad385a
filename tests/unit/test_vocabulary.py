"""Names that rules may use."""

from __future__ import annotations

import pytest

from engine.kernel import trace_metrics
from engine.records import Facts, Launch, MetricValue, Trace
from engine.rules import evaluate, parse
from engine.settings import Metric, RawMetric, Spelling
from engine.vocabulary import FACTS, SCORES, TEXT_FACTS, OperandKind, is_substitute, operands, traced, trusted, with_raw


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


def metric(**spellings):
    return Metric("u", "min", "m", None, None, "sum", spellings)


def test_rules_know_without_a_profile_what_the_launch_record_gives():
    facts = Facts(1, 0, 0, 0, 0, 1, 0, 0, 0, None, 8, 2e9, 8e9, 0.25, "float32", "full")
    given = trace_metrics(Trace((Launch("k", (2, 1, 1), 4, 0.0, 4, 2, has_dot=False),), ()), facts)
    assert traced(dict.fromkeys([*given, "dram_pct"], metric())) == set(given)


@pytest.mark.parametrize(
    ("confidence", "contradiction", "least", "used", "said"),
    [
        pytest.param(0.3, "", 0.3, True, "", id="enough"),
        pytest.param(0.3, "", 0.5, False, "confidence 0.3 is below this stage's min_confidence 0.5", id="too-little"),
        pytest.param(1.0, "more bytes than time", 0.0, False, "more bytes than time", id="contradicted"),
        pytest.param(0.0, "", 0.0, True, "", id="anything-goes"),
    ],
)
def test_a_value_of_too_little_confidence_is_missing_and_says_so(confidence, contradiction, least, used, said):
    value = MetricValue("m", 4.0, "u", "algebra", confidence, "as found", contradiction)
    got = trusted(value, least)
    assert (got.value, got.confidence) == (4.0 if used else None, confidence)
    assert said in got.note and got.note.endswith("as found")


def test_raw_counters_are_metrics_without_meaning():
    raw = {"l2": RawMetric("bytes", "sum", ncu="a.sum"), "npu": RawMetric("us", "max", msprof="b", cupti="c.sum")}
    found = with_raw({"m": metric()}, raw)
    assert list(found) == ["m", "raw.l2", "raw.npu"]
    assert {tool: spelling.name for tool, spelling in found["raw.l2"].spellings.items()} == {
        "ncu": "a.sum",
        "cupti": "a.sum",
    }
    assert {tool: spelling.name for tool, spelling in found["raw.npu"].spellings.items()} == {
        "cupti": "c.sum",
        "msprof": "b",
    }
    assert found["raw.l2"].better == "none" and "a.sum" in found["raw.l2"].meaning


def test_raw_counters_can_be_read_by_rules():
    known = operands(with_raw({}, {"l2": RawMetric("bytes", "sum", ncu="a")}), ())
    assert evaluate(parse("raw.l2 > 5", known), {"raw.l2": 6.0}) is True


def test_a_substitute_is_a_spelling_of_less_than_full_confidence():
    found = metric(ncu=Spelling("a"), algebra=Spelling("b", confidence=0.3, note="n"))
    assert is_substitute(found, MetricValue("m", 1.0, "u", "algebra", 0.3))
    assert not is_substitute(found, MetricValue("m", 1.0, "u", "ncu", 0.1))
