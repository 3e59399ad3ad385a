"""`python -m engine.results`: the database of all runs on the command line.

Exit codes: 0 done, 1 engine error, 2 a wrong query, rule or name, or no database, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engine import store
from engine.command import exit_code
from engine.errors import MissingError, StoreError
from engine.project import resolve
from engine.results import comparing, replaying, text
from engine.store.describe import describe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    results = resolve("results") if options.results is None else Path(options.results)
    return exit_code(lambda: _run(options, results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.results", description="Results of all runs, as a database.")
    parser.add_argument("--results", metavar="DIR", help="folder with runs/ and steps/ (default: results/)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ingest", help="bring results.duckdb up to the journals")
    sql = commands.add_parser("sql", help="ingest, then print the answer to a query (docs/queries.sql has examples)")
    sql.add_argument("query")
    export = commands.add_parser("export", help="ingest, then write tables and views, or training records, to files")
    export.add_argument("folder", metavar="DIR", type=Path)
    export.add_argument("--format", choices=sorted(store.FORMS), help="default: parquet, or jsonl with --training")
    what = export.add_mutually_exclusive_group()
    what.add_argument(
        "--view", action="append", default=[], metavar="NAME", help="this table or view alone; repeatable"
    )
    what.add_argument("--training", action="store_true", help="training.jsonl: every judged change of a kernel")
    what_if = commands.add_parser("whatif", help="a rule with another expression, over stored evaluations")
    what_if.add_argument("expression", help="for example 'speedup < 0.25'")
    what_if.add_argument("--rule", metavar="NAME", help="the rule in whose place it is replayed")
    what_if.add_argument("--runs", metavar="RUNS", help="only these: a run, sweep, label or NAME=VALUE")
    what_if.add_argument("--category", metavar="NAME", help="only plans of this category")
    what_if.add_argument("--stage", metavar="NAME", help="only the rule of this stage")
    compare = commands.add_parser("compare", help="best speed-ups and costs of two runs over the tasks that both have")
    compare.add_argument("a", metavar="A", help="a run, sweep, SWEEP:JOB, label or NAME=VALUE")
    compare.add_argument("b", metavar="B")
    compare.add_argument("--json", action="store_true")
    commands.add_parser("schema", help="tables, views and macros as Markdown (docs/schema.md)")
    for command in (sql, what_if):
        form = command.add_mutually_exclusive_group()
        form.add_argument("--json", dest="show", action="store_const", const="json", default="table")
        form.add_argument("--csv", dest="show", action="store_const", const="csv")
    return parser


def _run(options: argparse.Namespace, results: Path) -> int:
    if options.command == "schema":
        sys.stdout.write(describe())
        return 0
    if options.results is not None and not results.is_dir():
        raise MissingError(f"no folder {results}", hint="--results names the folder that holds runs/ and steps/")
    if options.command == "ingest":
        sys.stdout.write(_told(store.ingest(results)))
        return 0
    _catch_up(results)
    sys.stdout.write(_COMMANDS[options.command](options, results))
    return 0


def _sql(options: argparse.Namespace, results: Path) -> str:
    return text.SHOW[options.show](store.query(results, options.query))


def _what_if(options: argparse.Namespace, results: Path) -> str:
    scope = store.Scope(options.runs, options.category, options.stage)
    if options.rule is not None:
        return replaying.SHOW[options.show](store.replay(results, options.expression, options.rule, scope))
    if scope != store.Scope():
        raise MissingError("--runs, --category and --stage need --rule", hint="name the rule that is to be replayed")
    return text.SHOW[options.show](store.what_if(results, options.expression))


def _compare(options: argparse.Namespace, results: Path) -> str:
    compared = store.compare(results, options.a, options.b)
    return comparing.as_json(compared) if options.json else comparing.as_text(compared)


def _export(options: argparse.Namespace, results: Path) -> str:
    if not options.training:
        files = store.export(results, options.folder, options.format or "parquet", options.view)
        return f"{len(files)} files in {options.folder}\n"
    if options.format not in (None, "jsonl"):
        raise MissingError("training records are JSON lines", hint="leave --format out")
    done = store.export_training(results, options.folder)
    told = [f"{done.records} records in {done.path}"]
    told += [f"{done.repeated} found again in other runs"] if done.repeated else []
    told += [f"{done.left_out} left out, whose source is gone"] if done.left_out else []
    return f"{'; '.join(told)}\n"


_COMMANDS: Mapping[str, Callable[[argparse.Namespace, Path], str]] = {
    "sql": _sql,
    "whatif": _what_if,
    "compare": _compare,
    "export": _export,
}


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
