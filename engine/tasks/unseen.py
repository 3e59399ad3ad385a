"""Shape variants that nobody has seen: sizes drawn from a secret seed, between those that the task's own variants have.

What the sizes of a task have in common is kept, because a kernel may rely on it: powers of two stay powers of two,
multiples of 8 multiples of 8, and constants that agree in every variant and in the file agree in what is drawn.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from engine.tasks.derive import ELEMENTS, TRIALS, Probe
from engine.tasks.variants import constants

Sizes = Mapping[str, int]

DRAWS = 4
"""Draws of all sizes at once before they are changed one after the other."""


def draw_unseen(
    source: str, variants: Mapping[str, Sizes], *, seed: int, count: int, probe: Probe
) -> dict[str, dict[str, int]]:
    """Up to `count` variants, `unseen1` first, each of other sizes than every one of `variants`, the file's own and the
    others drawn. Fewer, or none, where `probe` admits no more.

    A size lies between the least and the largest of `variants`; where these have only one, between it and its double,
    towards the file's own. It is odd where what the sizes have in common allows that. Equal seeds give equal variants.
    """
    full = dict(constants(source))
    known = [{**full, **values} for values in variants.values()]
    varied = sorted({name for values in variants.values() for name in values})
    groups = _groups(varied, known, full)
    if not any(len(choices) > 1 for choices in groups.values()):
        return {}
    search = _Search(random.Random(seed), groups, known, full, probe)
    found: dict[str, dict[str, int]] = {}
    while len(found) < count:
        sizes = search.next()
        if sizes is None:
            break
        found[f"unseen{len(found) + 1}"] = sizes
    return found


def _groups(varied: Sequence[str], known: Sequence[Sizes], full: Sizes) -> dict[tuple[str, ...], Sequence[int]]:
    """What each constant may be, those together that agree everywhere."""
    together: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in varied:
        together[*(sizes[name] for sizes in known), full[name]].append(name)
    return {tuple(names): choices_of(values[:-1], values[-1]) for values, names in together.items()}


def choices_of(declared: Sequence[int], full: int) -> Sequence[int]:
    """What a size may be whose variants are `declared`, in a file where it is `full`; rising."""
    low, high = min(declared), max(declared)
    if low == high and full > high:
        high = min(full, 2 * high)
    every = (*declared, full)
    if all(value > 0 and value & (value - 1) == 0 for value in every):
        return [1 << power for power in range(low.bit_length() - 1, high.bit_length())]
    step = math.gcd(*every)
    return range(low, high + 1, step)


class _Search:
    """Draws against the probe, at most TRIALS of them."""

    def __init__(
        self,
        draw: random.Random,
        groups: Mapping[tuple[str, ...], Sequence[int]],
        known: Sequence[Sizes],
        full: Sizes,
        probe: Probe,
    ) -> None:
        self._draw, self._groups, self._probe = draw, groups, probe
        self._full = full
        self._names = [name for names in groups for name in names]
        self._bases = [{name: sizes[name] for name in self._names} for sizes in known]
        self._taken = [*self._bases, {name: full[name] for name in self._names}]
        self._left = TRIALS
        largest = max(filter(None, map(self._elements, self._bases)), default=0)
        self._limit = 2 * max(ELEMENTS, largest)

    def next(self) -> dict[str, int] | None:
        """Sizes that were not given yet and with which the program runs, or None."""
        tries: list[Callable[[], dict[str, int] | None]] = [*[self._at_once] * DRAWS, self._one_by_one]
        for attempt in tries:
            sizes = attempt()
            if sizes is not None and sizes not in self._taken:
                self._taken.append(sizes)
                return {name: value for name, value in sizes.items() if value != self._full[name]}
        return None

    def _at_once(self) -> dict[str, int] | None:
        sizes = {name: size for names in self._groups for size in [self._size(names)] for name in names}
        return sizes if sizes not in self._taken and self._admits(sizes) else None

    def _one_by_one(self) -> dict[str, int] | None:
        """One of the task's own variants, changed where the program still runs."""
        sizes = dict(self._draw.choice(self._bases))
        for names in self._draw.sample(sorted(self._groups), len(self._groups)):
            changed = {**sizes, **dict.fromkeys(names, self._size(names))}
            if changed != sizes and self._admits(changed):
                sizes = changed
        return sizes

    def _size(self, names: tuple[str, ...]) -> int:
        """One of the choices, an odd one if there is any: of two that are drawn, one that no variant has."""
        choices, used = self._groups[names], {sizes[names[0]] for sizes in self._taken}
        wanted = [size for size in choices if size % 2] or choices
        return min(self._draw.choices(wanted, k=2), key=lambda size: size in used)

    def _admits(self, sizes: Sizes) -> bool:
        elements = self._elements(sizes)
        return elements is not None and elements <= self._limit

    def _elements(self, sizes: Sizes) -> int | None:
        if self._left == 0:
            return None
        self._left -= 1
        return self._probe(sizes)
