"""`python -m engine.results`: the database of all runs on the command line.

Exit codes: 0 done, 1 engine error, 2 a wrong query or rule, or no database, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine import store
from engine.errors import EngineError, MissingError, StoreError
from engine.project import resolve
from engine.results import text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    results = resolve("results") if options.results is None else Path(options.results)
    try:
        return _run(options, results)
    except EngineError as error:
        sys.stderr.write(f"{error}\n" + (f"{error.hint}\n" if error.hint else ""))
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has seen enough.
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.results", description="Results of all runs, as a database.")
    parser.add_argument("--results", metavar="DIR", help="folder with runs/ and steps/ (default: results/)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ingest", help="bring results.duckdb up to the journals")
    sql = commands.add_parser("sql", help="ingest, then print the answer to a query (docs/sql.md has examples)")
    sql.add_argument("query")
    export = commands.add_parser("export", help="ingest, then write every table and view to files")
    export.add_argument("folder", metavar="DIR", type=Path)
    export.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    what_if = commands.add_parser("whatif", help="count where a rule would have fired, from stored operands")
    what_if.add_argument("rule", help="for example 'headroom < 1.2 and ops > 1'")
    for command in (sql, what_if):
        form = command.add_mutually_exclusive_group()
        form.add_argument("--json", dest="show", action="store_const", const=text.as_json, default=text.table)
        form.add_argument("--csv", dest="show", action="store_const", const=text.as_csv)
    return parser


def _run(options: argparse.Namespace, results: Path) -> int:
    if options.results is not None and not results.is_dir():
        raise MissingError(f"no folder {results}", hint="--results names the folder that holds runs/ and steps/")
    if options.command == "ingest":
        sys.stdout.write(_told(store.ingest(results)))
        return 0
    _catch_up(results)
    if options.command == "export":
        files = store.export(results, options.folder, options.format)
        sys.stdout.write(f"{len(files)} files in {options.folder}\n")
        return 0
    ask = store.what_if if options.command == "whatif" else store.query
    sys.stdout.write(options.show(ask(results, options.rule if options.command == "whatif" else options.query)))
    return 0


def _catch_up(results: Path) -> None:
    try:
        store.ingest(results)
    except StoreError as error:
        sys.stderr.write(f"not brought up to date: {error}\n")


def _told(done: store.Ingested) -> str:
    removed = f", {done.removed} removed" if done.removed else ""
    return f"{len(done.taken)} runs taken, {done.unchanged} unchanged{removed}\n"


if __name__ == "__main__":
    sys.exit(main())
