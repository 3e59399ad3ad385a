"""Times calls as CUDA graphs: rotated buffer sets, L2 emptied by a flush that leaves nothing to write back.

A sample is one replay of a graph with so many copies of the call that it takes LEAST_SAMPLE_US, each on a set of its
own, which together exceed L2; its time is that between two events around the replay, less that between the events of an
empty pair, divided by the copies.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from engine.judging.driver import DISCARD_PTX, Driver

LINE_BYTES = 128
THREADS = 256
FLUSH_FACTOR = 2
EMPTY_PAIRS, FEW_PAIRS = 100, 15
EMPTY_S = 0.02
"""Empty pairs are taken for about so long, but between these numbers of them."""

LEAST_US = 0.05
MAX_SAMPLES = 200
WARM_UP = 3
LEAST_REPLAYS = 3
LONG_US = 2000.0
"""A call that takes longer is not repeated to learn how long it takes, nor tried on each set before its capture."""
LEAST_SAMPLE_US = 200.0
"""Starting a graph costs some microseconds that an empty pair of events does not show; a longer sample dilutes them."""
SLOW_US, SLOW_SETS = 300.0, 16
"""A call that takes longer rotates through so many sets at most, so that few samples go through all of them."""

Call = Callable[[], object]
_EVENT: Any = torch.cuda.Event


class Flush:
    """Writes twice the size of L2 and discards those lines: nothing of the last call stays, nothing dirty remains."""

    def __init__(self) -> None:
        size = FLUSH_FACTOR * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self._size = -(-size // (LINE_BYTES * THREADS)) * LINE_BYTES * THREADS
        self._buffer = torch.empty(self._size, dtype=torch.uint8, device="cuda")
        self._driver = Driver()
        self._function = self._driver.load(DISCARD_PTX, "discard_l2", threads=THREADS, shared_bytes=0)
        self._values = (ctypes.c_uint64(self._buffer.data_ptr()), ctypes.c_uint64(self._size))
        self._addresses = (ctypes.c_void_p * 2)(*(ctypes.addressof(value) for value in self._values))

    LAUNCHES = 2
    """Of `wipe`."""

    def __call__(self) -> None:
        self.reset()
        self.wipe()

    def reset(self) -> None:
        """Lines that a kernel asked to persist become ordinary ones."""
        self._driver.reset_persisting_l2()

    def wipe(self) -> None:
        self._buffer.fill_(1)
        grid = (self._size // LINE_BYTES // THREADS, 1, 1)
        self._driver.launch(self._function, grid, self._addresses, torch.cuda.current_stream().cuda_stream)


class GraphTimer:
    """Times `calls`, one for each buffer set, as graphs in rotation. `renew`: for each set what makes its buffers as if
    never used, run before every sample of it and not timed. Building a timer warms up and captures."""

    def __init__(self, calls: Sequence[Call], renew: Sequence[Call] = ()) -> None:
        self._calls, self._renew = calls, renew
        self._flush = Flush()
        self._overhead_us = 0.0
        self._turn = 0
        self._warm: Any = None
        self._seen: set[int] = set()
        self._groups = [[0]]
        self._graphs = [_captured(calls[:1], tried=True)]
        self._overhead_us = self._empty_us()
        self.call_us = self._about_us()
        count = min(len(calls), SLOW_SETS) if self.call_us > SLOW_US else len(calls)
        copies = max(1, min(math.ceil(LEAST_SAMPLE_US / self.call_us), count))
        self._groups = _groups(count, copies)
        same = self._graphs if self._groups[0] == [0] else []
        groups = [[calls[number] for number in group] for group in self._groups[len(same) :]]
        self._graphs = same + [_captured(group, tried=self.call_us <= LONG_US) for group in groups]
        if copies > 1:
            self.call_us = self._about_us()

    def replayed(self) -> list[int]:
        """Sets that were replayed since this was last asked."""
        seen, self._seen = sorted(self._seen), set()
        return seen

    def anew(self) -> None:
        """Replay each graph once more, renewed: results are then those of one call each, whatever a run of replays that
        nothing was renewed between left there."""
        self._times(len(self._graphs), self._next, cold=True)

    @property
    def _copies(self) -> int:
        return len(self._groups[0])

    def block(self, milliseconds: float, *, cold: bool) -> list[float]:
        """Times of a call in µs, from as many samples as take about `milliseconds`, at least one. `cold` empties L2
        before each sample; otherwise the first set's call is replayed again and again."""
        sample_us = self.call_us * self._copies
        count = max(1, min(round(milliseconds * 1e3 / max(sample_us, 1.0)), MAX_SAMPLES))
        if not cold and self._warm is None:
            self._warm = _captured(list(self._calls[:1]) * self._copies, tried=True)
        return self._times(count, self._next if cold else self._same, cold=cold)

    def by_wall_clock(self, milliseconds: float) -> tuple[float, float]:
        """One call in µs by events and by the host's clock, over the same run of replays of about `milliseconds`: what
        a kernel could do to events it cannot do to the host."""
        least = 1 if self.call_us > LONG_US else LEAST_REPLAYS
        count = max(least, math.ceil(milliseconds * 1e3 / (self.call_us * self._copies)))
        start, end = _EVENT(enable_timing=True), _EVENT(enable_timing=True)
        torch.cuda.synchronize()
        begun = time.perf_counter()
        start.record()
        for _ in range(count):
            self._next()
        end.record()
        end.synchronize()
        wall_us, calls = (time.perf_counter() - begun) * 1e6, count * self._copies
        return start.elapsed_time(end) * 1e3 / calls, wall_us / calls

    def _next(self) -> None:
        index = self._turn % len(self._graphs)
        self._graphs[index].replay()
        self._seen.update(self._groups[index])
        self._turn += 1

    def _same(self) -> None:
        self._warm.replay()
        self._seen.add(0)

    def _empty_us(self) -> float:
        """Between the events of a pair with nothing between them. Before each comes what comes before a sample: on an
        idle device the second event waits for the host, and the pair takes some microseconds more."""
        begun = time.perf_counter()
        times = self._times(FEW_PAIRS, None, cold=True)
        each_s = (time.perf_counter() - begun) / FEW_PAIRS
        further = min(round(EMPTY_S / each_s), EMPTY_PAIRS) - FEW_PAIRS
        return statistics.median(times + self._times(max(0, further), None, cold=True))

    def _about_us(self) -> float:
        """About how long a call takes; of short ones the first sample is thrown away."""
        first = min(self._times(1, self._next, cold=True))
        if first > LONG_US:
            # Once more, for another process may have had the device in between.
            first = min(first, *self._times(1, self._next, cold=True))
        if first > LONG_US:
            return first
        return statistics.median(self._times(WARM_UP, self._next, cold=True))

    def _prepare(self) -> None:
        for number in self._groups[self._turn % len(self._graphs)]:
            if self._renew:
                self._renew[number]()
        self._flush()

    def _times(self, count: int, replay: Callable[[], None] | None, *, cold: bool) -> list[float]:
        pairs = []
        for _ in range(count):
            start, end = _EVENT(enable_timing=True), _EVENT(enable_timing=True)
            if cold:
                self._prepare()
            start.record()
            if replay is not None:
                replay()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [
            max((start.elapsed_time(end) * 1e3 - self._overhead_us) / self._copies, LEAST_US) for start, end in pairs
        ]


def _groups(calls: int, copies: int) -> list[list[int]]:
    """Graphs of `copies` different calls each that together go through all of them."""
    return [[(start + k) % calls for k in range(copies)] for start in range(0, calls, copies)]


def _captured(calls: Sequence[Call], *, tried: bool) -> Any:
    """`tried`: each is called before, for libraries make handles and workspaces at a first call."""
    for call in calls if tried else ():
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph
