"""Secret seeds that some candidates of a task share, so that what the reference gives is computed once for them."""

from __future__ import annotations

import secrets
from collections import OrderedDict

USES = 16
"""Candidates that get the same draws at most."""

KEPT = 64


class Seeds:
    """One seed for each key at a time."""

    def __init__(self) -> None:
        self._drawn: OrderedDict[tuple[str, ...], tuple[int, int]] = OrderedDict()

    def of(self, *key: str) -> int:
        """62 secret bits, the same USES times in a row."""
        seed, uses = self._drawn.pop(key, (secrets.randbits(62), 0))
        if uses >= USES:
            seed, uses = secrets.randbits(62), 0
        self._drawn[key] = (seed, uses + 1)
        if len(self._drawn) > KEPT:
            self._drawn.popitem(last=False)
        return seed

    def forget(self, *key: str) -> None:
        """The next one is new: somebody may have seen the draws."""
        self._drawn.pop(key, None)
