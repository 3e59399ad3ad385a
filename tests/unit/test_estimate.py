"""The estimate: bytes, FLOPs and launches by hand."""

from __future__ import annotations

import pytest

from engine.backends.estimate import candidate_us, eager_us, rates
from engine.records import Facts, HostOp, Launch, OpCost, Precision, Trace

HARDWARE = {"dram_gbps": 1000.0, "fp32_tflops": 10.0, "tf32_tflops": 100.0, "fp16_tflops": 200.0}
LINEAR = OpCost("linear", "matmul", 1, 1e9, 1e6)
RELU = OpCost("relu", "pointwise", 2, 1e3, 1e6)


def facts(*costs, time_steps=None, dtype="float32"):
    flops = sum(cost.flops * cost.count for cost in costs)
    return Facts(len(costs), 0, 1, 0, 0, 0, 0, 0, 0, None, time_steps, flops, 1e6, 1.0, dtype, "full", costs)


def launch(name="k", count=1, size=1e6, dot=False):
    return Launch(name, (1, 1, 1), count, size, 4, 3, dot)


RATE = rates(HARDWARE, "float32", Precision.IEEE, 5.0)


@pytest.mark.parametrize(
    ("dtype", "precision", "per_us"),
    [
        ("float32", Precision.IEEE, 10e6),
        ("float32", Precision.TF32, 100e6),
        ("float32", Precision.REDUCED, 200e6),
        ("bfloat16", Precision.IEEE, 200e6),
    ],
)
def test_product_rate_follows_the_precision(dtype, precision, per_us):
    assert rates(HARDWARE, dtype, precision, 5.0).product_per_us == per_us


def test_eager_is_summed_op_by_op():
    # linear: 1e9 flops at 10e6 per µs beat 1 µs of bytes; each relu moves 1e6 bytes at 1000 per ns.
    assert eager_us(facts(LINEAR, RELU), RATE) == pytest.approx((100 + 5) + 2 * (1 + 5))


def test_a_recurrent_layer_launches_once_per_step():
    gru = OpCost("gru", "recurrent", 1, 1e6, 1e6)
    assert eager_us(facts(gru, time_steps=100), RATE) == pytest.approx(1 + 100 * 5)


def test_fusion_saves_bytes_and_launches():
    operator = facts(LINEAR, RELU)
    fused = Trace((launch(dot=True),), ())
    apart = Trace((launch(dot=True), launch("a"), launch("b")), ())
    assert candidate_us(fused, operator, RATE) < candidate_us(apart, operator, RATE) < eager_us(operator, RATE) + 1


def test_products_count_on_the_launch_that_multiplies():
    operator = facts(LINEAR)
    trace = Trace((launch("mm", dot=True), launch("copy", size=3e6)), ())
    assert candidate_us(trace, operator, RATE) == pytest.approx((100 + 5) + (3 + 5))


def test_a_thousand_launches_cost_their_overhead():
    assert candidate_us(Trace((launch(count=1000, size=0.0),), ()), facts(), RATE) == pytest.approx(5000)


def test_host_operations_cost_their_own_work_and_plain_ones_nothing():
    operator = facts(LINEAR)
    library = HostOp("aten.addmm", 1, True, 1e9, 1e6)
    allocation = HostOp("aten.empty", 3, False, 0.0, 0.0)
    trace = Trace((launch(),), (library, allocation))
    assert candidate_us(trace, operator, RATE) == pytest.approx((100 + 5) + (1 + 5))
