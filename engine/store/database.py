"""The file results.duckdb: who may write it, how it is replaced, and how it is read.

A writer changes a copy and renames it over the file, so that a reader keeps what it opened, never blocks a writer, and
never sees half of an ingest. Writers take turns by a lock on a file beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.canonical import digest, short
from engine.errors import MissingError, StoreError
from engine.store import present, views
from engine.store.tables import STEPS, TABLES

DATABASE = "results.duckdb"
WRITE_WAIT_S = 60.0
READ_WAIT_S = 10.0
_PAUSE_S = 0.05

READ_CONFIG = {
    # A misspelt function must not hang on a download.
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
CONFIG = {
    **READ_CONFIG,
    # Files stay readable for every DuckDB from 1.4 on.
    "storage_compatibility_version": "v1.4.0",
}

Connection = Any
"""duckdb.DuckDBPyConnection; its module is imported only when a database is used."""

Mark = tuple[int, int]
"""Size in bytes and time of change in ns of a file that was taken."""


def schema_version() -> str:
    """The version of tables and views: any change of their form is another one, and the database is built anew."""
    tables = [*(table.ddl for table in (*TABLES, STEPS)), *present.DDL]
    return short(digest([tables, present.FILL, views.forms()]))


@contextlib.contextmanager
def turn(results: Path, wait_s: float) -> Iterator[None]:
    """The right to write the database of `results`, one process at a time. StoreError after `wait_s`."""
    results.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with (results / f"{DATABASE}.lock").open("ab") as lock:
        while True:
            try:
                fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    message = f"the database is busy with another ingest for more than {wait_s:g} s"
                    hint = "the next run, or python -m engine.results ingest, catches up"
                    raise StoreError(message, hint=hint) from error
                time.sleep(_PAUSE_S)
        yield


def marks(results: Path, wait_s: float) -> dict[str, Mark] | None:
    """What the database has taken, by name of the run; None where there is none of this version."""
    if not (results / DATABASE).exists():
        return None
    with reading(results, wait_s) as connection:
        if _version(connection) != schema_version():
            return None
        rows = connection.execute("SELECT run_id, size, changed_ns FROM _ingested").fetchall()
    return {name: (size, changed) for name, size, changed in rows}


@contextlib.contextmanager
def reading(results: Path, wait_s: float = READ_WAIT_S) -> Iterator[Connection]:
    """The database, read-only. Waits up to `wait_s` for a program that has it open for writing (none of ours does);
    StoreError then, and MissingError where there is none."""
    import duckdb

    path = results / DATABASE
    deadline = time.monotonic() + wait_s
    while True:
        if not path.exists():
            hint = "python -m engine.results ingest makes it from the journals"
            raise MissingError(f"no database at {path}", hint=hint)
        try:
            connection = duckdb.connect(str(path), read_only=True, config=dict(READ_CONFIG))
            break
        except duckdb.Error as error:
            held = "lock" in str(error).lower()
            if held and time.monotonic() < deadline:
                time.sleep(_PAUSE_S)
                continue
            what = "is held open for writing by another program" if held else "cannot be opened"
            hint = "close it there, or open it read-only" if held else "delete that file: it is made again"
            raise StoreError(f"{path} {what}: {error}", hint=hint) from error
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def replacing(results: Path, *, keep: bool) -> Iterator[Connection]:
    """A connection, in a transaction, to what becomes the database when the block ends well: a copy of the present one
    where `keep`, else an empty one of this version. Only in one's `turn`."""
    import duckdb

    path, beside = results / DATABASE, results / f"{DATABASE}.new"
    _discard(beside)
    try:
        if keep:
            shutil.copyfile(path, beside)
        with contextlib.closing(_connect(beside)) as connection:
            if not keep:
                _create(connection)
            connection.execute("BEGIN")
            yield connection
            for statement in present.FILL:
                connection.execute(statement)
            _vary_views(connection)
            connection.execute("COMMIT")
        # Closing wrote everything into the file; what it leaves behind when it fails must not be lost in silence.
        if beside.with_name(f"{beside.name}.wal").exists():
            raise OSError(f"{beside} was not closed in full")
        beside.replace(path)
    except (OSError, duckdb.OperationalError, duckdb.FatalException) as error:
        raise StoreError(f"{path} cannot be written: {error}", hint="free some space, then ingest again") from error
    except duckdb.Error as error:
        hint = "delete that file and ingest again; where that fails, report it with the message"
        raise StoreError(f"{path} was not brought up to date, DuckDB refuses it: {error}", hint=hint) from error
    finally:
        _discard(beside)


def _discard(path: Path) -> None:
    for name in (path, path.with_name(f"{path.name}.wal")):
        name.unlink(missing_ok=True)


def _connect(path: Path) -> Connection:
    import duckdb

    return duckdb.connect(str(path), config=dict(CONFIG))


def _version(connection: Connection) -> str | None:
    if not connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = '_schema'").fetchall():
        return None
    row = connection.execute("SELECT version FROM _schema").fetchone()
    return str(row[0]) if row else None


def _create(connection: Connection) -> None:
    connection.execute("BEGIN")
    for table in (*TABLES, STEPS):
        connection.execute(table.ddl)
    for statement in present.DDL:
        connection.execute(statement)
    connection.execute("CREATE TABLE _ingested (run_id VARCHAR, size BIGINT, changed_ns BIGINT)")
    connection.execute("CREATE TABLE _schema (version VARCHAR)")
    connection.execute(f"INSERT INTO _schema VALUES ({views.literal(schema_version())})")
    # The version names their text, so that those of a kept database are as they should be.
    for statement in views.fixed():
        connection.execute(statement)
    connection.execute("COMMIT")


def _vary_views(connection: Connection) -> None:
    """The views with a column per threshold or metric, which follow what occurs."""
    keys = "SELECT DISTINCT unnest(json_keys(thresholds)) AS name FROM run_starts ORDER BY name"
    metrics = "SELECT DISTINCT metric FROM metrics ORDER BY metric"
    for statement in views.varying(_names(connection, keys), _names(connection, metrics)):
        connection.execute(statement)


def _names(connection: Connection, sql: str) -> list[str]:
    """What can name a column."""
    return [name for (name,) in connection.execute(sql).fetchall() if name and "\0" not in name]
