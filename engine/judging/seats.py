"""Which GPU an engine works on: where there are several of one kind, the one that fewest engines here use."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.judging.gpu_state import LOCKS, Gpu, open_lock

AUTO = "auto"
MOST_ENGINES = 256
"""On one GPU; beyond it engines are no longer counted."""


class Seat:
    """A GPU and this process's place on it: a locked file that the kernel frees when the process ends, however."""

    def __init__(self, gpu: Gpu, descriptor: int | None) -> None:
        self.gpu = gpu
        self._descriptor = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def take_seat(device: int | str, find: Callable[[int], Gpu], count: Callable[[], int], folder: Path = LOCKS) -> Seat:
    """A seat on device number `device`; with `auto` on the least used of those of the first one's kind, so that a sweep
    compares like with like. `find` as gpu_state.find_gpu, whose MissingError passes; `count`: how many are visible."""
    if isinstance(device, int):
        return _least_used([find(device)], folder)
    gpus = [find(ordinal) for ordinal in range(max(count(), 1))]
    return _least_used([gpu for gpu in gpus if gpu.name == gpus[0].name], folder)


def _least_used(gpus: Sequence[Gpu], folder: Path) -> Seat:
    for number, gpu in itertools.product(range(MOST_ENGINES), gpus):
        descriptor = open_lock(folder / f"kernel-engine-{gpu.uuid}.seat{number}")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return Seat(gpu, descriptor)
    return Seat(gpus[0], None)
