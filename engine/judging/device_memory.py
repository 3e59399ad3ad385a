"""Whether the device's memory runs short: what is kept for later then makes room for others."""

from __future__ import annotations

import time
from typing import Any

import torch

_CUDA: Any = torch.cuda

SCARCE = 0.25
"""Share of the device's memory; with less of it free, whatever is kept only to save time is given up."""

OWN = 0.5
"""Share of the device's memory within which nothing that a candidate needs is to blame where there is none."""

LARGE = 1 / 32
"""Share of the device's memory; who needs more for one call's tensors needs a multiple of it in all: two sets or more,
their reference in fp64, and the baselines' own."""

STAYS = 0.2
"""Share of the device's memory that one who stands by may keep."""

NOTICE_S, ROOM_S = 1.0, 3.0
"""An idle judge notices within half of the first that another lacks memory, and has made room within the second."""


def fits(size: int) -> bool:
    """Whether a device that nobody else used would surely hold `size` bytes beside what the judge needs."""
    _, total = torch.cuda.mem_get_info()
    return size <= OWN * total


def is_large(size: int) -> bool:
    """Whether one call's tensors take a large part of the device's memory."""
    return _CUDA.is_initialized() and size > LARGE * torch.cuda.mem_get_info()[1]


def is_scarce() -> bool:
    """Of the current device, whoever holds the rest. A process that has not used it yet does not ask."""
    if not _CUDA.is_initialized():
        return False
    free, total = torch.cuda.mem_get_info()
    return free < SCARCE * total


def stays(size: int) -> bool:
    """Whether so many bytes may be kept for the next candidate."""
    return not _CUDA.is_initialized() or size <= STAYS * torch.cuda.mem_get_info()[1]


def await_room() -> None:
    """Leave others, who have been told, a moment to make room: until no more becomes free."""
    if not _CUDA.is_initialized():
        return
    until, before = time.monotonic() + ROOM_S, _CUDA.mem_get_info()[0]
    time.sleep(NOTICE_S)
    while time.monotonic() < until:
        free = _CUDA.mem_get_info()[0]
        if free <= before and not is_scarce():
            return
        before = free
        time.sleep(NOTICE_S / 4)
