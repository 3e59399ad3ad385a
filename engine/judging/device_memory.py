"""Whether the device's memory runs short: what is kept for later then makes room for others."""

from __future__ import annotations

import torch

SCARCE = 0.25
"""Share of the device's memory; with less of it free, whatever is kept only to save time is given up."""


def is_scarce() -> bool:
    """Of the current device, whoever holds the rest."""
    free, total = torch.cuda.mem_get_info()
    return free < SCARCE * total
