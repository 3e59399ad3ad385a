"""How long a candidate's own work may take in one judgement."""

from __future__ import annotations

from collections.abc import Callable

LEAST_S = 0.1
"""For a command that finds nothing left: long enough for an answer that is there, too short for work."""


class Allowance:
    """Seconds for all calls of a candidate together. `waited` tells how long its process has been waited for so far:
    what the judge does between calls, which other judgements slow down too, is not the candidate's time."""

    def __init__(self, seconds: float, waited: Callable[[], float]) -> None:
        self.seconds = seconds
        self._waited, self._before = waited, waited()

    @property
    def left_s(self) -> float:
        """What the next command may take, at least `LEAST_S`."""
        return max(LEAST_S, self.seconds - (self._waited() - self._before))
