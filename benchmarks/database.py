"""How fast journals become the database, and how fast its views answer, on synthetic journals.

    python -m benchmarks.database --rows 1000000 --repeat 5 --folder DIR

`ingest`: from a folder without a database to a closed file. `again`: nothing changed. `one run`: one journal of all was
touched. A view is answered in full, every row and column, as an Arrow table; the first answer is not counted. Seconds
are wall-clock; `cpu` is the processor time of all threads. The folder stays, and is used again when it has the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import duckdb

from benchmarks.synthetic_journals import Synthetic
from engine.store import ingest
from engine.store.database import DATABASE, reading
from engine.store.views import VARYING, VIEWS

ROWS_A_SECOND = 300_000
VIEW_MS = 200.0


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of `n` repetitions; `rows`: taken, or answered."""

    name: str
    rows: int
    n: int
    median_s: float
    least_s: float
    most_s: float
    cpu_s: float


def timed(name: str, repeat: int, work: Callable[[], int], before: Callable[[], object] = int) -> Timed:
    """Do `work`, which answers a number of rows, `repeat` times, each after `before`."""
    seconds, spent, rows = [], [], 0
    for _ in range(repeat):
        before()
        cpu, started = _cpu(), time.perf_counter()
        rows = work()
        seconds.append(time.perf_counter() - started)
        spent.append(_cpu() - cpu)
    return Timed(name, rows, repeat, statistics.median(seconds), min(seconds), max(seconds), statistics.median(spent))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(folder: Path, rows: int, repeat: int) -> list[Timed]:
    """Ingest and all views of the journals in `folder`, which hold `rows` rows."""
    database = folder / DATABASE

    def take() -> int:
        ingest(folder)
        return rows

    def touch() -> None:
        os.utime(next((folder / "runs").glob("*/events.jsonl")))

    found = [timed("ingest", repeat, take, lambda: database.unlink(missing_ok=True))]
    found.append(timed("again", repeat, lambda: take() and 0))
    found.append(timed("one run", repeat, lambda: len(ingest(folder).taken), touch))
    with reading(folder) as connection:
        asked = [*(f"FROM {name}" for name in (*VIEWS, *VARYING)), "FROM fast_p(1.2)"]
        for sql in asked:
            connection.sql(sql).to_arrow_table()
            found.append(timed(sql, 3 * repeat, partial(_rows, connection, sql)))
    return found


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    return int(connection.sql(sql).to_arrow_table().num_rows)


def filled(folder: Path, rows: int) -> int:
    """Rows of the journals in `folder`, which are written when it has none of this size."""
    note = folder / "size.json"
    if note.exists():
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["asked"] == rows:
            return int(known["rows"])
    made = Synthetic(folder)
    made.fill(rows)
    note.write_text(json.dumps({"asked": rows, "rows": made.rows}), encoding="utf-8")
    return made.rows


def table(found: list[Timed]) -> str:
    lines = ["| what | rows | n | median ms | least | most | cpu ms |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for one in found:
        spread = f"{one.median_s * 1e3:.0f} | {one.least_s * 1e3:.0f} | {one.most_s * 1e3:.0f} | {one.cpu_s * 1e3:.0f}"
        lines.append(f"| {one.name} | {one.rows} | {one.n} | {spread} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows = filled(options.folder, options.rows)
    found = measure(options.folder, rows, options.repeat)
    sys.stdout.write(table(found))
    rate = rows / found[0].median_s
    slow = [one.name for one in found[3:] if one.median_s * 1e3 > VIEW_MS]
    sys.stdout.write(f"\n{rows} rows, {rate:,.0f} rows/s; views over {VIEW_MS:g} ms: {', '.join(slow) or 'none'}\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1), encoding="utf-8")
    return 0 if rate >= ROWS_A_SECOND and not slow else 1


if __name__ == "__main__":
    sys.exit(main())
