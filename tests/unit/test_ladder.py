from __future__ import annotations

import pytest

from engine.backends.ladder import Answer, counters_of, metric_values
from engine.settings import Metric, Spelling
from profilers.seam import KernelSample


def metric(aggregate="sum", low=None, high=None, **spellings):
    named = {
        tool: Spelling(*spelled) if isinstance(spelled, tuple) else Spelling(spelled)
        for tool, spelled in spellings.items()
    }
    return Metric("%", "max", "A metric.", low, high, aggregate, named)


def launch(duration, **counters):
    return KernelSample("k", duration, counters)


NCU = Answer("ncu", (launch(10.0, a=50.0, b=1.0), launch(30.0, a=90.0, b=2.0)))


@pytest.mark.parametrize(
    ("aggregate", "value"),
    [("time_mean", 80.0), ("sum", 140.0), ("max", 90.0), ("min", 50.0), ("last", 90.0)],
)
def test_aggregation_over_the_kernels_of_a_call(aggregate, value):
    (got,) = metric_values(["m"], {"m": metric(aggregate, ncu="a")}, [NCU])
    assert (got.value, got.source, got.confidence, got.note) == (value, "ncu", 1.0, "")


def test_scale_turns_the_counter_into_our_unit():
    (got,) = metric_values(["m"], {"m": metric("sum", ncu=("a", 0.001))}, [NCU])
    assert got.value == pytest.approx(0.14)


def test_a_missing_counter_falls_to_the_next_profiler_and_says_so():
    vocabulary = {"m": metric("max", ncu="ghost", static="regs")}
    answers = [NCU, Answer("static", (launch(None, regs=64.0),))]
    (got,) = metric_values(["m"], vocabulary, answers)
    assert (got.value, got.source, got.confidence) == (64.0, "static", 0.5)
    assert "ncu: no counter ghost" in got.note


def test_the_declared_order_of_profilers_decides():
    vocabulary = {"m": metric("max", ncu="a", static="regs")}
    static = Answer("static", (launch(None, regs=64.0),))
    assert metric_values(["m"], vocabulary, [static, NCU])[0].source == "static"


def test_an_unavailable_tool_leaves_its_reason_on_each_metric():
    vocabulary = {"m": metric("max", ncu="a"), "n": metric("max", ncu="b", trace="launches")}
    answers = [Answer("ncu", (), "not on PATH"), Answer("trace", (launch(None, launches=3.0),))]
    first, second = metric_values(["m", "n"], vocabulary, answers)
    assert (first.value, first.source, first.confidence, first.note) == (None, "", 0.0, "ncu: not on PATH")
    assert (second.value, second.source, second.note) == (3.0, "trace", "ncu: not on PATH")


def test_a_metric_that_no_profiler_here_spells():
    (got,) = metric_values(["m"], {"m": metric("max", msprof="x")}, [NCU])
    assert got.value is None
    assert "known to msprof" in got.note


@pytest.mark.parametrize(("value", "confidence"), [(100.0, 1.0), (101.0, 0.0), (-1.0, 0.0)])
def test_values_outside_the_declared_range_are_kept_but_not_trusted(value, confidence):
    answers = [Answer("ncu", (launch(1.0, a=value),))]
    (got,) = metric_values(["m"], {"m": metric("max", 0.0, 100.0, ncu="a")}, answers)
    assert (got.value, got.confidence) == (value, confidence)
    assert ("outside 0 to 100" in got.note) is (confidence == 0.0)


def test_a_sum_over_launches_that_partly_lack_the_counter_is_unknown():
    answers = [Answer("ncu", (launch(1.0, a=5.0), launch(1.0)))]
    (got,) = metric_values(["m"], {"m": metric("sum", ncu="a")}, answers)
    assert got.value is None
    assert "1 of 2 launches" in got.note


def test_a_mean_over_launches_that_partly_have_the_counter_is_weakened():
    answers = [Answer("ncu", (launch(1.0, a=5.0), launch(1.0)))]
    (got,) = metric_values(["m"], {"m": metric("time_mean", ncu="a")}, answers)
    assert (got.value, got.confidence) == (5.0, 0.5)


def test_a_bounded_number_of_launches_is_extrapolated_for_sums():
    vocabulary = {"m": metric("sum", ncu="a"), "n": metric("max", ncu="a")}
    total, highest = metric_values(["m", "n"], vocabulary, [NCU], launches=10)
    assert (total.value, total.confidence) == (700.0, 0.5)
    assert "2 of 10 launches" in total.note
    assert (highest.value, highest.confidence) == (90.0, 1.0)


@pytest.mark.parametrize(("launches", "note"), [(None, "a lower bound from the first 2 launches"), (2, "")])
def test_a_sum_cut_at_the_launch_limit_is_a_lower_bound(launches, note):
    cut = Answer("ncu", NCU.samples, cut=True)
    (got,) = metric_values(["m"], {"m": metric("sum", ncu="a")}, [cut], launches)
    assert (got.value, got.note, got.confidence) == (140.0, note, 0.5 if note else 1.0)


def test_a_mean_without_durations_is_unweighted_and_noted():
    answers = [Answer("ncu", (launch(None, a=50.0), launch(None, a=90.0)))]
    (got,) = metric_values(["m"], {"m": metric("time_mean", ncu="a")}, answers)
    assert (got.value, got.confidence, got.note) == (70.0, 0.5, "unweighted: no durations")


def test_only_the_counters_that_are_wanted_are_read_each_once():
    vocabulary = {"m": metric(ncu="a"), "n": metric(ncu="a", static="s"), "o": metric(ncu="b"), "p": metric(ncu="c")}
    assert counters_of(["m", "n", "o"], vocabulary, "ncu") == ("a", "b")
    assert counters_of(["m", "n", "o"], vocabulary, "static") == ("s",)
