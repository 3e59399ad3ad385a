"""The files of the memo: steps, the ledger of what was paid, the list of what was pruned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.canonical import Json
from engine.confirmation import Confirmation
from engine.errors import MissingError
from engine.ids import starting
from engine.memo import LEDGER, LOCKS
from engine.records import Facts, Measurement, MetricValue, Reply, Verdict

OUTCOMES: Mapping[str, Any] = {
    "reply": Reply,
    "facts": Facts,
    "verdict": Verdict,
    "baseline": Measurement,
    "timing": Measurement,
    "promotion": Measurement,
    "profile": tuple[MetricValue, ...],
    "confirm": Confirmation,
}
"""What a step of each kind holds."""

BESIDE = (LOCKS, "variants")
"""Folders beside those of the kinds: locks, and a cache of derived shape variants that costs nothing to make again."""

PRUNED = "pruned.jsonl"
RECENT_S = 3600.0
"""What was asked for or written within this time may belong to a run that has not noted it yet."""


@dataclass(frozen=True, slots=True)
class StepFile:
    """Where a step lies. `used_ns`: when it was last asked for, nanoseconds since 1970 by the file system's clock."""

    kind: str
    key: str
    path: Path
    bytes: int
    used_ns: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the ledger: who did the step, when (seconds since 1970), and what it cost."""

    t: float
    run_id: str
    cost: Json


@dataclass(slots=True)
class Ledger:
    """By (kind, key) the last time a step was done. `torn`: numbers of lines that cannot be read."""

    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    torn: list[int] = field(default_factory=list)


def steps_root(results: Path) -> Path:
    """The memo of a results folder; MissingError where there is none."""
    root = results / "steps"
    if not root.is_dir():
        raise MissingError(f"no folder {root}", hint="--results names the folder that holds runs/ and steps/")
    return root


def run_named(results: Path, word: str) -> str:
    """The run with this id, or with the only one that begins with it: a run that paid for a step, or has a folder below
    `results`. MissingError where there is none."""
    paid = {entry.run_id for entry in read_ledger(results / "steps").entries.values()}
    folders = {path.name for path in (results / "runs").glob("*") if path.is_dir()}
    found = starting(word, paid | folders, "runs")
    if found is None:
        hint = f"`ls {results / 'runs'}` shows the runs there are; the start of an id has four digits or more"
        raise MissingError(f"no run is called '{word}'", hint=hint)
    return found


def kind_folders(root: Path, kinds: Sequence[str]) -> list[Path]:
    """The folders of these kinds, of all without any; MissingError for one that the memo does not have."""
    found = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and path.name not in BESIDE}
    unknown = [kind for kind in kinds if kind not in found and kind not in OUTCOMES]
    if unknown:
        raise MissingError(f"no steps of kind {', '.join(unknown)}", hint=f"there are {', '.join(found) or 'none'}")
    return [path for name, path in found.items() if not kinds or name in kinds]


def step_files(root: Path, kinds: Sequence[str]) -> Iterator[StepFile]:
    """Every step that lies where a step can lie; one that another process takes away meanwhile is left out."""
    for folder in kind_folders(root, kinds):
        for path in sorted(folder.glob("[0-9a-f][0-9a-f]/[0-9a-f]*.json")):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            yield StepFile(folder.name, path.stem, path, status.st_size, status.st_mtime_ns)


def left_over(root: Path, kinds: Sequence[str], now: float) -> list[Path]:
    """Files that a killed process was writing or taking away: those that nobody touched for RECENT_S before `now`."""
    found = [path for folder in kind_folders(root, kinds) for path in sorted(folder.glob("*/.*"))]
    return [path for path in found if path.exists() and path.stat().st_mtime < now - RECENT_S]


def read_ledger(root: Path) -> Ledger:
    """What was paid, by step."""
    ledger = Ledger()
    for number, line in _lines(root / LEDGER):
        try:
            tree = json.loads(line)
            ledger.entries[tree["kind"], tree["key"]] = Entry(float(tree["t"]), str(tree["run_id"]), tree["cost"])
        except (ValueError, KeyError, TypeError):
            ledger.torn.append(number)
    return ledger


def read_pruned(root: Path) -> set[tuple[str, str]]:
    """Steps that were taken away on purpose."""
    found = set()
    for _, line in _lines(root / PRUNED):
        try:
            tree = json.loads(line)
            found.add((str(tree["kind"]), str(tree["key"])))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if path.exists():
        with path.open("rb") as file:
            yield from enumerate(file, start=1)


def seconds_of(cost: Json) -> float | None:
    """Wall seconds that a step took: the judge's work, or the wait for a reply."""
    if not isinstance(cost, dict):
        return None
    spent = cost.get("wall_s")
    return cost.get("latency_s") if spent is None else spent


def totals(costs: Iterable[Json]) -> tuple[float | None, float | None]:
    """Seconds and US dollars of all together; None where none of them has any."""
    seconds, usd = [], []
    for cost in costs:
        seconds.append(seconds_of(cost))
        usd.append(usd_of(cost))
    return _sum(seconds, 3), _sum(usd, 6)


def _sum(values: Iterable[float | None], digits: int) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), digits) if known else None


def usd_of(cost: Json) -> float | None:
    """US dollars; None where the step has no price or nobody knows it."""
    usage = cost.get("usage") if isinstance(cost, dict) else None
    return usage.get("cost_usd") if isinstance(usage, dict) else None
