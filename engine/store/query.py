"""Questions to the database, read-only, and its tables and views as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.codec import did_you_mean
from engine.errors import MissingError, StoreError
from engine.store.database import Connection, reading
from engine.store.views import identifier, literal

Cell = Any
"""What DuckDB returns for one value."""


class QueryError(StoreError):
    """DuckDB refuses a query; its own words."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Answer:
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@contextmanager
def reader(results: Path) -> Iterator[Connection]:
    """The database, read-only; DuckDB's complaints become QueryError."""
    import duckdb

    with reading(results) as connection:
        try:
            yield connection
        except duckdb.Error as error:
            raise QueryError(str(error)) from error


def query(results: Path, sql: str) -> Answer:
    """The answer to one SQL query; raises QueryError with DuckDB's message, MissingError without a database."""
    with reader(results) as connection:
        return answer_of(connection, sql)


def answer_of(connection: Connection, sql: str) -> Answer:
    """All rows of one query on an open connection."""
    cursor = connection.execute(sql)
    if cursor is None:
        raise QueryError("there is no statement in this query", hint="for example: FROM leaderboard WHERE rank = 1")
    columns = tuple(str(column[0]) for column in cursor.description or ())
    return Answer(columns, tuple(cursor.fetchall()) if columns else ())


FORMS = {"parquet": "FORMAT parquet", "csv": "FORMAT csv, HEADER", "jsonl": "FORMAT json"}
"""How COPY writes each form of file."""


def export(results: Path, folder: Path, form: str, names: Sequence[str] = ()) -> tuple[Path, ...]:
    """The named tables and views, or all, each as one file of a form of `FORMS` below `folder`; returns the files.
    MissingError for a name that is none, before anything is written."""
    with reader(results) as connection:
        rows = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'main' "
            "AND NOT starts_with(table_name, '_') ORDER BY table_name"
        ).fetchall()
        known = [name for (name,) in rows]
        unknown = [f"'{name}'{did_you_mean(name, known)}" for name in names if name not in known]
        if unknown:
            raise MissingError(f"no table or view {', '.join(unknown)}", hint=f"there are {', '.join(known)}")
        folder.mkdir(parents=True, exist_ok=True)
        return tuple(_copy(connection, name, folder, form) for name in names or known)


def _copy(connection: Connection, name: str, folder: Path, form: str) -> Path:
    beside = folder / f".{name}.{form}"
    connection.execute(f"COPY (FROM {identifier(name)}) TO {literal(str(beside))} ({FORMS[form]})")
    return beside.replace(folder / f"{name}.{form}")
