"""Journals into tables, many runs at a time: lines are sorted by kind here, and DuckDB parses each once, with types.

The next batch is sorted while DuckDB works on the one before.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.canonical import Json
from engine.errors import StoreError
from engine.journal import VERSION, read_events, whole_lines
from engine.store.database import Connection
from engine.store.tables import STEPS, TABLES, Table
from engine.store.views import literal

BATCH_BYTES = 128 << 20
"""Text that is sorted and then parsed together: enough for all cores, small beside memory."""
LINE_BYTES = 4 << 20
"""The longest line of the fast way. DuckDB gives each thread twice as much of a file: more would leave cores idle."""

_KIND = b'"kind":"'
_COSTS = "['$.wall_s', '$.latency_s', '$.gpu_s', '$.usage.cost_usd']"
_LEDGER = "{t: 'DOUBLE', run_id: 'VARCHAR', kind: 'VARCHAR', key: 'VARCHAR', cost: 'JSON', pid: 'BIGINT'}"

Lines = dict[str, list[bytes]]
"""Lines of journals by kind of event."""


def load(
    connection: Connection, journals: Mapping[str, Path], ledger: Path | None, gone: Iterable[str]
) -> dict[str, str]:
    """In the running transaction, which may begin anew: drop the rows of the runs in `gone`, add those of `journals`,
    by run id, and replace the steps by the lines of the ledger. Returns the runs that are damaged, or that DuckDB
    refuses, with what is wrong in one line; nothing of them is added."""
    import duckdb

    names = tuple(gone)
    # The second way looks at every line, and takes values of another type than their column as NULL.
    for strict in (True, False):
        refused: dict[str, str] = {}
        try:
            forget(connection, names)
            _load(connection, _batches(journals, refused, checked=not strict), ledger, strict=strict)
        except (duckdb.OperationalError, duckdb.FatalException):
            raise  # disk or memory, not what the journals hold
        except duckdb.Error:
            connection.execute("ROLLBACK")
            connection.execute("BEGIN")
        else:
            return refused
    return _one_by_one(connection, journals, ledger, names)


def _one_by_one(
    connection: Connection, journals: Mapping[str, Path], ledger: Path | None, gone: Iterable[str]
) -> dict[str, str]:
    """Each run in a transaction of its own, so that one which DuckDB refuses costs no other; a new one at the end."""
    import duckdb

    refused: dict[str, str] = {}
    forget(connection, gone)
    _load(connection, iter(()), ledger, strict=False)
    for run_id, path in journals.items():
        connection.execute("COMMIT")
        connection.execute("BEGIN")
        try:
            _load(connection, _batches({run_id: path}, refused, checked=True), None, strict=False)
        except (duckdb.OperationalError, duckdb.FatalException):
            raise
        except duckdb.Error as error:
            refused[run_id] = f"{path}: {str(error).splitlines()[0]}"
            connection.execute("ROLLBACK")
            connection.execute("BEGIN")
    return refused


def forget(connection: Connection, names: Iterable[str]) -> None:
    """Drop all rows of these runs, and that they were taken."""
    listed = ", ".join(literal(name) for name in sorted(names))
    if listed:
        for table in ("_ingested", *(table.name for table in TABLES)):
            connection.execute(f"DELETE FROM {table} WHERE run_id IN ({listed})")


def load_events(connection: Connection, run_id: str, events: Iterable[Json]) -> None:
    """Add the rows of one run's events."""
    _load(connection, iter([_by_kind_of(run_id, events)]), None, strict=False)


