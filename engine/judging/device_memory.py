"""Whether the device's memory runs short: what is kept for later then makes room for others."""

from __future__ import annotations

from typing import Any

import torch

_CUDA: Any = torch.cuda

SCARCE = 0.25
"""Share of the device's memory; with less of it free, whatever is kept only to save time is given up."""


OWN = 0.5
"""Share of the device's memory within which nothing that a candidate needs is to blame where there is none."""


def fits(size: int) -> bool:
    """Whether a device that nobody else used would surely hold `size` bytes beside what the judge needs."""
    _, total = torch.cuda.mem_get_info()
    return size <= OWN * total


def is_scarce() -> bool:
    """Of the current device, whoever holds the rest. A process that has not used it yet does not ask."""
    if not _CUDA.is_initialized():
        return False
    free, total = torch.cuda.mem_get_info()
    return free < SCARCE * total
