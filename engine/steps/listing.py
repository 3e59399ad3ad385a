"""What the memo holds: one row a kind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from engine.steps.stored import Entry, Ledger, StepFile, read_ledger, step_files, totals
from engine.store import Answer

COLUMNS = ("kind", "steps", "bytes", "seconds", "usd", "oldest", "newest")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which steps: of these kinds (none: all), done by this run, done before or after a moment (seconds since 1970)."""

    kinds: tuple[str, ...] = ()
    run: str | None = None
    before: float | None = None
    after: float | None = None

    def takes(self, entry: Entry) -> bool:
        """Whether a step with this entry is meant."""
        mine = self.run is None or entry.run_id == self.run
        old = self.before is None or entry.t < self.before
        return mine and old and (self.after is None or entry.t >= self.after)


def listing(root: Path, wanted: Filter) -> Answer:
    """One row a kind and their sum: how many, bytes, what they cost when they were done, the first and the last."""
    found: dict[str, list[tuple[StepFile, Entry]]] = {}
    for step, entry in chosen(root, wanted, read_ledger(root)):
        found.setdefault(step.kind, []).append((step, entry))
    rows = [_row(kind, steps) for kind, steps in found.items()]
    if len(rows) > 1:
        rows.append(_row("all", [step for steps in found.values() for step in steps]))
    return Answer(COLUMNS, tuple(rows))


def chosen(root: Path, wanted: Filter, ledger: Ledger) -> Iterator[tuple[StepFile, Entry]]:
    """The steps that the filter takes. One without a line in the ledger tells its time and cost itself, and no run."""
    for step in step_files(root, wanted.kinds):
        entry = ledger.entries.get((step.kind, step.key)) or _own_entry(step)
        if entry is not None and wanted.takes(entry):
            yield step, entry


def _own_entry(step: StepFile) -> Entry | None:
    try:
        tree = json.loads(step.path.read_bytes())
        return Entry(float(tree["t"]), "", tree["cost"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Entry(step.used_ns / 1e9, "", None)


def _row(kind: str, steps: Sequence[tuple[StepFile, Entry]]) -> tuple[object, ...]:
    times = [entry.t for _, entry in steps]
    size, spent = sum(step.bytes for step, _ in steps), totals(entry.cost for _, entry in steps)
    return (kind, len(steps), size, *spent, moment(min(times)), moment(max(times)))


def moment(t: float) -> str:
    """Seconds since 1970 as UTC."""
    return datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S")
