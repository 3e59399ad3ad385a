"""`python -m engine.tasks lint`: which faults of a task let wrong kernels pass, before anything is spent on it.

Exit codes: 0 no errors, 1 a task has an error (or the engine failed), 2 a wrong selection or no task, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from engine.command import exit_code
from engine.codec import decode, encode
from engine.errors import EngineError
from engine.judging.client import LINT_S, LintClient
from engine.project import conf_dir, project_root
from engine.records import Task, TaskLint
from engine.settings import JudgeSettings, TaskSettings
from engine.tasks import load_tasks

DATA_SETS = (".parquet", ".jsonl")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _lint(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.tasks", description="Reference operators.")
    commands = parser.add_subparsers(dest="command", required=True)
    lint = commands.add_parser("lint", help="say which faults of a task let wrong kernels pass; runs on the CPU")
    lint.add_argument(
        "tasks",
        nargs="*",
        metavar="TASK",
        help="name or pattern of bundled tasks, file, directory, glob, or KernelBench .parquet or .jsonl "
        "(default: every bundled task)",
    )
    lint.add_argument("--names", nargs="+", default=[], metavar="PATTERN", help="of what TASK holds only these")
    lint.add_argument("--levels", nargs="+", type=int, default=[], metavar="N", help="only these KernelBench levels")
    lint.add_argument("--numbers", metavar="RANGES", help="only these KernelBench problems, as '1-10,45'")
    lint.add_argument("--seconds", type=float, default=LINT_S, metavar="S", help="limit for one task (%(default)g)")
    lint.add_argument("--json", action="store_true", help="one JSON object a task instead of lines")
    return parser


def _lint(options: argparse.Namespace) -> int:
    tasks = [task for settings in _selections(options) for task in _loaded(settings)]
    told = [0, 0, 0]
    with tempfile.TemporaryDirectory() as scratch:
        client = LintClient(_judge_settings(), Path(scratch), options.seconds)
        try:
            for task in tasks:
                found = client.lint(task)
                sys.stdout.write("".join(f"{line}\n" for line in ([_json(found)] if options.json else lines(found))))
                sys.stdout.flush()
                told = [told[0] + bool(found.errors), told[1] + (not found.variants), told[2] + 1]
        finally:
            client.close()
    if not options.json:
        sys.stdout.write(f"{told[2]} tasks, {told[0]} with errors, {told[1]} not examined\n")
    return 1 if told[0] else 0


def lines(found: TaskLint) -> Iterator[str]:
    """One line a finding and one a remark; one that says so for a task with neither."""
    for finding in found.findings:
        yield f"{found.task_id}: {finding.severity.value}: {finding.code.value}: {finding.message}"
    for remark in found.remarks:
        yield f"{found.task_id}: remark: {remark}"
    if not found.findings and not found.remarks:
        yield f"{found.task_id}: nothing found"


def _json(found: TaskLint) -> str:
    return json.dumps(encode(found))


def _selections(options: argparse.Namespace) -> list[TaskSettings]:
    """One for all bundled names together, one for each file or folder."""
    bundled = [name for name in options.tasks if not _is_path(name)]
    chosen = (tuple(options.names), tuple(options.levels), options.numbers)
    found = []
    if bundled or not options.tasks:
        found.append(_selection("bundled", None, (tuple(bundled), (), None) if bundled else chosen))
    for path in options.tasks:
        if _is_path(path):
            source = "kernelbench" if path.endswith(DATA_SETS) else "path"
            found.append(_selection(source, path, chosen))
    return found


def _selection(
    source: str, path: str | None, chosen: tuple[tuple[str, ...], tuple[int, ...], str | None]
) -> TaskSettings:
    names, levels, numbers = chosen
    tree = {"source": source, "path": path, "of_category": False, "names": names, "exclude": (), "levels": levels}
    return decode(TaskSettings, {**tree, "numbers": numbers, "first": None, "sample": None, "seed": 0}, "selection")


def _is_path(name: str) -> bool:
    return Path(name).exists() or name.endswith((".py", *DATA_SETS)) or "/" in name


def _loaded(settings: TaskSettings) -> tuple[Task, ...]:
    return load_tasks(settings, (), project_root())


def _judge_settings() -> JudgeSettings:
    tree = yaml.safe_load((conf_dir() / "judge" / "default.yaml").read_text(encoding="utf-8"))
    return decode(JudgeSettings, tree, "conf/judge/default.yaml")


if __name__ == "__main__":
    sys.exit(main())
