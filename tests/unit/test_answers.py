from __future__ import annotations

from dataclasses import replace

import pytest

from engine.backends.answers import OF_MEASURED_TIME, OWN_COUNTERS, algebra_answer, static_answer, trace_answer
from engine.records import Facts, Launch, Trace
from profilers.seam import KernelSample

FACTS = Facts(1, 0, 0, 0, 0, 1, 0, 0, 0, None, None, 2e9, 8e9, 0.25, "float32", "full")


def launch(kernel="k", grid=(4, 2, 1), count=1, **compiled):
    return Launch(kernel, grid, count, 0.0, 4, 3, False, **compiled)


def test_the_launch_record_counts_launches_and_programs():
    trace = Trace((launch(count=3), launch("other", (10, 1, 1))), ())
    (sample,) = trace_answer(trace, replace(FACTS, time_steps=8)).samples
    assert sample.counters == {"launches": 4.0, "grid_programs": 34.0, "launches_per_timestep": 0.5}
    (sample,) = trace_answer(trace, FACTS).samples
    assert "launches_per_timestep" not in sample.counters


def test_compiled_resources_come_a_kernel_each_and_unknown_ones_are_left_out():
    trace = Trace((launch(registers=40, spill_bytes=0), launch("other", registers=200, shared_bytes=512)), ())
    first, second = static_answer(trace).samples
    assert (first.kernel, first.counters) == ("k", {"registers": 40.0, "spill_bytes": 0.0})
    assert (second.kernel, second.counters) == ("other", {"registers": 200.0, "shared_bytes": 512.0})


@pytest.mark.parametrize("answer", [trace_answer(None, FACTS), static_answer(None), static_answer(Trace((), ()))])
def test_without_a_record_there_are_no_samples_but_a_reason(answer):
    assert answer.samples == ()
    assert "record" in answer.note


def test_headroom_and_the_longest_kernels_share():
    kernels = [KernelSample("a", 30.0, {}), KernelSample("b", 50.0, {}), KernelSample("a", 20.0, {})]
    (sample,) = algebra_answer(FACTS, 2000.0, 5000.0, kernels).samples
    assert sample.counters == {
        "intensity": 0.25,
        "compulsory_bytes": 8e9,
        "floor_us": 2000.0,
        "headroom": 2.5,
        "time_share": 50.0,
    }


@pytest.mark.parametrize(
    ("floor", "time", "kernels", "known"),
    [
        pytest.param(None, 5.0, (), {"intensity", "compulsory_bytes"}, id="no-floor"),
        pytest.param(2.0, None, (), {"intensity", "compulsory_bytes", "floor_us"}, id="no-time"),
        pytest.param(None, None, (KernelSample("a", None, {}),), {"intensity", "compulsory_bytes"}, id="no-durations"),
    ],
)
def test_what_is_unknown_is_left_out(floor, time, kernels, known):
    (sample,) = algebra_answer(FACTS, floor, time, kernels).samples
    assert set(sample.counters) == known


PARTS = {"bytes": 2000.0, "products": 700.0, "other": 30.0}


def test_a_measured_time_and_the_floors_parts_stand_for_counters():
    (sample,) = algebra_answer(FACTS, 2000.0, 5000.0, (), PARTS).samples
    timed = {name: sample.counters[name] for name in ("time_us", "compulsory_us", "arithmetic_us")}
    assert timed == {"time_us": 5000.0, "compulsory_us": 2000.0, "arithmetic_us": 700.0}


def test_without_a_measured_time_nothing_stands_for_counters():
    for answer in (algebra_answer(FACTS, 2000.0, None, (), PARTS), algebra_answer(FACTS, 2000.0, 5000.0)):
        assert not OF_MEASURED_TIME & set(answer.samples[0].counters)


def test_bytes_of_a_small_variant_are_not_those_of_the_call():
    (sample,) = algebra_answer(replace(FACTS, traced="small"), None, None).samples
    assert "compulsory_bytes" not in sample.counters


def test_the_launch_record_gives_bytes_and_the_reach_of_the_grid():
    small = replace(launch(count=3), bytes=100.0)
    large = replace(launch(grid=(500, 2, 1)), bytes=1000.0)
    (sample,) = trace_answer(Trace((small, large), ()), FACTS, sm_count=80.0).samples
    assert sample.counters["argument_bytes"] == 1300.0
    assert sample.counters["grid_fill_pct"] == pytest.approx((3 * 10 + 100) / 4)


def test_what_is_answered_is_declared_and_what_is_declared_is_answered():
    trace = Trace((replace(launch(registers=40, spill_bytes=0, shared_bytes=512), bytes=8.0),), ())
    facts = replace(FACTS, time_steps=8)
    answers = (
        trace_answer(trace, facts, 132.0),
        static_answer(trace, "sm_90"),
        algebra_answer(facts, 2.0, 5.0, [KernelSample("a", 3.0, {})], PARTS),
    )
    given = {answer.profiler: set(answer.samples[0].counters) for answer in answers}
    # What tools give beside the launch record and the compiler's notes.
    given["trace"] |= {"duration_us", "time_share_pct"}
    given["static"] |= {"sass_load_bytes_mean", "sass_tensor", "sass_ldgsts", "sass_utma"}
    assert given == {name: set(known) for name, known in OWN_COUNTERS.items()}
