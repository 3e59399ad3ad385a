"""Shows nothing; the journal has it all."""

from __future__ import annotations

from engine.canonical import Json


class NoDisplay:
    def show(self, event: Json) -> None:
        pass

    def close(self) -> None:
        pass
