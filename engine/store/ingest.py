"""Journals into results.duckdb: derived, idempotent, all or nothing. Deleting the file loses nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.canonical import Json
from engine.errors import StoreError
from engine.store.database import WRITE_WAIT_S, Connection, Mark, marks, replacing, turn
from engine.store.load import forget, load, load_events
from engine.store.tables import STEPS
from engine.store.views import literal


@dataclass(frozen=True, slots=True)
class Ingested:
    """`taken`: run ids whose journal was new or had grown; `unchanged` and `removed`: numbers of runs."""

    taken: tuple[str, ...]
    unchanged: int
    removed: int


def ingest(results: Path, *, wait_s: float = WRITE_WAIT_S) -> Ingested:
    """Bring the database of `results` up to its journals. Whoever reads it meanwhile keeps what he opened.

    Raises StoreError when another ingest lasts longer than `wait_s`, or a program holds the file open for writing
    (nothing is lost then, the next ingest catches up), and, after all others were taken, when a journal is damaged."""
    with turn(results, wait_s):
        known = marks(results, wait_s)
        found = {path.parent.name: path for path in sorted((results / "runs").glob("*/events.jsonl"))}
        ledger = results / "steps" / "ledger.jsonl"
        before = known or {}
        now = {name: _mark(path) for name, path in {**found, STEPS.name: ledger}.items()}
        changed = {run_id: path for run_id, path in found.items() if before.get(run_id) != now[run_id]}
        gone = before.keys() - found.keys() - {STEPS.name}
        moved = before.get(STEPS.name) != now[STEPS.name]
        refused: dict[str, str] = {}
        taken: list[str] = []
        if known is None or changed or gone or moved:
            with replacing(results, keep=known is not None) as connection:
                again = changed.keys() & before.keys()
                refused = load(connection, changed, ledger if moved else None, {*gone, *again})
                taken = [run_id for run_id in changed if run_id not in refused]
                _remember(connection, {name: now[name] for name in (*taken, STEPS.name)})
    if refused:
        listed = "\n".join(f"run {run_id}: {why}" for run_id, why in refused.items())
        raise StoreError(listed, hint="all other runs were taken; move the folders of these away")
    return Ingested(tuple(taken), len(found) - len(taken), len(gone))


class DuckDbStore:
    """The sink of `results`: takes one finished journal at a time."""

    def __init__(self, results: Path, *, wait_s: float = WRITE_WAIT_S) -> None:
        self.results = results
        self.wait_s = wait_s

    def take(self, run_id: str, events: list[Json]) -> int:
        """Replace the rows of `run_id` by those of `events`; returns their number. Raises StoreError as `ingest`."""
        with turn(self.results, self.wait_s):
            known = marks(self.results, self.wait_s)
            with replacing(self.results, keep=known is not None) as connection:
                forget(connection, [run_id])
                load_events(connection, run_id, events)
                # No file has this mark: where there is a journal, the next ingest takes it.
                _remember(connection, {run_id: (-1, -1)})
        return len(events)


def _mark(path: Path) -> Mark:
    """Taken before the file is read, so that what is appended meanwhile is seen by the next ingest."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (stat.st_size, stat.st_mtime_ns)


def _remember(connection: Connection, found: dict[str, Mark]) -> None:
    rows = ", ".join(f"({literal(name)}, {size}, {changed})" for name, (size, changed) in found.items())
    names = ", ".join(literal(name) for name in found)
    connection.execute(f"DELETE FROM _ingested WHERE run_id IN ({names})")
    connection.execute(f"INSERT INTO _ingested VALUES {rows}")
