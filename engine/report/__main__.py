"""`python -m engine.report [RUN|SWEEP]`: the report as one HTML file, written again from journals and text files.

Of a run also its summary, usage and figures, and its table is shown. RUN is a run's folder or its id under
results/runs, SWEEP the id of a sweep, of both also the start; without one it is the run whose journal was written last.
Exit 0, 2 when there is no such journal, 1 when one cannot be read: a sweep's page then has the other jobs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.display import end_table
from engine.errors import EngineError
from engine.ids import starting
from engine.journal import read_events
from engine.project import resolve
from engine.report import rows, write_report, write_reports, write_sweep
from engine.report.events import with_every_field
from engine.report.readable import readable
from engine.report.sweep import sweep_ids, sweep_runs


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    results = resolve("results") if options.results is None else Path(options.results)
    try:
        return _run(options.name, results)
    except EngineError as error:
        sys.stderr.write(f"{error}\n" + (f"{error.hint}\n" if error.hint else ""))
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.report", description=__doc__)
    parser.add_argument("name", nargs="?", metavar="RUN|SWEEP", help="default: the run whose journal was written last")
    parser.add_argument("--results", metavar="DIR", help="folder with runs/ (default: results/)")
    return parser


def _run(name: str | None, results: Path) -> int:
    folder = _latest(results) if name is None else _folder(name, results)
    if folder is not None and (folder / "events.jsonl").is_file():
        return _report(folder)
    if name is None:
        sys.stderr.write(f"no run in {results / 'runs'}; `python -m engine` makes one\n")
        return 2
    sweeps = sweep_ids(results)
    sweep = starting(name, sweeps, "sweeps")
    if sweep is None:
        journal = (folder or results / "runs" / name) / "events.jsonl"
        runs = f"`ls {journal.parent.parent}` shows the runs there are"
        sys.stderr.write(f"no journal at {journal}; {runs}; sweeps: {', '.join(sweeps) or 'none'}\n")
        return 2
    sys.stdout.write(f"report: {write_sweep(results, sweep, sweep_runs(results, sweep))}\n")
    return 0


def _folder(name: str, results: Path) -> Path | None:
    """Of a run; None where no folder has that name, and none alone begins with it."""
    runs = results / "runs"
    if Path(name).is_dir():
        return Path(name)
    found = starting(name, (path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else (), "runs")
    return runs / found if found is not None else None


def _latest(results: Path) -> Path | None:
    journals = sorted((results / "runs").glob("*/events.jsonl"), key=lambda path: path.stat().st_mtime)
    return journals[-1].parent if journals else None


def _report(folder: Path) -> int:
    journal = folder / "events.jsonl"
    with readable(journal):
        events = with_every_field(read_events(journal))
        write_reports(folder, events)
        sys.stdout.write(end_table(rows(events), str(folder)))
        sys.stdout.write(f"report: {write_report(folder, events)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
