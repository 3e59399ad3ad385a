"""One job of the command line: run it, show it, write its reports, take its journal into the database."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.canonical import Json
from engine.command import reader_left, silence
from engine.decode import run_identity
from engine.display import Display, end_table, forecast_text, open_display
from engine.errors import EngineError, StoreError
from engine.expectation import as_foretold, foretell
from engine.files import write_whole
from engine.history import read_history, read_own
from engine.journal import read_events
from engine.project import resolve
from engine.report import rows, summary, write_report, write_reports
from engine.run import Listener, execute, foresee
from engine.settings import JobEnd, Settings, SweepJob


def run_job(settings: Settings, tree: Json, sweep: SweepJob | None, *, leave_ingest: bool = False) -> JobEnd:
    """Run one job and show it. Code 0 done, 1 a task failed, 75 replies are awaited. Raises EngineError otherwise.

    `leave_ingest`: the command that started the jobs of a sweep takes all journals into the database at its end."""
    number = sweep.job if sweep is not None else 0
    if settings.run.mode == "forecast":
        _foretell(settings, run_identity({**tree, "run": {**tree["run"], "mode": "run"}}))
        return JobEnd(number, 0, None, None, "")
    display = open_display(settings.display.mode, sys.stderr)
    results = resolve(settings.paths.results)
    try:
        outcome = execute(settings, tree, sweep=sweep, listeners=(_watched(display),))
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
        told = f"{end_table(rows(events), folder=str(folder))}report: {write_report(folder, events)}\n"
    else:
        told = job_line(sweep, events, found=outcome.found)
    left_early = reader_left(sys.stdout, told)
    if sweep is None or not leave_ingest or left_early:
        take_in(results)
    if sweep is not None and left_early:
        raise KeyboardInterrupt
    why = outcome.budget or ""
    if outcome.failed:
        why = f"lost {', '.join(outcome.failed)}"
    if outcome.waiting:
        why = f"waiting for replies: {', '.join(outcome.waiting)}"
        reader_left(sys.stderr, f"{why}; the same command continues\n")
    left = str(results) if sweep is not None and leave_ingest else None
    return JobEnd(number, outcome.exit_code, outcome.run_id, left, why)


def _watched(display: Display) -> Listener:
    """Shows each event. Where nobody reads what is shown any more, the run ends as by Ctrl-C: it would spend unseen."""
    left = False

    def show(event: Json) -> None:
        nonlocal left
        if left:
            return
        try:
            display.show(event)
        except BrokenPipeError as error:
            left = True
            silence(sys.stderr)
            raise KeyboardInterrupt from error

    return show


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
            reader_left(sys.stdout, end_table(rows(events), folder=str(folder)))
        take_in(results)


def take_in(results: Path) -> None:
    """Bring the database up to the journals; where that cannot be done now, say so: they are the truth."""
    from engine.store import ingest

    try:
        ingest(results)
    except StoreError as error:
        reader_left(sys.stderr, f"{error}\n")


def job_line(sweep: SweepJob, events: Sequence[Json], *, found: bool) -> str:
    """One line for one job of a sweep, whose table is the view `sweep`."""
    told = summary(events)
    means = [f"geomean {value:.3f}x {kind}" for kind, value in told["geomean_speedup"].items()]
    parts = [f"{told['solved']} of {told['tasks']} solved", *means, f"run {told['run_id']}"]
    known = ["finished before, nothing was done"] if found else []
    return f"job {sweep.job}  {' '.join(sweep.overrides)}: {', '.join([*parts, *known])}\n"


def _foretell(settings: Settings, run_id: str) -> None:
    """Print what the run of this id would do; with `run.write`, leave it and the rendered prompts there, too."""
    results = resolve(settings.paths.results)
    tasks = foresee(settings)
    history = read_history(results, settings.llm.model)
    told = foretell(settings, tasks, history, read_own(results, run_id))
    text = json.dumps(as_foretold(told, history), indent=1, ensure_ascii=False) + "\n"
    reader_left(sys.stdout, text if settings.run.form == "json" else forecast_text(told, history, settings.run.write))
    if settings.run.write is None:
        return
    folder = Path(settings.run.write).expanduser()
    write_whole(folder / "forecast.json", text)
    for task in tasks:
        for prompt in task.prompts:
            messages = "\n\n".join(f"<!-- {m.role} -->\n{m.content}" for m in prompt.messages)
            write_whole(folder / task.task_id / f"{prompt.name}.prompt.md", messages + "\n")
