"""What can be said of a kernel without a tool: its launch record, its compiled resources, and arithmetic on the facts.

Each function answers under the counter names that the metric vocabulary spells for its rung of the ladder.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from engine.backends.ladder import Answer
from engine.records import Facts, Precision, Trace
from profilers.seam import KernelSample

TIMED = frozenset({"headroom", "time_share"})
"""What algebra can only say beside a profiler's durations."""

_NO_TRACE = "no launch record of this kernel"


def trace_answer(trace: Trace | None, facts: Facts) -> Answer:
    """Launches of one call, per timestep of a recurrence, and program instances."""
    if trace is None:
        return Answer("trace", (), _NO_TRACE)
    programs = sum(math.prod(launch.grid) * launch.count for launch in trace.launches)
    counters = {"launches": float(trace.launch_count), "grid_programs": float(programs)}
    if facts.time_steps:
        counters["launches_per_timestep"] = trace.launch_count / facts.time_steps
    return Answer("trace", (KernelSample("", None, counters),))


def static_answer(trace: Trace | None) -> Answer:
    """Registers, spills and shared memory of each compiled kernel; unknown ones are left out."""
    if trace is None:
        return Answer("static", (), _NO_TRACE)
    samples = []
    for launch in trace.launches:
        known = {
            "registers": launch.registers,
            "spill_bytes": launch.spill_bytes,
            "shared_bytes": launch.shared_bytes,
        }
        counters = {name: float(value) for name, value in known.items() if value is not None}
        samples.append(KernelSample(launch.kernel, None, counters))
    return Answer("static", tuple(samples), "" if samples else "the launch record is empty")


def algebra_answer(
    facts: Facts, floor: float | None, time_us: float | None, kernels: Sequence[KernelSample] = ()
) -> Answer:
    """Floor, headroom and intensity from facts and a time; the longest kernel's share from a profiler's durations."""
    counters: dict[str, float] = {}
    if facts.bytes > 0:
        counters["intensity"] = facts.intensity
    if floor is not None:
        counters["floor_us"] = floor
        if time_us is not None:
            counters["headroom"] = time_us / floor
    longest = _longest_share_pct(kernels)
    if longest is not None:
        counters["time_share"] = longest
    return Answer("algebra", (KernelSample("", None, counters),))


def _longest_share_pct(kernels: Sequence[KernelSample]) -> float | None:
    totals: defaultdict[str, float] = defaultdict(float)
    for sample in kernels:
        if sample.duration_us is None:
            return None
        totals[sample.kernel] += sample.duration_us
    total = math.fsum(totals.values())
    return 100.0 * max(totals.values()) / total if total > 0 else None


def floor_us(facts: Facts, hardware: Mapping[str, float], precision: Precision) -> float | None:
    """Least time in µs: compulsory bytes at copy bandwidth or operations at the declared arithmetic's rate, whichever
    is longer. None when the facts are unknown or are those of a small variant."""
    if facts.bytes <= 0 or facts.traced != "full":
        return None
    memory_us = facts.bytes / (hardware["dram_gbps"] * 1e3)
    compute_us = facts.flops / (_tflops(facts, hardware, precision) * 1e6)
    return max(memory_us, compute_us)


SPLIT_PRODUCTS = 3
"""A product of split operands on tensor cores (tl.dot's tf32x3) is as exact as fp32 and takes three TF32 products; on
an H200 such kernels ran at 0.92 to 0.96 of a floor made from the fp32 rate."""


def _tflops(facts: Facts, hardware: Mapping[str, float], precision: Precision) -> float:
    products = facts.matmul_ops + facts.conv_ops + facts.recurrent_ops + facts.attention_ops
    if not products:
        return hardware["fp32_tflops"]
    if facts.dtype in ("float16", "bfloat16") or precision is Precision.REDUCED:
        return hardware["fp16_tflops"]
    if precision is Precision.TF32:
        return hardware["tf32_tflops"]
    return max(hardware["fp32_tflops"], hardware["tf32_tflops"] / SPLIT_PRODUCTS)
