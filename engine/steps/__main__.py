"""`python -m engine.steps list|verify|prune`: the memo that all runs share.

Exit codes: 0 done, 1 verify found a corrupt or misplaced step, or an engine error, 2 a wrong option or no memo,
130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.codec import encode
from engine.command import exit_code
from engine.project import resolve
from engine.results.text import as_json, table
from engine.steps.listing import Filter, listing
from engine.steps.prune import Fate, Judged, plan, remove, sweep_up, told
from engine.steps.stored import run_named, steps_root
from engine.steps.verify import Verified, verify
from engine.store import Answer

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "prune" and not (options.kind or options.older_than is not None or options.unreferenced):
        parser.error("prune: say what may go: --kind, --older-than or --unreferenced")
    results = resolve("results") if options.results is None else Path(options.results)
    return exit_code(lambda: _run(options, results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.steps", description="The memo: steps that were paid for.")
    parser.add_argument("--results", metavar="DIR", help="folder with runs/ and steps/ (default: results/)")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("list", help="how many steps of each kind, their bytes and what they cost")
    check = commands.add_parser("verify", help="read every step, work out its address and outcome again")
    prune = commands.add_parser("prune", help="take steps away that no unfinished run needs; a dry run without --yes")
    for command in (show, check, prune):
        command.add_argument("--kind", action="append", default=[], metavar="KIND", help="only this one; repeatable")
        command.add_argument("--json", action="store_true", help="JSON instead of text")
    for command in (show, prune):
        command.add_argument(
            "--older-than", type=age, metavar="AGE", help="done longer ago than 90s, 20m, 12h, 30d, 4w"
        )
        command.add_argument("--run", metavar="RUN", help="done by this run (its id, or the start)")
    show.add_argument("--newer-than", type=age, metavar="AGE", help="done since then")
    prune.add_argument("--unreferenced", action="store_true", help="only what no run refers to or paid for")
    prune.add_argument("--yes", action="store_true", help="do it")
    return parser


def age(text: str) -> float:
    """Seconds of an age like 12h; ArgumentTypeError names the form."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a number and one of s, m, h, d, w, as in 12h, got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def _run(options: argparse.Namespace, results: Path) -> int:
    root = steps_root(results)
    if options.command == "verify":
        return _verify(verify(root, options.kind), as_tree=options.json)
    run = None if options.run is None else run_named(results, options.run)
    now = time.time()
    before = None if options.older_than is None else now - options.older_than
    if options.command == "list":
        after = None if options.newer_than is None else now - options.newer_than
        _show(listing(root, Filter(tuple(options.kind), run, before, after)), as_tree=options.json)
        return 0
    wanted = Filter(tuple(options.kind), run, before)
    judged = plan(results, wanted, unreferenced=options.unreferenced)
    if options.yes:
        judged = remove(results, judged)
    _show(told(judged), as_tree=options.json)
    sys.stderr.write(_pruned(judged, sweep_up(results, wanted.kinds) if options.yes else None))
    return 0


def _show(answer: Answer, *, as_tree: bool) -> None:
    sys.stdout.write(as_json(answer) if as_tree else table(answer))


def _verify(found: Verified, *, as_tree: bool) -> int:
    if as_tree:
        findings = [encode(finding) | {"path": str(finding.path)} for finding in found.findings]
        sys.stdout.write(json.dumps({"steps": found.steps, "errors": found.errors, "findings": findings}, indent=1))
        sys.stdout.write("\n")
    else:
        sys.stdout.write("".join(f"{finding}\n" for finding in found.findings))
        notes = len(found.findings) - found.errors
        sys.stdout.write(f"{found.steps} steps read, {found.errors} errors, {notes} notes\n")
    return 1 if found.errors else 0


def _pruned(judged: list[Judged], swept: int | None) -> str:
    count = sum(one.fate is Fate.REMOVE for one in judged)
    if swept is None:
        return f"{count} steps would go; --yes takes them away\n"
    return f"{count} steps removed" + (f", and {swept} files of killed processes" if swept else "") + "\n"


if __name__ == "__main__":
    sys.exit(main())
