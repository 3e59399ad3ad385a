"""What can be said of a kernel without a tool: its launch record, its compiled resources, and arithmetic on the facts.

Each function answers under the counter names that the metric vocabulary spells for its rung of the ladder.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from engine.backends.ladder import DURATION, Answer
from engine.backends.occupancy import limits
from engine.records import Facts, Trace
from engine.settings import BackendSettings, Spelling
from profilers.seam import KernelSample

TIMED = frozenset({"headroom", "time_share"})
"""What algebra can only say beside a profiler's durations."""

OWN_COUNTERS: Mapping[str, frozenset[str]] = {
    "trace": frozenset(
        [
            "launches",
            "launches_per_timestep",
            "grid_programs",
            "argument_bytes",
            "grid_fill_pct",
            "time_share_pct",
            DURATION,
        ]
    ),
    "static": frozenset(
        [
            *("registers", "spill_bytes", "shared_bytes", "occupancy_pct"),
            *("limit_registers", "limit_shared", "limit_blocks", "limit_warps"),
            *("sass_load_bytes_mean", "sass_tensor", "sass_ldgsts", "sass_utma"),
        ]
    ),
    "algebra": frozenset(
        [
            *("intensity", "floor_us", "headroom", "time_share"),
            *("compulsory_bytes", "compulsory_us", "arithmetic_us", "time_us"),
        ]
    ),
}
"""Names that the answers below, and a tool that times launches, can give: what a spelling for these rungs may say."""

OF_MEASURED_TIME = frozenset([DURATION, "time_us", "compulsory_us", "arithmetic_us"])
"""Those that need a time that was measured, not estimated."""

INSTRUCTIONS = "sass_"
"""Counters that the disassembler gives, of machine code that a trusted compiler made for a device."""

TRACED = frozenset({DURATION, "duration_min_us", "duration_max_us", "time_share_pct"})
"""Counters of the trace that take a call of the candidate's own Python; the launch record gives the others."""


_NO_TRACE = "no launch record of this kernel"


def given(backend: BackendSettings, spelling: Spelling) -> bool:
    """Whether a rung of this back-end can give what the spelling says: without a device nothing that is timed on one or
    read from its machine code."""
    if backend.kind != "cpu":
        return True
    needed = set(spelling.counters)
    return not (needed & (OF_MEASURED_TIME | TRACED) or any(name.startswith(INSTRUCTIONS) for name in needed))


def trace_answer(trace: Trace | None, facts: Facts, sm_count: float | None = None) -> Answer:
    """Launches of one call, per timestep of a recurrence, program instances, and bytes that the launches' arguments
    span; with `sm_count` also the share of SMs that the grids can reach, over launches."""
    if trace is None:
        return Answer("trace", (), _NO_TRACE)
    programs = sum(math.prod(launch.grid) * launch.count for launch in trace.launches)
    spanned = math.fsum(launch.bytes * launch.count for launch in trace.launches)
    counters = {"launches": float(trace.launch_count), "grid_programs": float(programs)}
    if spanned > 0:
        counters["argument_bytes"] = spanned
    if sm_count and trace.launch_count:
        reached = (min(1.0, math.prod(launch.grid) / sm_count) * launch.count for launch in trace.launches)
        counters["grid_fill_pct"] = 100.0 * math.fsum(reached) / trace.launch_count
    if facts.time_steps:
        counters["launches_per_timestep"] = trace.launch_count / facts.time_steps
    return Answer("trace", (KernelSample("", None, counters),))


def static_answer(trace: Trace | None, target: str = "") -> Answer:
    """Registers, spills and shared memory of each compiled kernel; unknown ones are left out. With the chip it was
    compiled for, e.g. sm_90, also how many blocks fit on one SM and by what."""
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
        counters |= limits(target, launch.num_warps, launch.registers, launch.shared_bytes)
        samples.append(KernelSample(launch.kernel, None, counters))
    return Answer("static", tuple(samples), "" if samples else "the launch record is empty")


def algebra_answer(
    facts: Facts,
    floor: float | None,
    time_us: float | None,
    kernels: Sequence[KernelSample] = (),
    parts: Mapping[str, float] | None = None,
) -> Answer:
    """Floor, headroom and intensity from facts and a time; the longest kernel's share from a profiler's durations.

    `parts`: of the floor, in µs by name (`floors.Floor.parts`). With them and a *measured* time come the substitutes
    for hardware counters; an estimated time is made of the same parts, so its caller leaves them out (ADR 0007).
    """
    counters: dict[str, float] = {}
    if facts.bytes > 0:
        counters["intensity"] = facts.intensity
        if facts.traced == "full":
            counters["compulsory_bytes"] = facts.bytes
    if parts is not None and time_us is not None:
        arithmetic = max(us for name, us in parts.items() if name != "bytes")
        counters |= {"time_us": time_us, "compulsory_us": parts["bytes"], "arithmetic_us": arithmetic}
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
