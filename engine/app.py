"""One job of the command line: run it, show it, write its reports, take its journal into the database."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.canonical import Json
from engine.decode import run_identity
from engine.display import end_table, forecast_text, open_display
from engine.errors import EngineError, StoreError
from engine.files import write_whole
from engine.forecast import as_history, as_tree, expected
from engine.history import read_history
from engine.journal import read_events
from engine.project import resolve
from engine.report import rows, summary, write_report, write_reports
from engine.run import execute, foresee
from engine.settings import JobEnd, Settings, SweepJob


def run_job(settings: Settings, tree: Json, sweep: SweepJob | None, *, leave_ingest: bool = False) -> JobEnd:
    """Run one job and show it. Code 0 done, 1 a task failed, 75 replies are awaited. Raises EngineError otherwise.

    `leave_ingest`: the command that started the jobs of a sweep takes all journals into the database at its end."""
    number = sweep.job if sweep is not None else 0
    if settings.run.mode == "forecast":
        _foretell(settings)
        return JobEnd(number, 0, None, None, "")
    display = open_display(settings.display.mode, sys.stderr)
    results = resolve(settings.paths.results)
    try:
        outcome = execute(settings, tree, sweep=sweep, listeners=(display.show,))
    except (EngineError, KeyboardInterrupt):
        _leave_partial(results, run_identity(tree), shown=sweep is None)
        raise
    finally:
        display.close()
    folder = results / "runs" / outcome.run_id
    events = read_events(folder / "events.jsonl")
    if not (sweep is not None and outcome.found):
        write_reports(folder, events)
    if sweep is None:
        sys.stdout.write(end_table(rows(events), folder=str(folder)))
        sys.stdout.write(f"report: {write_report(folder, events)}\n")
    else:
        sys.stdout.write(job_line(sweep, events, found=outcome.found))
    if sweep is None or not leave_ingest:
        take_in(results)
    why = outcome.budget or ""
    if outcome.failed:
        why = f"lost {', '.join(outcome.failed)}"
    if outcome.waiting:
        why = f"waiting for replies: {', '.join(outcome.waiting)}"
        sys.stderr.write(f"{why}; the same command continues\n")
    left = str(results) if sweep is not None and leave_ingest else None
    return JobEnd(number, outcome.exit_code, outcome.run_id, left, why)


def _leave_partial(results: Path, run_id: str, *, shown: bool) -> None:
    """What a run that stops early has found so far: its files, its table and its rows in the database."""
    folder = results / "runs" / run_id
    # What stopped the run, a full disk perhaps, must be what the user is told.
    with contextlib.suppress(EngineError, OSError):
        events = read_events(folder / "events.jsonl")
        if not any(event["kind"] == "task_started" for event in events):
            return
        write_reports(folder, events)
        if shown:
            sys.stdout.write(end_table(rows(events), folder=str(folder)))
        take_in(results)


def take_in(results: Path) -> None:
    """Bring the database up to the journals; where that cannot be done now, say so: they are the truth."""
    from engine.store import ingest

    try:
        ingest(results)
    except StoreError as error:
        sys.stderr.write(f"{error}\n")


def job_line(sweep: SweepJob, events: Sequence[Json], *, found: bool) -> str:
    """One line for one job of a sweep, whose table is the view `sweep`."""
    told = summary(events)
    means = [f"geomean {value:.3f}x {kind}" for kind, value in told["geomean_speedup"].items()]
    parts = [f"{told['solved']} of {told['tasks']} solved", *means, f"run {told['run_id']}"]
    known = ["finished before, nothing was done"] if found else []
    return f"job {sweep.job}  {' '.join(sweep.overrides)}: {', '.join([*parts, *known])}\n"


def _foretell(settings: Settings) -> None:
    """Print what the run would do; with `run.write`, leave it and the rendered prompts in that folder, too."""
    results = resolve(settings.paths.results)
    tasks = foresee(settings)
    history = read_history(results, settings.llm.model)
    told = [(task, expected(settings, task, history)) for task in tasks]
    tree = {"tasks": [as_tree(*pair) for pair in told], "history": as_history(history)}
    text = json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
    sys.stdout.write(text if settings.run.form == "json" else forecast_text(told, history))
    if settings.run.write is None:
        return
    folder = Path(settings.run.write).expanduser()
    write_whole(folder / "forecast.json", text)
    for task in tasks:
        for prompt in task.prompts:
            messages = "\n\n".join(f"<!-- {m.role} -->\n{m.content}" for m in prompt.messages)
            write_whole(folder / task.task_id / f"{prompt.name}.prompt.md", messages + "\n")
