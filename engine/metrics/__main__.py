"""`python -m engine.metrics list|check|show|docs`: the vocabulary of metrics on the command line.

Exit codes: 0 done, 1 engine error, 2 a spelling that does not exist, bad configuration, or something needed is missing,
130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.__main__ import compose, decode_config, diagnose
from engine.command import exit_code
from engine.errors import ConfigError, MissingError, ProfilerError
from engine.judge.configuration import backend_names
from engine.metrics import check, listing, show
from engine.project import resolve
from engine.results import text
from engine.settings import Settings
from profilers.cupti_host import Host

GHOSTS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: int(options.run(options)), "engine.metrics: ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine.metrics",
        description="What metrics there are, whether their counters exist, and what is known of one kernel.",
        epilog="OVERRIDE: as for python -m engine, such as backend=cuda, or a raw counter: "
        "'+raw.x={unit: bytes, aggregate: sum, ncu: NAME}'",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listed = commands.add_parser("list", help="every metric: unit, sense, spellings, and what gives it on this machine")
    checked = commands.add_parser("check", help="every spelled counter against the lists of chips and tools, offline")
    named = f"CUPTI's name of a chip, repeatable (default: {' '.join(check.CHIPS)})"
    checked.add_argument("--chip", action="append", metavar="NAME", help=named)
    checked.add_argument("--cupti", type=Path, metavar="FILE", help="libcupti.so.13 to ask (default: looked for)")
    checked.add_argument("--ncu", default="ncu", metavar="PROGRAM", help="Nsight Compute, asked where it is installed")
    lenient = "end with 0 and a message where no libcupti answers, as on a platform without it"
    checked.add_argument("--if-possible", action="store_true", help=lenient)
    docs = commands.add_parser("docs", help="the table of docs/metrics.md")
    for command, run in ((listed, _list), (checked, _check), (docs, _docs)):
        command.add_argument("overrides", nargs="*", metavar="OVERRIDE")
        command.set_defaults(run=run)
    shown = commands.add_parser("show", help="the metrics of one kernel, as runs recorded them or profiled now")
    shown.add_argument("kernel", metavar="KERNEL", help="a Python file, or the id of a candidate")
    shown.add_argument("--results", metavar="DIR", help="folder with runs/ and steps/ (default: results/)")
    shown.add_argument("--profile", metavar="REFERENCE", help="judge and profile the file now against this reference")
    shown.add_argument("--backend", choices=backend_names(), default="auto", help="to profile on; default: auto")
    shown.add_argument("--metrics", default="", metavar="A,B", help="profile these only (default: all)")
    shown.add_argument("--json", dest="form", action="store_const", const=text.as_json, default=text.table)
    shown.set_defaults(run=_show)
    return parser


def _settings(overrides: Sequence[str]) -> Settings:
    faults = diagnose(overrides)
    if faults:
        raise ConfigError(faults)
    return decode_config(compose(overrides))


def _list(options: argparse.Namespace) -> int:
    settings = _settings(options.overrides)
    sys.stdout.write(text.table(listing.listing(settings)))
    ladder = ", ".join(settings.backends[settings.backend].profilers)
    sys.stdout.write(f"ladder of back-end {settings.backend}: {ladder}\n")
    for name, reason in listing.unavailable(settings).items():
        sys.stdout.write(f"not on this machine: {name} ({reason})\n")
    return 0


def _docs(options: argparse.Namespace) -> int:
    sys.stdout.write(listing.markdown(_settings(options.overrides).metrics))
    return 0


def _check(options: argparse.Namespace) -> int:
    settings = _settings(options.overrides)
    try:
        host = Host(options.cupti)
    except ProfilerError as error:
        if options.if_possible:
            sys.stdout.write(f"not checked: {error}\n{error.hint}\n")
            return 0
        raise MissingError(str(error), hint=error.hint) from error
    try:
        found = check.check(settings.metrics, options.chip or check.CHIPS, host, options.ncu)
    except ProfilerError as error:
        raise MissingError(str(error), hint=error.hint) from error
    for line in found.done:
        sys.stdout.write(f"checked {line}\n")
    for line in found.left_out:
        sys.stdout.write(f"not checked: {line}\n")
    for ghost in found.ghosts:
        sys.stdout.write(check.told(ghost))
    sys.stdout.write(f"{len(found.ghosts)} of the spelled counters do not exist\n" if found.ghosts else "no ghosts\n")
    return GHOSTS if found.ghosts else 0


def _show(options: argparse.Namespace) -> int:
    if options.profile is not None:
        names = tuple(name for name in options.metrics.split(",") if name)
        values = show.profiled(options.kernel, options.profile, options.backend, names)
        sys.stdout.write(options.form(show.as_answer(values)))
        return 0
    results = resolve("results") if options.results is None else Path(options.results)
    sys.stdout.write(options.form(show.recorded(results, options.kernel)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
