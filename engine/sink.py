"""The sink seam."""

from __future__ import annotations

from typing import Protocol

from engine.canonical import Json


class Sink(Protocol):
    """Consumes finished journals; reading them later, its outage cannot hurt a run. Returns the events taken."""

    def take(self, run_id: str, events: list[Json]) -> int: ...
