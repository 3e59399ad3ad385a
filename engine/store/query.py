"""Questions to the database: read-only, and what-if over stored rule operands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.errors import MissingError, StoreError
from engine.rules import Expression, parse, to_sql
from engine.store.ingest import DATABASE, READ_CONFIG, Connection
from engine.store.views import identifier, json_path, literal
from engine.vocabulary import FACTS, THRESHOLD_PREFIX, OperandKind, operands

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
def _reader(results: Path) -> Iterator[Connection]:
    import duckdb

    path = results / DATABASE
    if not path.exists():
        raise MissingError(f"no database at {path}", hint="python -m engine.results ingest makes it from the journals")
    try:
        connection = duckdb.connect(str(path), read_only=True, config=dict(READ_CONFIG))
    except duckdb.Error as error:
        raise StoreError(f"{path} cannot be read: {error}", hint="another process is writing it; try again") from error
    try:
        yield connection
    except duckdb.Error as error:
        raise QueryError(str(error)) from error
    finally:
        connection.close()


def query(results: Path, sql: str) -> Answer:
    """The answer to one SQL query; raises QueryError with DuckDB's message, MissingError without a database."""
    with _reader(results) as connection:
        return _answer(connection, sql)


def _answer(connection: Connection, sql: str) -> Answer:
    cursor = connection.execute(sql)
    columns = tuple(str(column[0]) for column in cursor.description or ())
    return Answer(columns, tuple(cursor.fetchall()) if columns else ())


def export(results: Path, folder: Path, form: Literal["parquet", "csv"]) -> tuple[Path, ...]:
    """Every table and view as one file below `folder`; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with _reader(results) as connection:
        names = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'main' "
            "AND NOT starts_with(table_name, '_') ORDER BY table_name"
        ).fetchall()
        for (name,) in names:
            path = folder / f"{name}.{form}"
            beside = folder / f".{name}.{form}"
            options = "FORMAT parquet" if form == "parquet" else "FORMAT csv, HEADER"
            connection.execute(f"COPY (FROM {identifier(name)}) TO {literal(str(beside))} ({options})")
            beside.replace(path)
            written.append(path)
    return tuple(written)


def what_if(results: Path, rule: str) -> Answer:
    """How often `rule` would have been true, false and unknown at each place where rules were evaluated.

    A place is one moment of one task: its facts, the run's thresholds, and every operand that any rule read there. A
    name that no rule of the moment read is unknown. Raises RuleError for a faulty rule.
    """
    with _reader(results) as connection:
        return _answer(connection, _what_if_sql(parse(rule, _vocabulary(connection))))


def _vocabulary(connection: Connection) -> dict[str, OperandKind]:
    seen = {name for (name,) in connection.execute("SELECT DISTINCT unnest(json_keys(operands)) FROM rules").fetchall()}
    kept = "SELECT DISTINCT unnest(json_keys(thresholds)) FROM run_starts"
    thresholds = {name for (name,) in connection.execute(kept).fetchall()}
    metrics = {name for name in seen if not name.startswith(THRESHOLD_PREFIX)}
    return dict(operands(sorted(metrics), sorted(thresholds)))


def _what_if_sql(expression: Expression) -> str:
    names = sorted(expression.names)
    columns = "".join(f", {_operand(name)} AS {_alias(name)}" for name in names)
    says = to_sql(expression, _alias)
    return f"""
WITH moments AS (
    SELECT r.run_id, r.task_id, r.stage, r.kind, r.candidate_id{columns}
    FROM rules r JOIN tasks t USING (run_id, task_id) JOIN runs u USING (run_id)
    GROUP BY r.run_id, r.task_id, r.stage, r.kind, r.candidate_id),
outcomes AS (SELECT *, {says} AS says FROM moments)
SELECT t.category, o.stage, o.kind, count(*) AS moments, count(*) FILTER (o.says) AS "true",
       count(*) FILTER (NOT o.says) AS "false", count(*) FILTER (o.says IS NULL) AS "unknown"
FROM outcomes o JOIN tasks t USING (run_id, task_id)
GROUP BY t.category, o.stage, o.kind ORDER BY t.category, o.stage, o.kind
"""


def _alias(name: str) -> str:
    return identifier(f"operand {name}")


def _operand(name: str) -> str:
    if name in FACTS:
        return f"any_value(t.facts ->> {json_path(name)})"
    if name.startswith(THRESHOLD_PREFIX):
        return f"any_value(u.thresholds ->> {json_path(name.removeprefix(THRESHOLD_PREFIX))})"
    return f"any_value(r.operands ->> {json_path(name)})"
