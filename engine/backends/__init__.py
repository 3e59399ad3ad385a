"""The back-end seam: judging, measuring and profiling on one kind of device."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import cast

from engine.backends.seam import Backend
from engine.codec import did_you_mean
from engine.errors import MissingError
from engine.settings import Settings

BACKENDS = {
    "cpu": "engine.backends.cpu:CpuBackend",
    "cuda": "engine.backends.cuda:CudaBackend",
    "ascend": "engine.backends.ascend:AscendBackend",
}
"""Kind of back-end -> class, imported when it is opened: a run on one needs nothing of the other."""


def open_backend(name: str, settings: Settings, root: Path, scratch: Path) -> AbstractContextManager[Backend]:
    """The back-end `name` of the settings. Raises MissingError when its device or tools are absent."""
    kind = settings.backends[name].kind
    if kind not in BACKENDS:
        raise MissingError(f"no back-end of kind '{kind}'{did_you_mean(kind, BACKENDS)}")
    module, _, attribute = BACKENDS[kind].partition(":")
    opened = getattr(import_module(module), attribute)(settings, root, scratch)
    return cast(AbstractContextManager[Backend], opened)