def _load(connection: Connection, batches: Iterator[Lines], ledger: Path | None, *, strict: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        running = pool.submit(_load_ledger, connection, ledger, Path(folder)) if ledger else None
        for number, lines in enumerate(batches):
            files = _write(lines, Path(folder), number)
            if running is not None:
                running.result()
            running = pool.submit(_insert_all, connection, files, strict)
        if running is not None:
            running.result()


def _load_ledger(connection: Connection, path: Path, folder: Path) -> None:
    """A line that is none is left out."""
    connection.execute(f"DELETE FROM {STEPS.name}")
    data = whole_lines(path.read_bytes()) if path.exists() else b""
    if not data:
        return
    copy = folder / "ledger.jsonl"
    copy.write_bytes(data)
    source = f"read_ndjson({literal(str(copy))}, columns={_LEDGER}, ignore_errors=true)"
    connection.execute(f"CREATE TEMP TABLE _lines AS FROM {source}")
    # A row number by a window function takes three times as long.
    connection.execute(
        f"INSERT INTO {STEPS.name} SELECT run_id, rowid + 1, t, kind, key, "
        "coalesce(TRY_CAST(found[1] AS DOUBLE), TRY_CAST(found[2] AS DOUBLE)), TRY_CAST(found[3] AS DOUBLE), "
        "TRY_CAST(found[4] AS DOUBLE), cost "
        f"FROM (SELECT rowid, *, json_extract_string(cost, {_COSTS}) AS found FROM _lines) WHERE run_id IS NOT NULL"
    )
    connection.execute("DROP TABLE _lines")


def _batches(journals: Mapping[str, Path], refused: dict[str, str], *, checked: bool) -> Iterator[Lines]:
    """Lines of all journals by kind, about `BATCH_BYTES` at a time; damaged runs go to `refused`."""
    batch: Lines = defaultdict(list)
    size = 0
    for run_id, path in journals.items():
        try:
            # The file may have grown since it was marked: the next ingest sees that and takes the run anew.
            lines = None if checked else _by_kind(whole_lines(path.read_bytes()), run_id)
            if lines is None:
                lines = _by_kind_of(run_id, read_events(path))
            size += path.stat().st_size
        except (StoreError, OSError) as error:
            refused[run_id] = str(error)
            continue
        for kind, found in lines.items():
            batch[kind] += found
        if size >= BATCH_BYTES:
            yield batch
            batch, size = defaultdict(list), 0
    yield batch


def _by_kind(data: bytes, run_id: str) -> Lines | None:
    """The lines of a journal as the engine writes it, kind before any content; None for one of another form."""
    head = f'{{"v":{VERSION},"run_id":"{run_id}","seq":'.encode()
    found: dict[bytes, list[bytes]] = defaultdict(list)
    for line in data.splitlines(keepends=True):
        start = line.find(_KIND) + len(_KIND)
        if start < len(head) or not line.startswith(head):
            return None
        found[line[start : line.find(b'"', start)]].append(line)
    return {kind.decode(): lines for kind, lines in found.items()}


def _by_kind_of(run_id: str, events: Iterable[Json]) -> Lines:
    lines: Lines = defaultdict(list)
    for event in events:
        if event["run_id"] == run_id:
            lines[event["kind"]].append(json.dumps(event, separators=(",", ":")).encode() + b"\n")
    return lines


def _write(lines: Lines, folder: Path, number: int) -> dict[str, Path]:
    """One file for each table that has rows."""
    files = {}
    for table in TABLES:
        if any(kind in lines for kind in table.kinds):
            files[table.name] = folder / f"{table.name}{number}.jsonl"
            with files[table.name].open("wb") as file:
                for kind in table.kinds:
                    file.writelines(lines.get(kind) or ())
    return files


def _insert_all(connection: Connection, files: Mapping[str, Path], strict: bool) -> None:
    for table in TABLES:
        if table.name in files:
            connection.execute(_insert(table, files[table.name], strict))
            files[table.name].unlink()


def _insert(table: Table, path: Path, strict: bool) -> str:
    """`strict`: a value of another type than its column is an error, and not NULL."""
    read, values = [], []
    for column in table.columns:
        kept = strict or column.type in ("JSON", "VARCHAR")
        read.append(f"{literal(column.field)}: {literal(column.type if kept else 'VARCHAR')}")
        values.append(f'"{column.field}"' if kept else f'TRY_CAST("{column.field}" AS {column.type})')
    limit = f", maximum_object_size={LINE_BYTES}" if strict else ""
    source = f"read_ndjson({literal(str(path))}, columns={{{', '.join(read)}}}{limit})"
    return f"INSERT INTO {table.name} SELECT {', '.join(values)} FROM {source}"
