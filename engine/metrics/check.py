"""Whether every counter that the vocabulary spells exists: on named chips by CUPTI's host library, for ncu's own names
by ncu where it is installed, for the engine's own by what it answers."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.backends.answers import OWN_COUNTERS
from engine.errors import ProfilerError
from engine.settings import Metric
from profilers import ncu_names
from profilers.cupti_host import Host

CHIPS = ("GA100", "GH100", "GB100")
"""Data-centre chips of the last three generations: A100, H100 and H200, B200."""

HARDWARE = ("ncu", "cupti")
"""Tools whose counters a chip has or has not."""


@dataclass(frozen=True, slots=True)
class Spelled:
    """One raw counter and where the vocabulary names it."""

    counter: str
    metrics: tuple[str, ...]
    tools: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ghost:
    """A spelled counter that does not exist. `where`: the chip or tool that was asked; `right`: the nearest name that
    exists there, None where nothing is near."""

    spelled: Spelled
    where: str
    right: str | None
    why: str = "does not exist"


@dataclass(frozen=True, slots=True)
class Checked:
    """`done` and `left_out` are lines for people: what was verified by what, and what could not be."""

    ghosts: tuple[Ghost, ...]
    done: tuple[str, ...]
    left_out: tuple[str, ...]


class Lists(Protocol):
    """The counters of one chip."""

    def knows(self, name: str) -> bool: ...

    def suggest(self, name: str) -> str | None: ...


def spelled(metrics: Mapping[str, Metric], tools: Iterable[str]) -> tuple[Spelled, ...]:
    """Each counter that these tools are asked for, once, in the vocabulary's order."""
    where: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for name, metric in metrics.items():
        for tool in tools:
            for counter in metric.spellings[tool].counters if tool in metric.spellings else ():
                named, by = where.setdefault(counter, ({}, {}))
                named[name] = by[tool] = None
    return tuple(Spelled(counter, tuple(named), tuple(by)) for counter, (named, by) in where.items())


def check(metrics: Mapping[str, Metric], chips: Sequence[str], host: Host, ncu: str) -> Checked:
    """Every spelling against the lists that can be had here. ProfilerError for a chip that the library has not."""
    ghosts = list(own_ghosts(metrics))
    counters = spelled(metrics, HARDWARE)
    own = spelled(metrics, OWN_COUNTERS)
    done = [f"engine: {len(own)} names of its own answers"]
    for name in chips:
        with host.chip(name) as chip:
            ghosts += chip_ghosts(name, counters, chip)
        asked = sum(one.counter not in ncu_names.COMPUTED for one in counters)
        done.append(f"{name}: {asked} counters, by CUPTI {host.version} ({host.path})")
    found, verified, left_out = _by_ncu(counters, chips, shutil.which(ncu))
    others = sorted({tool for metric in metrics.values() for tool in metric.spellings} - {*HARDWARE, *OWN_COUNTERS})
    if others:
        left_out = (*left_out, f"{', '.join(others)}: no list of its names can be asked here")
    return Checked((*ghosts, *found), (*done, *verified), left_out)


def chip_ghosts(chip: str, counters: Iterable[Spelled], lists: Lists) -> list[Ghost]:
    """The counters that the chip does not have; names that ncu works out itself are none for ncu, and are for cupti."""
    ghosts = []
    for one in counters:
        if one.counter in ncu_names.COMPUTED:
            if "cupti" in one.tools:
                ghosts.append(Ghost(one, "cupti", None, "is worked out by ncu itself, which cupti cannot"))
        elif not lists.knows(one.counter):
            near = _closest(one.counter, ncu_names.COMPUTED, 0.8) if one.tools == ("ncu",) else None
            ghosts.append(Ghost(one, chip, lists.suggest(one.counter) or near))
    return ghosts


def own_ghosts(metrics: Mapping[str, Metric]) -> list[Ghost]:
    """Names spelled for the engine's own rungs that none of its answers has."""
    return [
        Ghost(one, tool, _closest(one.counter, known, 0.6))
        for tool, known in OWN_COUNTERS.items()
        for one in spelled(metrics, (tool,))
        if one.counter not in known
    ]


def _by_ncu(
    counters: Sequence[Spelled], chips: Sequence[str], ncu: str | None
) -> tuple[list[Ghost], tuple[str, ...], tuple[str, ...]]:
    """Ghosts by ncu's own lists; what was verified, and what was not and why."""
    mine = [one for one in counters if "ncu" in one.tools]
    computed = [one for one in mine if one.counter in ncu_names.COMPUTED]
    declared = f"{len(computed)} names that ncu works out itself are taken from its documentation"
    if ncu is None:
        return [], (), (f"ncu is not installed: {declared}",)
    ghosts: list[Ghost] = []
    done: list[str] = []
    left_out: list[str] = []
    for chip in (None, *chips):
        asked = computed if chip is None else [one for one in mine if one not in computed]
        try:
            listed = ncu_names.query(ncu, chip)
        except ProfilerError as error:
            left_out.append(f"{error}" + (f": {declared}" if chip is None else ""))
            continue
        for one in asked:
            base = one.counter.partition(".")[0]
            if base not in listed and one.counter not in listed:
                ghosts.append(Ghost(one, f"ncu for {chip}" if chip else "ncu", _closest(base, listed, 0.7)))
        done.append(f"{chip or 'launch attributes'}: {len(asked)} names, by {ncu}")
    return ghosts, tuple(done), tuple(left_out)


def _closest(name: str, known: Iterable[str], cutoff: float) -> str | None:
    return next(iter(difflib.get_close_matches(name, sorted(known), 1, cutoff)), None)


def told(ghost: Ghost) -> str:
    """A ghost in a line: who names it, where it does not exist, and what is right."""
    right = f"; the nearest that exists: {ghost.right}" if ghost.right else "; nothing near it exists"
    named = f"{', '.join(ghost.spelled.metrics)} ({', '.join(ghost.spelled.tools)})"
    return f"ghost: {named}: {ghost.spelled.counter} {ghost.why} on {ghost.where}{right}\n"
