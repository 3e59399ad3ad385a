"""How many blocks of a compiled kernel fit on one streaming multiprocessor, and what stops more. Pure.

Sizes: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; allocation units: the toolkit's
occupancy calculator (cuda_occupancy.h). Registers are given out by the warp in 256s from four equal files. Shared
memory is the largest that the chip can set aside; for a kernel that needs little the driver sets less, as ncu says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

REGISTERS = 65536
REGISTER_UNIT = 256
PARTITIONS = 4
SHARED_UNIT = 128
WARP = 32


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    """Resident warps and blocks at most, bytes of shared memory, and those that the driver keeps for each block."""

    warps: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int


MULTIPROCESSORS: Mapping[str, Multiprocessor] = {
    "sm_70": Multiprocessor(64, 32, 98304, 0),
    "sm_75": Multiprocessor(32, 16, 65536, 0),
    "sm_80": Multiprocessor(64, 32, 167936, 1024),
    "sm_86": Multiprocessor(48, 16, 102400, 1024),
    "sm_87": Multiprocessor(48, 16, 167936, 1024),
    "sm_89": Multiprocessor(48, 24, 102400, 1024),
    "sm_90": Multiprocessor(64, 32, 233472, 1024),
    "sm_100": Multiprocessor(64, 32, 233472, 1024),
    "sm_120": Multiprocessor(48, 24, 102400, 1024),
}


def limits(target: str, num_warps: int, registers: int | None, shared_bytes: int | None) -> Mapping[str, float]:
    """Counters `limit_registers`, `limit_shared`, `limit_blocks` and `limit_warps` in blocks, and `occupancy_pct`, the
    warps that fit of those that the chip holds. Empty for an unknown chip or a kernel that was not compiled."""
    if target not in MULTIPROCESSORS or registers is None or shared_bytes is None:
        return {}
    chip = MULTIPROCESSORS[target]
    by_warp = _up(max(registers, 1) * WARP, REGISTER_UNIT)
    found = {
        "limit_registers": REGISTERS // PARTITIONS // by_warp * PARTITIONS // num_warps,
        "limit_shared": chip.shared_bytes // max(SHARED_UNIT, _up(shared_bytes + chip.reserved_bytes, SHARED_UNIT)),
        "limit_blocks": chip.blocks,
        "limit_warps": chip.warps // num_warps,
    }
    share = min(100.0, 100.0 * min(found.values()) * num_warps / chip.warps)
    return {**{name: float(blocks) for name, blocks in found.items()}, "occupancy_pct": share}


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
