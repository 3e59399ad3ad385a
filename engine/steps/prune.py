"""Taking steps away, by kind, age and reference, beside engines that run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engine.canonical import Json
from engine.memo import Memo, append_line
from engine.steps.listing import Filter, chosen
from engine.steps.references import Uses, uses
from engine.steps.stored import PRUNED, RECENT_S, StepFile, left_over, read_ledger, totals
from engine.store import Answer

COLUMNS = ("kind", "verdict", "steps", "bytes", "seconds", "usd")


class Fate(StrEnum):
    """What becomes of a step that the filter takes."""

    REMOVE = "remove"
    NEEDED = "kept: an unfinished run needs it"
    RECENT = "kept: used within the hour"
    REFERRED = "kept: a run refers to it or paid for it"
    TAKEN = "kept: asked for meanwhile"


@dataclass(frozen=True, slots=True)
class Judged:
    """A step that the filter takes, and its fate. What it cost is what having it again costs."""

    step: StepFile
    cost: Json
    fate: Fate


def plan(results: Path, wanted: Filter, *, unreferenced: bool, clock: Callable[[], float] = time.time) -> list[Judged]:
    """The fate of every step that `wanted` takes; `unreferenced`: those stay that any run refers to or paid for.

    Steps are looked up before journals are read: one that is used after that has another time of use, which `remove`
    sees. A time of use in the future, after the clock was set back, counts as recent."""
    root, now = results / "steps", clock()
    ledger = read_ledger(root)
    found = list(chosen(root, wanted, ledger))
    known = uses(results)
    judged = []
    for step, entry in found:
        listed = (step.kind, step.key) in ledger.entries
        fate = _fate(step, entry.run_id if listed else None, known, now, unreferenced=unreferenced)
        judged.append(Judged(step, entry.cost, fate))
    return judged


def _fate(step: StepFile, run_id: str | None, known: Uses, now: float, *, unreferenced: bool) -> Fate:
    if step.used_ns / 1e9 > now - RECENT_S:
        return Fate.RECENT
    # A step without a line in the ledger may be that of any run that was killed before it wrote the line.
    if known.open_runs and (run_id is None or run_id in known.open_runs):
        return Fate.NEEDED
    inputs = _inputs(step)
    if known.needed.name(step.kind, step.key, inputs):
        return Fate.NEEDED
    if unreferenced and (run_id in known.runs or known.every.name(step.kind, step.key, inputs)):
        return Fate.REFERRED
    return Fate.REMOVE


def _inputs(step: StepFile) -> Json:
    try:
        return json.loads(step.path.read_bytes())["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove(results: Path, judged: list[Judged]) -> list[Judged]:
    """Take away what is to go, each under its lock and unless somebody asked for it since; what became of all."""
    memo = Memo(results / "steps", "prune")
    done = []
    for one in judged:
        gone = one.fate is not Fate.REMOVE or _remove(memo, one.step)
        done.append(one if gone else Judged(one.step, one.cost, Fate.TAKEN))
    return done


def _remove(memo: Memo, step: StepFile) -> bool:
    aside = step.path.with_name(f".{step.path.name}.pruned")
    with memo.locked(step.kind, step.key):
        try:
            step.path.rename(aside)
        except FileNotFoundError:
            return True
        # Whoever asked for it before the rename has touched the file; whoever asks after it waits for the lock.
        if aside.stat().st_mtime_ns != step.used_ns:
            aside.rename(step.path)
            return False
        line = {"t": round(time.time(), 6), "kind": step.kind, "key": step.key}
        append_line(memo.root / PRUNED, json.dumps(line, separators=(",", ":")).encode() + b"\n")
        aside.unlink()
    return True


def sweep_up(results: Path, kinds: tuple[str, ...], *, clock: Callable[[], float] = time.time) -> int:
    """Remove what killed processes left behind more than RECENT_S ago; how many files."""
    count = 0
    for path in left_over(results / "steps", kinds, clock()):
        path.unlink(missing_ok=True)
        count += 1
    return count


def told(judged: list[Judged]) -> Answer:
    """One row a kind and fate."""
    groups: dict[tuple[str, Fate], list[Judged]] = {}
    for one in judged:
        groups.setdefault((one.step.kind, one.fate), []).append(one)
    rows = []
    for (kind, fate), members in sorted(groups.items()):
        size = sum(one.step.bytes for one in members)
        rows.append((kind, fate.value, len(members), size, *totals(one.cost for one in members)))
    return Answer(COLUMNS, tuple(rows))
