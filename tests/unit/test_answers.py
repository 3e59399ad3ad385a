from __future__ import annotations

from dataclasses import replace

import pytest

from engine.backends.answers import algebra_answer, floor_us, static_answer, trace_answer
from engine.records import Facts, Launch, Precision, Trace
from profilers.seam import KernelSample

FACTS = Facts(1, 0, 0, 0, 0, 1, 0, 0, 0, None, None, 2e9, 8e9, 0.25, "float32", "full")
RATES = {"dram_gbps": 4000.0, "fp32_tflops": 50.0, "tf32_tflops": 400.0, "fp16_tflops": 800.0}
MATMUL = replace(FACTS, reduce_ops=0, matmul_ops=1, flops=1e12, bytes=1e9)


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


@pytest.mark.parametrize(
    ("facts", "precision", "floor"),
    [
        pytest.param(FACTS, Precision.IEEE, 2000.0, id="bytes-decide"),
        pytest.param(MATMUL, Precision.IEEE, 7500.0, id="fp32-products-split-in-three"),
        pytest.param(MATMUL, Precision.TF32, 2500.0, id="tf32-products"),
        pytest.param(MATMUL, Precision.REDUCED, 1250.0, id="reduced-products"),
        pytest.param(replace(MATMUL, dtype="float16"), Precision.IEEE, 1250.0, id="half-precision-task"),
        pytest.param(replace(FACTS, flops=1e12), Precision.TF32, 20000.0, id="no-products-no-tensor-cores"),
        pytest.param(replace(FACTS, bytes=0.0, flops=0.0), Precision.IEEE, None, id="unknown"),
        pytest.param(replace(FACTS, traced="small"), Precision.IEEE, None, id="sizes-of-a-small-variant"),
    ],
)
def test_the_floor_is_the_longer_of_bytes_and_operations(facts, precision, floor):
    assert floor_us(facts, RATES, precision) == (None if floor is None else pytest.approx(floor))


def test_headroom_and_the_longest_kernels_share():
    kernels = [KernelSample("a", 30.0, {}), KernelSample("b", 50.0, {}), KernelSample("a", 20.0, {})]
    (sample,) = algebra_answer(FACTS, 2000.0, 5000.0, kernels).samples
    assert sample.counters == {"intensity": 0.25, "floor_us": 2000.0, "headroom": 2.5, "time_share": 50.0}


@pytest.mark.parametrize(
    ("floor", "time", "kernels", "known"),
    [
        pytest.param(None, 5.0, (), {"intensity"}, id="no-floor"),
        pytest.param(2.0, None, (), {"intensity", "floor_us"}, id="no-time"),
        pytest.param(None, None, (KernelSample("a", None, {}),), {"intensity"}, id="no-durations"),
    ],
)
def test_what_is_unknown_is_left_out(floor, time, kernels, known):
    (sample,) = algebra_answer(FACTS, floor, time, kernels).samples
    assert set(sample.counters) == known
