"""The schema of the database as Markdown: columns and types as DuckDB has them, with what each means."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine.store.database import Connection, reading
from engine.store.ingest import ingest
from engine.store.views import MACROS, TABLE_MACROS, VARYING, VIEWS
from engine.store.words import COLUMNS, MACRO_WORDS, RELATIONS

HEAD = """# Schema of results.duckdb

Made by `python -m engine.results schema` from an empty database; [sql.md](sql.md) shows how it is asked,
[queries.sql](queries.sql) has questions. Tables hold the events of [journal.md](journal.md), one row each; views are
worked out from them. The file is derived: delete it, and `python -m engine.results ingest` makes it again.

Every table has the run, the event's number in it, its time, and the task and stage where they apply. NULL is unknown or
does not apply. Kinds of score (`score_kind`) never rank or average together.
"""


def describe() -> str:
    """The page docs/schema.md."""
    with tempfile.TemporaryDirectory() as folder:
        ingest(Path(folder))
        with reading(Path(folder)) as connection:
            columns = _columns(connection)
    views = [*VIEWS, *VARYING]
    tables = [name for name in columns if name not in views]
    parts = [HEAD, "## Tables\n", *_relations(tables, columns), "## Views\n", *_relations(views, columns)]
    return "\n".join([*parts, "## Macros\n", *_macros()])


def _columns(connection: Connection) -> Mapping[str, list[tuple[str, str]]]:
    """Name and type of each column, by table or view."""
    found: dict[str, list[tuple[str, str]]] = {}
    sql = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"
    order = "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal ORDER BY column_index"
    for name, *_ in connection.execute(sql).fetchall():
        if not name.startswith("_"):
            found.setdefault(name, [])
    for name, column, kind in connection.execute(order).fetchall():
        if name in found:
            found[name].append((column, kind))
    return found


def _relations(names: list[str], columns: Mapping[str, list[tuple[str, str]]]) -> Iterator[str]:
    for name in names:
        yield f"### {name}\n\n{RELATIONS[name]}\n"
        yield "| column | type | meaning |\n| --- | --- | --- |"
        yield "\n".join(f"| `{column}` | {kind} | {meaning(name, column)} |" for column, kind in columns[name]) + "\n"


def meaning(relation: str, column: str) -> str:
    """What a column holds, with its unit: its own words in this table or view, or those it shares with others."""
    own = f"{relation}.{column}"
    return COLUMNS[own] if own in COLUMNS else COLUMNS[column]


def _macros() -> Iterator[str]:
    yield "| macro | meaning |\n| --- | --- |"
    yield "\n".join(f"| `{head}` | {MACRO_WORDS[head]} |" for head in (*MACROS, *TABLE_MACROS)) + "\n"
