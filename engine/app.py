"""One job of the command line: run it, show it, write its reports, take its journal into the database."""

from __future__ import annotations

import sys

from engine.canonical import Json
from engine.display import end_table, open_display
from engine.errors import StoreError
from engine.forecast import Forecast
from engine.journal import read_events
from engine.project import resolve
from engine.report import rows, write_reports
from engine.run import execute, foresee
from engine.settings import Settings, SweepJob


def run_job(settings: Settings, tree: Json, sweep: SweepJob | None) -> int:
    """The exit code of one job: 0 done, 1 a task failed, 75 replies are awaited. Raises EngineError otherwise."""
    from engine.store import ingest

    if settings.run.mode == "forecast":
        sys.stdout.write("".join(_forecast_lines(foresee(settings))))
        return 0
    display = open_display(settings.display.mode, sys.stderr)
    results = resolve(settings.paths.results)
    try:
        outcome = execute(settings, tree, sweep=sweep, listeners=(display.show,))
    finally:
        display.close()
    folder = results / "runs" / outcome.run_id
    events = read_events(folder / "events.jsonl")
    write_reports(folder, events)
    sys.stdout.write(end_table(rows(events), folder=str(folder)))
    try:
        ingest(results)
    except StoreError as error:
        # The journal is the truth; the next ingest catches up.
        sys.stderr.write(f"{error}\n")
    if outcome.waiting:
        sys.stderr.write(f"waiting for replies: {', '.join(outcome.waiting)}; the same command continues\n")
    return outcome.exit_code


def _forecast_lines(forecasts: tuple[Forecast, ...]) -> list[str]:
    lines = []
    for task in forecasts:
        lines.append(f"{task.task_id}: {task.category}, at most {task.calls} model calls\n")
        lines.append(f"  seeds: at most {task.seed_calls}\n")
        for stage in task.stages:
            what = f"skipped: {stage.skipped}" if stage.skipped else f"at most {stage.calls}"
            lines.append(f"  {stage.name}: {what}\n")
    lines.append(f"in all at most {sum(task.calls for task in forecasts)} model calls\n")
    return lines
