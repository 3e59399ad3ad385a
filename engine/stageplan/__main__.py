"""`python -m engine.stageplan lint|explain`: stage plans checked, and read aloud, before anything is spent.

Both take overrides as `python -m engine` does. Exit codes: 0 no faults (lint may have printed warnings), 1 engine
error, 2 a fault in a plan or in the configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.errors import ConfigError, EngineError, Fault
from engine.project import resolve
from engine.stageplan.lint import Finding, Severity, lint

DEFAULT_RESULTS = "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _lint(options) if options.command == "lint" else _explain(options)
    except ConfigError as error:
        from engine.stageplan.plans import placed

        again = ConfigError(placed(error.faults, options.overrides), hint=error.hint)
        sys.stderr.write(f"{again}\n" + (f"{again.hint}\n" if again.hint else ""))
        return again.exit_code
    except EngineError as error:
        sys.stderr.write(f"{error}\n" + (f"{error.hint}\n" if error.hint else ""))
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.stageplan", description="Stage plans, before they run.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("lint", help="rules that cannot fire or always do, limits out of range, idle stages")
    check.add_argument(
        "--data", type=Path, metavar="PATH", help="results folder or results.duckdb to hold rules against"
    )
    tell = commands.add_parser("explain", help="what the plan will do with each chosen operator, in words")
    tell.add_argument("--category", metavar="NAME", help="as category=NAME: its plan and its representatives")
    tell.add_argument("--task", metavar="TASK", help="a bundled task's name, or a file in KernelBench form")
    for command in (check, tell):
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for python -m engine")
    return parser


def _lint(options: argparse.Namespace) -> int:
    from engine.stageplan.plans import every_plan, placed
    from engine.stageplan.recorded import counts, on_record

    own = resolve(DEFAULT_RESULTS)
    data = options.data if options.data is not None else own
    recorded = counts(data) if options.data is not None or data.exists() else ()
    found: dict[Finding, None] = {}
    for plans in every_plan(options.overrides):
        found |= dict.fromkeys((*lint(plans), *on_record(plans, recorded)))
    for finding in found:
        (fault,) = placed([finding.fault()], options.overrides)
        sys.stdout.write(f"{fault}\n")
    faults = sum(finding.severity is Severity.FAULT for finding in found)
    sys.stdout.write(f"{faults} faults, {len(found) - faults} warnings\n")
    return 2 if faults else 0


def _explain(options: argparse.Namespace) -> int:
    from engine.run import selected
    from engine.stageplan.explain import explain
    from engine.stageplan.plans import settings_of

    overrides = [*options.overrides, *_chosen(options)]
    settings = settings_of(overrides)
    operators = selected(settings)
    if not operators:
        raise ConfigError([Fault("task", "no operator is chosen")])
    sys.stdout.write("\n".join(explain(settings, operator) for operator in operators))
    return 0


def _chosen(options: argparse.Namespace) -> list[str]:
    found = [] if options.category is None else [f"category={options.category}"]
    if options.task is None:
        return found
    if Path(options.task).exists():
        return [*found, "task=path", f"task.path={options.task}"]
    return [*found, "task=bundled", f"task.names=[{options.task}]"]


if __name__ == "__main__":
    sys.exit(main())
