"""Estimated times where nothing can be measured: rates of a declared chip applied to the launch record. Pure.

    time = sum over launches of max(flops / rate, bytes / bandwidth) + overhead per launch

Candidate and eager reference are estimated by the same formula. It sees bytes, FLOPs and launch counts; it does not
see tiling, occupancy or cache reuse, so it ranks fusion and launch structure, not tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.records import Facts, Launch, OpCost, Precision, Trace

PRODUCTS = frozenset({"conv", "matmul", "recurrent", "attention"})
"""Kinds of `OpCost` whose arithmetic runs at the declared precision's rate; the rest runs outside tensor cores."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes and FLOPs per microsecond, and microseconds per launch."""

    bytes_per_us: float
    plain_per_us: float
    product_per_us: float
    overhead_us: float


def rates(hardware: Mapping[str, float], dtype: str, precision: Precision, overhead_us: float) -> Rates:
    """Of the declared chip: products of 16-bit data or under `reduced` at its fp16 rate, under `tf32` at its TF32
    rate, else at the fp32 rate outside tensor cores."""
    if dtype in ("float16", "bfloat16") or precision is Precision.REDUCED:
        product = hardware["fp16_tflops"]
    else:
        product = hardware["tf32_tflops" if precision is Precision.TF32 else "fp32_tflops"]
    return Rates(hardware["dram_gbps"] * 1e3, hardware["fp32_tflops"] * 1e6, product * 1e6, overhead_us)


def eager_us(facts: Facts, rate: Rates) -> float:
    """The reference, one kernel launch per torch function call. A recurrent layer advances step by step."""
    return sum(_op_us(cost, facts, rate) for cost in facts.costs)


def _op_us(cost: OpCost, facts: Facts, rate: Rates) -> float:
    per_us = rate.product_per_us if cost.kind in PRODUCTS else rate.plain_per_us
    launches = max(1, facts.time_steps or 1) if cost.kind == "recurrent" else 1
    return cost.count * (max(cost.flops / per_us, cost.bytes / rate.bytes_per_us) + launches * rate.overhead_us)


def candidate_us(trace: Trace, facts: Facts, rate: Rates) -> float:
    """A candidate from its launch record. The operator's useful FLOPs are spread over its launches by their bytes: the
    products' over those that multiply tiles, where there are any, the rest over all."""
    product_flops = sum(cost.flops * cost.count for cost in facts.costs if cost.kind in PRODUCTS)
    plain_flops = max(0.0, facts.flops - product_flops)
    hosted = sum(op.flops for op in trace.host_ops if op.compute)
    product_flops = max(0.0, product_flops - hosted)
    dots = [launch for launch in trace.launches if launch.has_dot] or list(trace.launches)
    dot_bytes = _bytes(dots)
    all_bytes = _bytes(trace.launches)
    total = 0.0
    for launch in trace.launches:
        whole = launch.bytes * launch.count
        product = product_flops * _share(whole, dot_bytes, len(dots)) if launch in dots else 0.0
        plain = plain_flops * _share(whole, all_bytes, len(trace.launches))
        compute_us = product / rate.product_per_us + plain / rate.plain_per_us
        total += max(compute_us, whole / rate.bytes_per_us) + launch.count * rate.overhead_us
    for op in trace.host_ops:
        if op.compute:
            compute_us = op.flops / rate.product_per_us
            total += max(compute_us, op.bytes / rate.bytes_per_us) + op.count * rate.overhead_us
    return total


def _bytes(launches: list[Launch] | tuple[Launch, ...]) -> float:
    return sum(launch.bytes * launch.count for launch in launches)


def _share(part: float, whole: float, count: int) -> float:
    return part / whole if whole > 0 else 1.0 / count
