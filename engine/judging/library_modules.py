"""Which dotted names of torch and triton are modules: told by their files, without importing anything."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path


@functools.cache
def is_module(dotted: str) -> bool:
    """What lies below triton.language.extra is the device library alone, and taken for no module."""
    top, *inner = dotted.split(".")
    if top not in ("torch", "triton") or not inner or dotted.startswith("triton.language.extra"):
        return False
    spec = importlib.util.find_spec(top)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    found = [Path(place, *inner) for place in places]
    return any((path / "__init__.py").is_file() or path.with_suffix(".py").is_file() for path in found)
