"""The report of a sweep: what each job asked for and reached, against the job that spent most.

The jobs of a sweep are the runs whose journals hold an event sweep_job with its id; a run can be several jobs of one
sweep, where a value changes nothing that its configuration says."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from engine.canonical import Json
from engine.errors import StoreError
from engine.files import write_whole
from engine.journal import read_events, whole_lines
from engine.report import plots
from engine.report.events import with_every_field
from engine.report.page import NAME, Spent, end_of, last, render, spent
from engine.report.readable import readable
from engine.report.rows import OperatorRow, rows
from engine.report.totals import KindTotals, by_kind, geomean

MEASURES = {"usd": "Money", "tokens": "Tokens", "calls": "Model calls", "candidates": "Candidates", "gpu_s": "GPU time"}
"""Costs of a job that can be compared, the ones that say most first."""


@dataclass(frozen=True, slots=True)
class Job:
    number: int
    overrides: tuple[str, ...]
    run_id: str
    outcome: str
    """done, budget or failed; unfinished where the journal has no end."""
    why: str
    """What stopped a job that could not run; empty otherwise."""
    rows: tuple[OperatorRow, ...]
    spent: Spent
    report: str | None
    """Of the run, relative to the sweep's page; None where it was not written."""

    @property
    def values(self) -> dict[str, str]:
        """Of its overrides, by name."""
        parts = (override.partition("=") for override in self.overrides)
        return {name: value for name, _, value in parts}

    @property
    def kinds(self) -> set[str]:
        """Of the scores of its best kernels."""
        return {row.score_kind for row in self.rows if row.score_kind is not None}

    def ended(self, outcome: str) -> int:
        """How many stages did."""
        return sum(stage.outcome == outcome for row in self.rows for stage in row.stages)


@dataclass(frozen=True, slots=True)
class Compared:
    """One job against the reference, in scores of one kind. `lost`: 1 minus the geometric mean, over the `pairs`
    operators that both solved, of the job's speed-up over the reference's; None without pairs. `missed`: operators that
    only the reference solved. `worst`: the pair that lost most and what it kept."""

    job: Job
    totals: KindTotals | None
    lost: float | None
    pairs: int
    missed: int
    worst: tuple[str, float] | None
    saved: Mapping[str, float | None]
    reference: bool


@dataclass(frozen=True, slots=True)
class KindSection:
    kind: str
    reference: Job
    jobs: tuple[Compared, ...]
    plots: tuple[tuple[str, Markup], ...]


@dataclass(frozen=True, slots=True)
class Ending:
    """Jobs in which an operator went the same way to the same kernel."""

    jobs: tuple[int, ...]
    row: OperatorRow


def sweep_runs(results: Path, sweep_id: str) -> list[Path]:
    """Folders of the runs that were jobs of it."""
    return [folder for folder in _runs(results) if any(e["sweep_id"] == sweep_id for e in _announced(folder))]


def sweep_ids(results: Path) -> list[str]:
    """Of all sweeps, each once."""
    return sorted({event["sweep_id"] for folder in _runs(results) for event in _announced(folder)})


def _runs(results: Path) -> list[Path]:
    return sorted(path.parent for path in (results / "runs").glob("*/events.jsonl"))


def _announced(folder: Path) -> list[Json]:
    """A finished run that is a job once more gets the event at its end, so every line counts."""
    found = []
    for line in whole_lines((folder / "events.jsonl").read_bytes()).splitlines():
        if b'"sweep_job"' in line:
            # A damaged line is told of where its run is read.
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                event = json.loads(line)
                found += [event] if event["kind"] == "sweep_job" and isinstance(event["sweep_id"], str) else []
    return found


def write_sweep(results: Path, sweep_id: str, folders: Iterable[Path]) -> Path:
    """Write the page of a sweep, results/sweeps/<id>.html, from the journals of its runs; the path. StoreError, after
    the page of all others was written, for runs that cannot be read."""
    path = results / "sweeps" / f"{sweep_id}.html"
    jobs: list[Job] = []
    refused = []
    for folder in folders:
        try:
            with readable(folder / "events.jsonl"):
                jobs += _jobs(folder, sweep_id)
        except StoreError as error:
            refused.append(f"run {folder.name}: {error}")
    if jobs:
        write_whole(path, sweep_page(sweep_id, sorted(jobs, key=lambda job: (job.number, job.run_id))))
    if refused:
        there = f"{path} has the other jobs; " if jobs else ""
        raise StoreError("\n".join(refused), hint=f"{there}move the folders of these away")
    return path


def _jobs(folder: Path, sweep_id: str) -> list[Job]:
    events = with_every_field(read_events(folder / "events.jsonl"))
    found = rows(events)
    end, stopped = end_of(events), last(events, "job_failed")
    announced = [event for event in events if event["kind"] == "sweep_job" and event["sweep_id"] == sweep_id]
    own = {(event["job"], tuple(event["overrides"])): event for event in announced}
    asked = [event for event in events if event["kind"] != "sweep_job"]
    return [
        Job(
            number=number,
            overrides=overrides,
            run_id=event["run_id"],
            outcome=end["outcome"] if end else "failed" if stopped else "unfinished",
            why=f"{stopped['error']}: {stopped['message']}" if stopped and not end else "",
            rows=found,
            spent=spent(asked, found),
            report=f"../runs/{folder.name}/{NAME}" if (folder / NAME).is_file() else None,
        )
        for (number, overrides), event in own.items()
    ]


