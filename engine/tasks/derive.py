"""Small and odd variants for a task without a contract: smaller constants, kept when the program still runs.

Which constants may change is read from their size and name; whether a choice is valid (groups divide channels, a
window fits its input, heads divide the width) is found out by trying it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from engine.tasks.variants import constants

LADDER = (128, 64, 32, 24, 16, 8)
"""Sizes tried for the small variant, largest first."""

ODD_LADDER = (77, 33, 17, 9)
"""Sizes tried for all constants of the odd variant together."""

UNIFORM = (64, 16)
"""Sizes tried for all constants alike, where two that look unrelated must agree; the odd variant takes one more."""

ODD = (33, 24, 40, 17)
"""Replacements tried for one constant of the odd variant: 24 and 40 suit groups of 8 and are no multiple of 16."""

ELEMENTS = 1 << 17
"""Most elements that an input or output of a small variant should have: Triton's interpreter is Python."""

SMALLEST = 16
"""Constants below are left alone: channels of an image, groups, windows, axes, factors."""

TRIALS = 48
"""Most programs tried for one task."""

_ARCHITECTURE = re.compile(
    r"kernel|stride|padding|dilation|group|_?dim$|reduce_dim|eps|scal|clamp|min|max_?val|value|divi|layer|head|factor|"
    r"const|ratio|stage|slope|alpha|beta|hardtanh|pool|window|patch|block|seed|bias$|dropout|momentum|margin|expand",
    re.IGNORECASE,
)
_SEQUENCE = re.compile(r"seq|time|steps", re.IGNORECASE)
_BATCH = re.compile(r"batch|^b$|^bs$", re.IGNORECASE)

Probe = Callable[[Mapping[str, int]], int | None]
"""Elements of the largest input or output under these constants, None when the program does not run."""


def derive(source: str, probe: Probe) -> dict[str, dict[str, int]]:
    """`small` and `odd`, each only when at least one constant could be changed."""
    sizes = {name: value for name, value in constants(source).items() if _shrinkable(name, value)}
    if not sizes:
        return {}
    search = _Search(probe)
    small, most = search.small(sizes)
    if not small:
        return {}
    odd = search.odd(sizes, small, most)
    return {"small": small} | ({"odd": odd} if odd and odd != small else {})


def _shrinkable(name: str, value: int) -> bool:
    if _BATCH.search(name):
        return value > 2
    if value >= 128 and re.fullmatch(r"dim\d*", name, re.IGNORECASE):
        return True
    return value >= SMALLEST and not _ARCHITECTURE.search(name)


def _scaled(name: str, value: int, target: int) -> int:
    """The value for a target size: others keep their order, batches and sequences, which are loops, become short."""
    if _BATCH.search(name):
        return min(value, max(2, target // 8))
    if _SEQUENCE.search(name):
        return min(value, max(8, target // 4))
    return min(value, target)


def _odd(name: str, value: int, target: int) -> int:
    value -= 1 - value % 2
    if _BATCH.search(name):
        return min(value, 19 if target > 64 else 3)
    if _SEQUENCE.search(name):
        return min(value, 13)
    return min(value, target)


class _Search:
    """Tries choices against the probe, at most TRIALS of them."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._left = TRIALS

    def _elements(self, values: Mapping[str, int]) -> int | None:
        if self._left == 0:
            return None
        self._left -= 1
        return self._probe(values)

    def small(self, sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
        """The largest rung at which all constants shrink together and the tensors are small; else the smallest that
        runs; else constants one after the other. With it, the elements of its largest tensor."""
        best: dict[str, int] = {}
        most = 0
        for target in LADDER:
            values = _changed(sizes, {name: _scaled(name, value, target) for name, value in sizes.items()})
            elements = self._elements(values) if values else None
            if elements is not None:
                best, most = values, elements
                if elements <= ELEMENTS:
                    break
        if best:
            return best, most
        for target in UNIFORM:
            values = _changed(sizes, {name: min(value, target) for name, value in sizes.items()})
            elements = self._elements(values) if values else None
            if elements is not None:
                return values, elements
        return self._one_by_one(sizes, {}, lambda name, value: [_scaled(name, value, t) for t in (64, 32, 16)], None)

    def odd(self, sizes: Mapping[str, int], small: Mapping[str, int], most: int) -> dict[str, int]:
        """All sizes odd at once if that runs and stays small, else as many as can be, one after the other."""
        limit = 2 * max(ELEMENTS, most)
        graded = [{name: _odd(name, value, target) for name, value in sizes.items()} for target in ODD_LADDER]
        equal = [{name: min(value, target + 1) for name, value in sizes.items()} for target in UNIFORM]
        for choice in graded + equal:
            values = _changed(sizes, choice)
            elements = self._elements(values) if values else None
            if elements is not None and elements <= limit:
                return values
        return self._one_by_one(sizes, small, lambda name, value: [_odd(name, value, t) for t in ODD], limit)[0]

    def _one_by_one(
        self,
        sizes: Mapping[str, int],
        base: Mapping[str, int],
        choices: Callable[[str, int], Sequence[int]],
        limit: int | None,
    ) -> tuple[dict[str, int], int]:
        values, most = dict(base), 0
        for name, value in sizes.items():
            for choice in choices(name, value):
                elements = None if choice == value else self._elements({**values, name: choice})
                if elements is not None and (limit is None or elements <= limit):
                    values[name], most = choice, elements
                    break
        return values, most


def _changed(sizes: Mapping[str, int], values: Mapping[str, int]) -> dict[str, int]:
    return {name: value for name, value in values.items() if value != sizes[name]}
