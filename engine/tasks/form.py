"""The form of a task module's functions. Pure, standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def split_init(init_inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Positional and keyword arguments of a model, from what `get_init_inputs` returns: its positional arguments, or,
    as KernelBench also writes it, `[[args], {kwargs}]`."""
    items = list(init_inputs)
    if len(items) == 2 and isinstance(items[0], (list, tuple)) and isinstance(items[1], dict):
        return tuple(items[0]), items[1]
    return tuple(items), {}
