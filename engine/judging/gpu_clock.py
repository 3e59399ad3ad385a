"""Event timing of calls on the GPU, the same code for both sides of a pair: rotated inputs, cold L2, no host sync.

A call's time runs from just before the call is issued to the end of its last kernel on the current stream, less the
median of empty event pairs. The flush in front of each call keeps the GPU busy while the host issues the call, so that
launch overhead shows only where a call issues more work than the flush hides.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from engine.judging.gpu_graphs import Flush

WARM_UP_CALLS = 3
MAX_CALLS_PER_BLOCK = 100
EMPTY_PAIRS = 100
LEAST_US = 0.1
"""A time never falls to zero by subtraction: CUDA events resolve about 0.5 µs, and ratios need a positive number."""

ROTATION_FACTOR = 3
LEAST_SETS, MAX_SETS = 2, 64
MEMORY_SHARE = 0.15
"""Share of the device's memory that the rotated inputs of one process may take."""

Call = Callable[[], object]

_EVENT: Any = torch.cuda.Event


def l2_bytes() -> int:
    """L2 size as the driver reports it."""
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


def set_count(bytes_per_set: int) -> int:
    """How many input sets rotate: together at least 3x L2 and at least LEAST_SETS, as far as memory allows."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    wanted = max(LEAST_SETS, -(-ROTATION_FACTOR * l2_bytes() // max(bytes_per_set, 1)))
    allowed = int(MEMORY_SHARE * total // max(bytes_per_set, 1))
    return max(1, min(wanted, allowed, MAX_SETS))


class CallTimer:
    """Times `calls`, one for each input set, in rotation. Building it warms them up."""

    def __init__(self, calls: Sequence[Call], *, flush_l2: bool) -> None:
        self._calls = list(calls)
        self._turn = 0
        self._flush: Call = Flush() if flush_l2 else _nothing
        for _ in range(max(WARM_UP_CALLS, len(self._calls))):
            self._next()
        torch.cuda.synchronize()
        self._overhead_us = 0.0
        self._overhead_us = statistics.median(self._time(_nothing, EMPTY_PAIRS))
        self._call_us = statistics.median(self._time(self._next, WARM_UP_CALLS))

    def block(self, milliseconds: float) -> list[float]:
        """Times in µs of as many calls as take about `milliseconds`, at least one."""
        count = round(milliseconds * 1e3 / self._call_us)
        return self._time(self._next, max(1, min(count, MAX_CALLS_PER_BLOCK)))

    def _next(self) -> object:
        result = self._calls[self._turn % len(self._calls)]()
        self._turn += 1
        return result

    def _time(self, call: Call, count: int) -> list[float]:
        pairs = []
        for _ in range(count):
            start, end = _EVENT(enable_timing=True), _EVENT(enable_timing=True)
            self._flush()
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [max(start.elapsed_time(end) * 1e3 - self._overhead_us, LEAST_US) for start, end in pairs]


def _nothing() -> None:
    return None
