"""The floor by table: which of its parts binds, at which rate, and what is flagged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.backends.ceilings import KnownRates, known_rates
from engine.backends.floors import floor, product_tflops, split_flops, stated
from engine.records import Facts, Measurement, OpCost, Precision, ScoreKind, Timing

FACTS = Facts(1, 0, 0, 0, 0, 1, 0, 0, 0, None, None, 2e9, 8e9, 0.25, "float32", "full")
RATES = {"dram_gbps": 4000.0, "fp32_tflops": 50.0, "tf32_tflops": 400.0, "fp16_tflops": 800.0}
KNOWN = known_rates(RATES, "datasheet")
MATMUL = replace(FACTS, reduce_ops=0, matmul_ops=1, flops=1e12, bytes=1e9)


def mixed(product, plain, dtype="float32", name="matmul"):
    costs = (OpCost(name, "matmul", 1, product, 0.0), OpCost("relu", "pointwise", 2, plain / 2, 0.0))
    return replace(MATMUL, flops=product + plain, bytes=1.0, dtype=dtype, costs=costs)


@pytest.mark.parametrize(
    ("facts", "precision", "us", "bound"),
    [
        pytest.param(FACTS, Precision.IEEE, 2000.0, "bytes", id="bytes-decide"),
        pytest.param(MATMUL, Precision.IEEE, 7500.0, "products", id="fp32-products-split-in-three"),
        pytest.param(MATMUL, Precision.TF32, 2500.0, "products", id="tf32-products"),
        pytest.param(MATMUL, Precision.REDUCED, 1250.0, "products", id="reduced-products"),
        pytest.param(replace(MATMUL, dtype="float16"), Precision.IEEE, 1250.0, "products", id="half-precision-task"),
        pytest.param(replace(MATMUL, dtype="bfloat16"), Precision.IEEE, 1250.0, "products", id="bf16-as-fp16"),
        pytest.param(replace(MATMUL, dtype="float64"), Precision.IEEE, 20000.0, "products", id="fp64-as-fp32-at-best"),
        pytest.param(replace(MATMUL, dtype="int8"), Precision.IEEE, 625.0, "products", id="int8-at-most-twice-fp16"),
        pytest.param(replace(FACTS, flops=1e12), Precision.TF32, 20000.0, "other", id="no-products-no-tensor-cores"),
        pytest.param(mixed(1e12, 1e12), Precision.TF32, 20000.0, "other", id="pointwise-at-the-fp32-rate"),
        pytest.param(mixed(1e12, 1e10), Precision.TF32, 2500.0, "products", id="parts-overlap"),
        pytest.param(mixed(1e12, 1e12, "float16"), Precision.IEEE, 10000.0, "other", id="packed-halves"),
        pytest.param(mixed(1e12, 1e10, name="triu"), Precision.TF32, 200.0, "other", id="structure-drops-products"),
    ],
)
def test_the_floor_is_the_longest_part(facts, precision, us, bound):
    found = floor(facts, KNOWN, precision)
    assert found.us == pytest.approx(us)
    assert found.bound == bound
    assert found.us == max(found.parts.values())


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(replace(FACTS, bytes=0.0, flops=0.0), id="unknown"),
        pytest.param(replace(FACTS, traced="small"), id="sizes-of-a-small-variant"),
        pytest.param(replace(FACTS, traced="none"), id="not-traced"),
    ],
)
def test_without_facts_there_is_no_floor(facts):
    assert floor(facts, KNOWN, Precision.IEEE) is None


def test_the_floor_of_a_variant_is_that_of_its_own_facts():
    small = floor(replace(FACTS, bytes=FACTS.bytes / 1000, flops=FACTS.flops / 1000), KNOWN, Precision.IEEE)
    assert small.us == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        ("float8_e4m3fn", Precision.IEEE, ("fp8_tflops", 1500.0)),
        ("int8", Precision.IEEE, ("int8_tflops", 1400.0)),
        ("float64", Precision.IEEE, ("fp64_tflops", 60.0)),
        ("bfloat16", Precision.IEEE, ("bf16_tflops", 780.0)),
        ("float16", Precision.IEEE, ("fp16_tflops", 800.0)),
        ("float32", Precision.REDUCED, ("fp16_tflops", 800.0)),
        ("float32", Precision.TF32, ("tf32_tflops", 400.0)),
        ("float32", Precision.IEEE, ("tf32_tflops", 400.0 / 3)),
    ],
)
def test_each_dtype_has_its_rate(dtype, precision, expected):
    every = {**RATES, "fp8_tflops": 1500.0, "int8_tflops": 1400.0, "fp64_tflops": 60.0, "bf16_tflops": 780.0}
    name, rate = product_tflops(dtype, every, precision)
    assert (name, rate) == (expected[0], pytest.approx(expected[1]))


def test_plain_fp32_where_it_beats_three_products():
    assert product_tflops("float32", {**RATES, "fp32_tflops": 140.0}, Precision.IEEE) == ("fp32_tflops", 140.0)


def test_flops_of_functions_that_no_table_knows_count_as_products():
    costs = (OpCost("baddbmm_like", "other", 1, 7.0, 0.0), OpCost("softmax", "norm", 1, 4.0, 0.0))
    assert split_flops(replace(FACTS, flops=11.0, costs=costs)) == (7.0, 4.0)


def test_the_source_says_rate_and_origin():
    known = KnownRates(RATES, {**dict.fromkeys(RATES, "datasheet"), "dram_gbps": "measured 2026-11-20"}, "x")
    assert floor(FACTS, known, Precision.IEEE).source == "8e+09 bytes at 4000 GB/s (measured 2026-11-20)"
    assert "133.3 TFLOP/s (datasheet)" in floor(MATMUL, known, Precision.IEEE).source
    assert "triu" in floor(mixed(1e12, 1.0, name="triu"), known, Precision.IEEE).note


@pytest.mark.parametrize(
    ("us", "kind", "flagged"),
    [
        (1799.0, ScoreKind.MEASURED, True),
        (1801.0, ScoreKind.MEASURED, False),
        (1799.0, ScoreKind.UNVERIFIED, True),
        (10.0, ScoreKind.ESTIMATED, False),
        (None, ScoreKind.MEASURED, False),
    ],
)
def test_a_time_under_nine_tenths_of_the_floor_is_flagged(us, kind, flagged):
    timings = () if us is None else (Timing("candidate", kind, us, us, us, 20),)
    fast = Timing("eager", ScoreKind.MEASURED, 1.0, 1.0, 1.0, 20)
    bare = Measurement((*timings, fast), (), None, {"precision": "ieee"}, "a note")
    made = stated(bare, floor(FACTS, KNOWN, Precision.IEEE))
    assert made.below_floor is flagged
    assert made.floor_us == 2000.0
    assert made.settings == {"precision": "ieee", "floor": "8e+09 bytes at 4000 GB/s (datasheet)"}
    assert made.note == "a note"


def test_no_floor_is_stated_where_there_is_none():
    bare = Measurement((), (), 3.0, {})
    assert stated(bare, None) == replace(bare, floor_us=None)
