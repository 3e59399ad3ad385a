"""Journals into results.duckdb: derived, idempotent, one transaction a run. Deleting the file loses nothing."""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.canonical import Json, canonical, digest, short
from engine.errors import StoreError
from engine.journal import whole_lines
from engine.store import views
from engine.store.tables import STEPS, TABLES, Table

DATABASE = "results.duckdb"
LOCK_WAIT_S = 30.0
CONFIG = {
    # Files stay readable for every DuckDB from 1.4 on.
    "storage_compatibility_version": "v1.4.0",
    # A misspelt function must not hang on a download.
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
READ_CONFIG = {name: value for name, value in CONFIG.items() if name != "storage_compatibility_version"}

_LEDGER_TYPES = "{t: 'DOUBLE', run_id: 'VARCHAR', kind: 'VARCHAR', key: 'VARCHAR', cost: 'JSON', pid: 'BIGINT'}"

Connection = Any
"""duckdb.DuckDBPyConnection; its module is imported only when a database is used."""


@dataclass(frozen=True, slots=True)
class Ingested:
    """`taken`: run ids whose journal was new or had grown; `unchanged` and `removed`: numbers of runs."""

    taken: tuple[str, ...]
    unchanged: int
    removed: int


def schema() -> str:
    """The version of the tables: any change of their form is another one, and the database is built anew."""
    return short(digest([table.ddl for table in (*TABLES, STEPS)]))


def ingest(results: Path, *, wait_s: float = LOCK_WAIT_S) -> Ingested:
    """Bring the database of `results` up to its journals. Raises StoreError when another process holds the database
    for longer than `wait_s` (nothing is lost then, the next ingest catches up), and, after all others were taken, when
    a journal is damaged."""
    files = {path.parent.name: path for path in sorted((results / "runs").glob("*/events.jsonl"))}
    with _writer(results, wait_s) as connection:
        known = {name for (name,) in connection.execute("SELECT run_id FROM _ingested").fetchall()}
        gone = known - files.keys() - {STEPS.name}
        for run_id in sorted(gone):
            _replace_run(connection, run_id, b"", None)
        taken, refused = [], []
        for run_id, path in files.items():
            try:
                taken += [run_id] if _take_file(connection, run_id, path) else []
            except StoreError as error:
                refused.append(str(error))
        _take_ledger(connection, results / "steps" / "ledger.jsonl")
        create_views(connection)
    if refused:
        raise StoreError("\n".join(refused), hint="all other runs were taken; move the folders of these away")
    return Ingested(tuple(taken), len(files) - len(taken), len(gone))


class DuckDbStore:
    """The sink of `results`: takes one finished journal at a time."""

    def __init__(self, results: Path, *, wait_s: float = LOCK_WAIT_S) -> None:
        self.results = results
        self.wait_s = wait_s

    def take(self, run_id: str, events: list[Json]) -> int:
        """Replace the rows of `run_id` by those of `events`; returns their number. Raises StoreError as `ingest`."""
        data = b"".join(canonical(event).encode() + b"\n" for event in events)
        with _writer(self.results, self.wait_s) as connection:
            _replace_run(connection, run_id, data, _mark(data))
            create_views(connection)
        return len(events)


@contextmanager
def _writer(results: Path, wait_s: float) -> Iterator[Connection]:
    """The database for writing, with the tables of this version; one process at a time."""
    results.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with (results / f"{DATABASE}.lock").open("ab") as lock:
        _acquire(lock.fileno(), deadline, wait_s)
        connection = _open(results / DATABASE)
        try:
            yield connection
        finally:
            connection.close()


def _acquire(descriptor: int, deadline: float, wait_s: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                message = f"the database is busy with another ingest for more than {wait_s:g} s"
                raise StoreError(
                    message, hint="the next run, or python -m engine.results ingest, catches up"
                ) from error
            time.sleep(0.05)


def _open(path: Path) -> Connection:
    import duckdb

    try:
        connection = duckdb.connect(str(path), config=dict(CONFIG))
    except duckdb.Error as error:
        held = "lock" in str(error).lower()
        what = "is held open by another program" if held else "cannot be opened"
        hint = "close the notebook or shell that has it open" if held else "delete that file: it is made again"
        raise StoreError(f"{path} {what}: {error}", hint=hint) from error
    try:
        if _version(connection) == schema():
            return connection
        connection.close()
        for name in (path, path.with_name(f"{path.name}.wal")):
            name.unlink(missing_ok=True)
        connection = duckdb.connect(str(path), config=dict(CONFIG))
        _create(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: Connection) -> str | None:
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = '_schema'").fetchall():
        return None
    row = connection.execute("SELECT version FROM _schema").fetchone()
    return str(row[0]) if row else None


def _create(connection: Connection) -> None:
    connection.execute("BEGIN")
    for table in (*TABLES, STEPS):
        connection.execute(table.ddl)
    connection.execute("CREATE TABLE _ingested (run_id VARCHAR, size BIGINT, sha VARCHAR)")
    connection.execute("CREATE TABLE _schema (version VARCHAR)")
    connection.execute("INSERT INTO _schema VALUES (?)", [schema()])
    create_views(connection)
    connection.execute("COMMIT")


def create_views(connection: Connection) -> None:
    """Make all views anew; those with a column per threshold or metric follow what occurs."""
    for name, sql in views.STATIC.items():
        connection.execute(f"CREATE OR REPLACE VIEW {name} AS {sql}")
    keys = "SELECT DISTINCT unnest(json_keys(thresholds)) AS name FROM run_starts ORDER BY name"
    thresholds = [name for (name,) in connection.execute(keys).fetchall()]
    metrics = [name for (name,) in connection.execute("SELECT DISTINCT metric FROM metrics ORDER BY metric").fetchall()]
    connection.execute(f"CREATE OR REPLACE VIEW sweep AS {views.sweep(thresholds)}")
    connection.execute(f"CREATE OR REPLACE VIEW metric_wide AS {views.metric_wide(metrics)}")


def _mark(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


def _unchanged(connection: Connection, name: str, mark: tuple[int, str]) -> bool:
    query = "SELECT size, sha FROM _ingested WHERE run_id = ?"
    return bool(connection.execute(query, [name]).fetchone() == mark)


def _take_file(connection: Connection, run_id: str, path: Path) -> bool:
    data = whole_lines(path.read_bytes())
    mark = _mark(data)
    if _unchanged(connection, run_id, mark):
        return False
    _replace_run(connection, run_id, data, mark)
    return True


@contextmanager
def _transaction(connection: Connection, what: str) -> Iterator[None]:
    import duckdb

    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException as error:
        connection.execute("ROLLBACK")
        if isinstance(error, duckdb.Error):
            raise StoreError(f"{what} cannot be taken into the database: {error}") from error
        raise


def _replace_run(connection: Connection, run_id: str, data: bytes, mark: tuple[int, str] | None) -> None:
    """All rows of one run anew; `mark` None: the run is gone."""
    with _transaction(connection, f"the journal of run {run_id}"), _as_file(data) as path:
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE _events AS SELECT json AS e, json ->> '$.kind' AS k "
            "FROM read_ndjson_objects(?) WHERE json ->> '$.run_id' = ?",
            [path, run_id],
        )
        present = {kind for (kind,) in connection.execute("SELECT DISTINCT k FROM _events").fetchall()}
        known = connection.execute("SELECT 1 FROM _ingested WHERE run_id = ?", [run_id]).fetchone()
        for table in TABLES:
            if known:
                connection.execute(f"DELETE FROM {table.name} WHERE run_id = ?", [run_id])
            if present.intersection(table.kinds):
                connection.execute(_insert(table), list(table.kinds))
        connection.execute("DROP TABLE _events")
        _remember(connection, run_id, mark)


def _insert(table: Table) -> str:
    values = (
        f"e -> '$.{column.field}'" if column.type == "JSON" else f"TRY_CAST(e ->> '$.{column.field}' AS {column.type})"
        for column in table.columns
    )
    kinds = ", ".join("?" for _ in table.kinds)
    return f"INSERT INTO {table.name} SELECT {', '.join(values)} FROM _events WHERE k IN ({kinds})"


def _remember(connection: Connection, name: str, mark: tuple[int, str] | None) -> None:
    connection.execute("DELETE FROM _ingested WHERE run_id = ?", [name])
    if mark is not None:
        connection.execute("INSERT INTO _ingested VALUES (?, ?, ?)", [name, *mark])


def _take_ledger(connection: Connection, path: Path) -> None:
    data = whole_lines(path.read_bytes()) if path.exists() else b""
    mark = _mark(data)
    if _unchanged(connection, STEPS.name, mark):
        return
    with _transaction(connection, str(path)), _as_file(data) as copy:
        connection.execute(f"DELETE FROM {STEPS.name}")
        connection.execute(
            f"INSERT INTO {STEPS.name} SELECT run_id, row_number() OVER (), t, kind, key, "
            "coalesce(TRY_CAST(cost ->> '$.wall_s' AS DOUBLE), TRY_CAST(cost ->> '$.latency_s' AS DOUBLE)), "
            "TRY_CAST(cost ->> '$.usage.cost_usd' AS DOUBLE), cost "
            f"FROM read_ndjson(?, columns={_LEDGER_TYPES}, ignore_errors=true) WHERE run_id IS NOT NULL",
            [copy],
        )
        _remember(connection, STEPS.name, mark)


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A copy without the half line that a running job may just be writing, which DuckDB would refuse."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.write(data)
        file.flush()
        yield file.name
