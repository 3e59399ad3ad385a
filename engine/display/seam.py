"""The display seam."""

from __future__ import annotations

from typing import Protocol

from engine.canonical import Json


class Display(Protocol):
    """Shows a run from its journal events, on stderr; `close` restores the terminal."""

    def show(self, event: Json) -> None: ...

    def close(self) -> None: ...
