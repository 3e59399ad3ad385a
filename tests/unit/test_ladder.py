from __future__ import annotations

import pytest

from engine.backends.ladder import Answer, compute, counters_of, left_for, metric_values
from engine.settings import Metric, Spelling
from profilers.seam import KernelSample


def metric(aggregate="sum", low=None, high=None, **spellings):
    named = {
        tool: spelled if isinstance(spelled, Spelling) else Spelling(spelled) for tool, spelled in spellings.items()
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
    (got,) = metric_values(["m"], {"m": metric("sum", ncu=Spelling("a", scale=0.001))}, [NCU])
    assert got.value == pytest.approx(0.14)


def test_a_missing_counter_falls_to_the_next_profiler_and_says_so():
    vocabulary = {"m": metric("max", ncu="ghost", static="regs")}
    answers = [NCU, Answer("static", (launch(None, regs=64.0),))]
    (got,) = metric_values(["m"], vocabulary, answers)
    assert (got.value, got.source, got.confidence) == (64.0, "static", 1.0)
    assert "ncu: no counter ghost" in got.note


def test_the_greatest_declared_confidence_wins_and_only_a_greater_one_is_asked_for():
    half = Spelling("regs", confidence=0.5, note="an estimate")
    vocabulary = {"m": metric("max", static=half, ncu="a"), "n": metric("max", static="regs", ncu="a")}
    static = Answer("static", (launch(None, regs=64.0),))
    assert left_for("ncu", ["m", "n"], vocabulary, [static]) == ("m",)
    assert left_for("trace", ["m", "n"], vocabulary, [static]) == ()
    estimated, exact = metric_values(["m", "n"], vocabulary, [static, NCU])
    assert (estimated.value, estimated.source, estimated.confidence, estimated.note) == (90.0, "ncu", 1.0, "")
    assert (exact.value, exact.source) == (64.0, "static")
    refused = Answer("ncu", (), "forbidden")
    (left,) = metric_values(["m"], vocabulary, [static, refused])
    assert (left.source, left.confidence) == ("static", 0.5)


def test_a_substitute_has_the_confidence_and_the_note_that_it_declares():
    algebra = Spelling(over=("bytes_us", "time_us"), scale=100, confidence=0.3, note="a lower bound")
    answers = [Answer("ncu", (), "forbidden"), Answer("algebra", (launch(None, bytes_us=2.0, time_us=8.0),))]
    (got,) = metric_values(["m"], {"m": metric("time_mean", ncu="a", algebra=algebra)}, answers)
    assert (got.value, got.source, got.confidence) == (25.0, "algebra", 0.3)
    assert got.note == "ncu: forbidden; a lower bound"


@pytest.mark.parametrize(
    ("spelling", "counters", "value"),
    [
        pytest.param(Spelling("a", scale=2.0), {"a": 3.0}, 6.0, id="name"),
        pytest.param(Spelling(plus=("a", "b"), scale=0.5), {"a": 3.0, "b": 5.0}, 4.0, id="plus"),
        pytest.param(Spelling(over=("a", "b"), scale=100), {"a": 3.0, "b": 4.0}, 75.0, id="over"),
        pytest.param(Spelling(over=("a", "b")), {"a": 3.0, "b": 0.0}, None, id="over-nothing"),
        pytest.param(Spelling(least=("a", "b", "c")), {"a": 3.0, "b": 2.0, "c": 8.0}, 2.0, id="least"),
        pytest.param(Spelling(plus=("a", "b")), {"a": 3.0}, None, id="part-missing"),
        pytest.param(Spelling("a"), {"a": float("nan")}, None, id="not-a-number"),
        pytest.param(Spelling(plus=("a", "b")), {"a": 3.0, "b": float("inf")}, None, id="infinite"),
        pytest.param(Spelling("duration_us"), {}, 10.0, id="own-duration"),
    ],
)
def test_arithmetic_of_one_launch(spelling, counters, value):
    assert compute(spelling, launch(10.0, **counters)) == value


def test_arithmetic_comes_before_aggregation():
    answers = [Answer("ncu", (launch(30.0, a=1.0, b=2.0), launch(10.0, a=9.0, b=10.0)))]
    vocabulary = {"m": metric("time_mean", ncu=Spelling(over=("a", "b"), scale=100))}
    assert metric_values(["m"], vocabulary, answers)[0].value == pytest.approx((30 * 50 + 10 * 90) / 40)


@pytest.mark.parametrize(
    ("spelling", "counters", "said"),
    [
        (Spelling(over=("a", "b")), {"a": 1.0, "b": 0.0}, "ncu: the divisor b is 0"),
        (Spelling(plus=("a", "ghost")), {"a": 1.0}, "ncu: no counter ghost"),
        (Spelling("a"), {"a": float("nan")}, "ncu: its counters are not numbers"),
    ],
)
def test_a_value_that_cannot_be_made_says_why(spelling, counters, said):
    (got,) = metric_values(["m"], {"m": metric("max", ncu=spelling)}, [Answer("ncu", (launch(1.0, **counters),))])
    assert (got.value, got.note) == (None, said)


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
    assert (total.value, total.confidence, total.note) == (700.0, 0.8, "extrapolated from 2 of 10 launches")
    assert (highest.value, highest.confidence, highest.note) == (90.0, 0.8, "from 2 of 10 launches")


def test_launches_that_a_profiler_counted_itself_beat_the_launch_record():
    (got,) = metric_values(["m"], {"m": metric("sum", ncu="a")}, [Answer("ncu", NCU.samples, cut=True, of=4)], 10)
    assert (got.value, got.note) == (280.0, "extrapolated from 2 of 4 launches")


def test_an_answer_without_durations_speaks_of_all_launches():
    answers = [Answer("trace", (launch(None, launches=3.0),))]
    (got,) = metric_values(["m"], {"m": metric("sum", trace="launches")}, answers, launches=3)
    assert (got.value, got.confidence) == (3.0, 1.0)


def test_what_weakens_a_value_multiplies():
    weak = Spelling("a", confidence=0.4, note="a substitute")
    answers = [Answer("ncu", (launch(None, a=1.0), launch(None), launch(None, a=3.0), launch(None, a=2.0)))]
    (got,) = metric_values(["m"], {"m": metric("time_mean", ncu=weak)}, answers)
    assert got.value == pytest.approx(2.0)
    assert got.confidence == pytest.approx(0.4 * 0.75 * 0.5)
    assert got.note == "a substitute; 3 of 4 launches have a; unweighted: no durations"


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
    parts = Spelling(plus=("a", "b"))
    vocabulary = {"m": metric(ncu="a"), "n": metric(ncu="a", static="s"), "o": metric(ncu=parts), "p": metric(ncu="c")}
    assert counters_of(["m", "n", "o"], vocabulary, "ncu") == ("a", "b")
    assert counters_of(["m", "n", "o"], vocabulary, "static") == ("s",)


SHARES = Answer(
    "ncu",
    (KernelSample("a", 10.0, {"a": 4.0}, launches=3), KernelSample("b", 30.0, {"a": 8.0}, launches=1)),
)


@pytest.mark.parametrize(
    ("aggregate", "value"),
    [
        pytest.param("sum", 20.0, id="each-value-for-its-launches"),
        pytest.param("time_mean", (3 * 10 * 4 + 30 * 8) / 60, id="each-weighted-by-all-its-time"),
        pytest.param("max", 8.0, id="max"),
    ],
)
def test_a_sample_that_stands_for_other_launches_counts_for_them(aggregate, value):
    (got,) = metric_values(["m"], {"m": metric(aggregate, ncu="a")}, [SHARES], 4)
    assert got.value == pytest.approx(value)
    assert (got.confidence, got.note) == (0.8, "2 of 4 launches were measured, of 2 kernels")


def test_averages_over_all_launches_lose_no_confidence():
    averaged = Answer("trace", (KernelSample("a", 10.0, {}, launches=3, seen=3),))
    (got,) = metric_values(["m"], {"m": metric("sum", trace="duration_us")}, [averaged], 3)
    assert (got.value, got.confidence, got.note) == (30.0, 1.0, "")


def test_of_two_answers_of_one_profiler_the_second_gives_what_the_first_has_not():
    record = Answer("trace", (KernelSample("", None, {"launches": 3.0}),))
    timed = Answer("trace", (KernelSample("a", 10.0, {}, launches=3, seen=3),))
    vocabulary = {"n": metric("sum", trace="launches"), "t": metric("sum", trace="duration_us")}
    count, time = metric_values(["n", "t"], vocabulary, [record, timed], 3)
    assert (count.value, time.value) == (3.0, 30.0)