def sweep_page(sweep_id: str, jobs: Sequence[Job]) -> str:
    keys, common = _swept(jobs)
    kinds = sorted({kind for job in jobs for kind in job.kinds})
    return render(
        "sweep.html.j2",
        title=f"Sweep {sweep_id}",
        sweep_id=sweep_id,
        jobs=jobs,
        keys=keys,
        common=common,
        kinds=[_kind_section(kind, jobs) for kind in kinds],
        measures=MEASURES,
        operators=_endings(jobs),
    )


def _swept(jobs: Sequence[Job]) -> tuple[list[str], list[str]]:
    """Names of the overrides whose values differ between jobs, and the overrides that all share."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    names = dict.fromkeys(o.partition("=")[0] for job in jobs for o in job.overrides if o not in shared)
    return list(names), sorted(shared)


def reference_of(jobs: Sequence[Job]) -> Job:
    """The job that spent most: what others save and lose is told against it. Money decides where every price is known,
    then tokens, calls and candidates, then the lower number."""
    priced = all(job.spent.usd is not None for job in jobs)

    def size(job: Job) -> tuple[float, ...]:
        usd = job.spent.usd if priced and job.spent.usd is not None else 0.0
        return (usd, job.spent.tokens, job.spent.calls, job.spent.candidates, -job.number)

    return max(jobs, key=size)


def compared(job: Job, reference: Job, kind: str) -> Compared:
    """Kinds never mix: an operator counts where its best kernel has a score of this kind in both."""
    mine, theirs = _speedups(job, kind), _speedups(reference, kind)
    ratios = {task: mine[task] / theirs[task] for task in theirs if task in mine}
    kept = geomean(list(ratios.values()))
    worst = min(ratios.items(), key=lambda item: item[1], default=None)
    return Compared(
        job=job,
        totals=next((total for total in by_kind(job.rows) if total.kind == kind), None),
        lost=None if kept is None else 1 - kept,
        pairs=len(ratios),
        missed=len(theirs.keys() - mine.keys()),
        worst=worst if worst and worst[1] < 1 else None,
        saved={name: _saved(job, reference, name) for name in MEASURES},
        reference=job is reference,
    )


def _speedups(job: Job, kind: str) -> dict[str, float]:
    scored = [row for row in job.rows if row.score_kind == kind and row.vs_eager is not None]
    return {row.task_id: row.vs_eager.value for row in scored if row.vs_eager is not None and row.vs_eager.value > 0}


def _saved(job: Job, reference: Job, measure: str) -> float | None:
    """The share of the reference's cost that the job did not spend; None where the cost is unknown or nothing."""
    own, most = getattr(job.spent, measure), getattr(reference.spent, measure)
    return None if own is None or not most else 1 - own / most


def _kind_section(kind: str, jobs: Sequence[Job]) -> KindSection:
    """Of the jobs with scores of this kind, and those without any score."""
    scored = [job for job in jobs if kind in job.kinds]
    reference = reference_of(scored)
    found = tuple(compared(job, reference, kind) for job in jobs if job in scored or not job.kinds)
    # Markup: made and escaped in engine.report.plots.
    drawn = [(MEASURES[m], Markup(plots.trade(_points(found, m), MEASURES[m]))) for m in _telling(found)]
    return KindSection(kind, reference, found, tuple(drawn))


def _telling(found: Sequence[Compared]) -> list[str]:
    """What to plot: the first cost of the model, and the first of the judge, that is known of every job."""
    if sum(one.lost is not None for one in found) < 2:
        return []
    known = [name for name in MEASURES if all(one.saved[name] is not None for one in found)]
    model = [name for name in ("usd", "tokens", "calls") if name in known]
    judge = [name for name in ("gpu_s", "candidates") if name in known]
    return [*model[:1], *judge[:1]]


def _points(found: Sequence[Compared], measure: str) -> list[plots.Job]:
    return [
        plots.Job(str(one.job.number), saved, one.lost, reference=one.reference)
        for one in found
        if one.lost is not None and (saved := one.saved[measure]) is not None
    ]


def _endings(jobs: Sequence[Job]) -> dict[str, list[Ending]]:
    """For each operator the ways it went, those of the first jobs first."""
    found: dict[str, dict[tuple[object, ...], tuple[list[int], OperatorRow]]] = {}
    for job in jobs:
        for row in job.rows:
            way = (row.outcome, row.best_id, tuple((stage.name, stage.outcome, stage.rule) for stage in row.stages))
            found.setdefault(row.task_id, {}).setdefault(way, ([], row))[0].append(job.number)
    return {task: [Ending(tuple(numbers), row) for numbers, row in ways.values()] for task, ways in found.items()}
