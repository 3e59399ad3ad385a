"""One run: load the tasks, classify them, take each through its plan, and leave a journal behind.

A run that was killed, waits for replies or lost a task continues with the same command: finished steps come from
the memo, events that are already in the journal are not written again.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from engine import __version__
from engine.backends import open_backend
from engine.backends.seam import Backend
from engine.canonical import Json, digest
from engine.classify import Classification, classify
from engine.codec import decode, encode
from engine.decode import remembered_identity, run_identity
from engine.draft import Drafter, TaskState
from engine.errors import (
    AwaitingReply,
    BudgetSpent,
    EngineError,
    LlmRefused,
    MissingError,
    StoreError,
    StoreFull,
    in_a_line,
)
from engine.folder import RunFolder
from engine.forecast import Forecast, forecast
from engine.journal import Journal, read_events
from engine.llm import open_llm
from engine.llm.caller import Budget, Caller
from engine.llm.quote import FREE, quotes
from engine.llm.seam import Llm
from engine.memo import Memo
from engine.paid import Paid
from engine.project import project_root, resolve
from engine.prompts import Prompts
from engine.records import Facts, Operator, Slot, Task
from engine.rules import Expression, parse
from engine.settings import Settings, SweepJob
from engine.stage import StageRunner
from engine.task_run import TaskRunner
from engine.tasks import load_tasks
from engine.tasks.facts_client import FACTS_VERSION, describe
from engine.vocabulary import operands

Listener = Callable[[Json], None]


@dataclass(slots=True)
class Outcome:
    """What became of a run's tasks, for its exit code."""

    run_id: str
    waiting: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    budget: str | None = None
    found: bool = False
    """The run had ended before; nothing was done."""

    @property
    def exit_code(self) -> int:
        if self.waiting:
            return 75
        return 1 if self.failed else 0


def execute(
    settings: Settings, tree: Json, *, sweep: SweepJob | None = None, listeners: tuple[Listener, ...] = ()
) -> Outcome:
    """Run or continue what `settings` describes; `tree` is the resolved configuration it was decoded from.

    Raises MissingError before anything is spent when a key, tool or device is absent. A job of a sweep that could not
    run leaves its reason in its journal, so that the sweep shows it.
    """
    try:
        return _execute(settings, tree, sweep, listeners)
    except Exception as error:  # passed on: the sweep must show a job whatever ended it
        if sweep is not None:
            _note_failed_job(resolve(settings.paths.results), run_identity(tree), sweep, error)
        raise


def _note_failed_job(results: Path, run_id: str, sweep: SweepJob, error: Exception) -> None:
    # Where another process writes the run, or nothing can be written, the error itself must still be shown.
    with contextlib.suppress(StoreError), contextlib.closing(_journal(results, run_id, sweep)) as journal:
        journal.write("job_failed", error=type(error).__name__, message=in_a_line(error), durable=True)


def _journal(results: Path, run_id: str, sweep: SweepJob | None, listeners: tuple[Listener, ...] = ()) -> Journal:
    journal = Journal(RunFolder(results, run_id).events, run_id, listeners=listeners)
    if sweep is not None:
        journal.write("sweep_job", sweep_id=sweep.sweep_id, job=sweep.job, overrides=list(sweep.overrides))
    return journal


def _execute(settings: Settings, tree: Json, sweep: SweepJob | None, listeners: tuple[Listener, ...]) -> Outcome:
    run_id = run_identity(tree)
    outcome = Outcome(run_id)
    results = resolve(settings.paths.results)
    tasks = _tasks(settings, results)
    folder = RunFolder(results, run_id)
    finished = _finished(folder.events, tasks)
    with contextlib.closing(_journal(results, run_id, sweep, listeners)) as journal:
        if settings.run.label is not None:
            journal.write("label", label=settings.run.label)
        if finished:
            outcome.found = True
            for event in read_events(folder.events) if sweep is None else ():
                for listener in listeners:
                    listener(event)
            return outcome
        llm = open_llm(settings.llm, project_root(), usd_limit=settings.search.budget.usd)
        llm.check()
        memo = Memo(results / "steps", run_id)
        operators = _described(tasks, memo, results / "scratch")
        folder.write_config(tree)
        with _backend(settings, results / "scratch" / run_id) as backend:
            _announce(journal, settings, tree, backend)
            started = time.monotonic()
            earlier = (remembered_identity(tree), run_id) if settings.search.fresh else ()
            replies = replies_of(results, earlier, {task.task_id: task.task_hash for task in tasks})
            runner = _runner(settings, llm, backend, memo, journal, folder, replies)
            _run_tasks(runner, operators, outcome)
        _close(journal, outcome, len(operators), time.monotonic() - started, listeners)
    return outcome


def _tasks(settings: Settings, results: Path) -> tuple[Task, ...]:
    cache = results / "steps" / "variants"
    return load_tasks(
        settings.task, _representatives(settings), project_root(), bundled=settings.paths.tasks, cache=cache
    )


def foresee(settings: Settings) -> tuple[Forecast, ...]:
    """What `execute` would do with these settings; spends nothing, but traces references that it does not know yet."""
    prompts = Prompts(resolve(settings.paths.prompts))
    return tuple(forecast(settings, operator, prompts) for operator in selected(settings))


def selected(settings: Settings) -> tuple[Operator, ...]:
    """The operators that these settings choose, with their facts; traces references that it does not know yet."""
    results = resolve(settings.paths.results)
    return _described(_tasks(settings, results), Memo(results / "steps", "forecast"), results / "scratch")


def _representatives(settings: Settings) -> tuple[str, ...]:
    if settings.category == "auto":
        return ()
    return settings.categories[settings.category].representatives


def _finished(path: Path, tasks: tuple[Task, ...]) -> bool:
    """Whether the journal ends with this run's end, of the very tasks that the files hold now: an edited one runs
    again, and the end of what was before it is not its own."""
    if not path.exists():
        return False
    events = read_events(path)
    started = {e["task_id"]: e["task_hash"] for e in events if e["kind"] == "task_started"}
    marks = [e for e in events if e["kind"] in ("task_started", "run_ended")]
    ended = bool(marks) and marks[-1]["kind"] == "run_ended" and marks[-1]["outcome"] in ("done", "budget")
    return ended and all(started.get(task.task_id) == task.task_hash for task in tasks)


@contextlib.contextmanager
def _backend(settings: Settings, scratch: Path) -> Iterator[Backend]:
    scratch.mkdir(parents=True, exist_ok=True)
    with open_backend(settings.backend, settings, project_root(), scratch) as backend:
        yield backend


def _described(tasks: tuple[Task, ...], memo: Memo, scratch: Path) -> tuple[Operator, ...]:
    """Facts of every task: from the memo, or all missing ones from one tracing process."""
    versions = {"facts": FACTS_VERSION, "torch": importlib.metadata.version("torch")}
    inputs = {task.task_hash: {"task": task.task_hash, **versions} for task in tasks}
    missing = [task for task in tasks if memo.lookup("facts", inputs[task.task_hash]) is None]
    scratch.mkdir(parents=True, exist_ok=True)
    traced = dict(zip([t.task_hash for t in missing], describe(missing, scratch), strict=True)) if missing else {}
    operators = []
    for task in tasks:
        outcome = encode(traced[task.task_hash]) if task.task_hash in traced else None
        step = memo.step("facts", inputs[task.task_hash], partial(_free, outcome))
        operators.append(Operator(task, decode(Facts, step.outcome, "stored facts")))
    return tuple(operators)


def replies_of(results: Path, runs: Sequence[str], tasks: Mapping[str, str]) -> dict[str, str]:
    """Slot -> address of the reply step that these runs used there; a later run goes before an earlier one. `tasks`: id
    to hash; what was asked for another text of a task is left out."""
    found: dict[str, str] = {}
    asked: dict[str, str] = {}
    for run_id in runs:
        path = results / "runs" / run_id / "events.jsonl"
        for event in read_events(path) if path.exists() else ():
            if event["kind"] == "task_started":
                asked[event["task_id"]] = event["task_hash"]
            elif event["kind"] == "llm_call" and event.get("step") is not None:
                if asked[event["task_id"]] != tasks.get(event["task_id"]):
                    continue
                names = ("task_id", "category", "stage", "role", "attempt", "sample")
                found[decode(Slot, {name: event[name] for name in names}, str(path)).path()] = event["step"]
    return found


def _free(outcome: Json) -> tuple[Json, Json]:
    return outcome, {}


def _announce(journal: Journal, settings: Settings, tree: Json, backend: Backend) -> None:
    journal.write(
        "run_started",
        config_hash=digest(tree),
        version=__version__,
        backend=settings.backend,
        category=settings.category,
        provider=settings.llm.provider,
        model=settings.llm.model,
        thresholds=dict(settings.thresholds),
    )
    versions = {name: importlib.metadata.version(name) for name in ("hydra-core", "omegaconf", "duckdb", "litellm")
                if _installed(name)}  # fmt: skip
    facts = {**backend.device.facts, **versions, "python": platform.python_version(), "engine": __version__}
    journal.write("environment", device=encode(backend.device), facts=facts)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _runner(
    settings: Settings,
    llm: Llm,
    backend: Backend,
    memo: Memo,
    journal: Journal,
    folder: RunFolder,
    replies: Mapping[str, str],
) -> TaskRunner:
    free = settings.llm.provider == "replay"
    budget = Budget(settings.search.budget)
    priced = settings.search.budget.usd is not None
    quote = quotes(settings.llm, priced=priced)
    caller = Caller(llm, settings.llm.retry, budget, quote=quote, free=settings.llm.provider in FREE)
    paid = Paid(
        settings,
        backend=backend,
        caller=caller,
        memo=memo,
        journal=journal,
        folder=folder,
        free_replies=free,
        replies=replies,
        own=memo.paid_by_run() if budget.limited else {},
    )
    drafter = Drafter(settings, paid, Prompts(resolve(settings.paths.prompts)), expressions(settings))
    return TaskRunner(StageRunner(drafter, folder))


def expressions(settings: Settings) -> dict[str, Expression]:
    """Every rule text of the plans, parsed against the declared vocabulary."""
    known = operands(settings.metrics, settings.thresholds)
    found: dict[str, Expression] = {}
    for category in settings.categories.values():
        for stage in category.stages.values():
            for rules in (stage.skip_when, stage.exit_when, stage.require):
                found |= {rule.when: parse(rule.when, known) for rule in rules.values()}
    return found


def _run_tasks(runner: TaskRunner, operators: tuple[Operator, ...], outcome: Outcome) -> None:
    for operator in operators:
        # With the budget spent the other tasks are still announced and ended, or their absence would flatter the run.
        named = runner.settings.category
        other = None if named == "auto" else named
        classification = classify(operator.facts, runner.settings.categories, otherwise=other)
        state = runner.start(operator, *_classified(classification))
        if outcome.budget:
            runner.end(state, "budget", outcome.budget)
            continue
        try:
            runner.run(state)
        except AwaitingReply as waiting:
            runner.paid.journal.write("waiting", task_id=state.task_id, where=waiting.where)
            outcome.waiting.append(state.task_id)
        except BudgetSpent as spent:
            outcome.budget = str(spent)
        except (LlmRefused, MissingError, StoreFull):
            _keep(runner, state, "stopped: the run cannot go on")
            raise
        except EngineError as error:
            _lose(runner, state, outcome, type(error).__name__, str(error))
        except Exception as error:  # noqa: BLE001 - the process's outermost loop: one task's bug must not end the batch
            _lose(runner, state, outcome, type(error).__name__, traceback.format_exc(limit=-8))


def _classified(classification: Classification) -> tuple[str, list[Json]]:
    return classification.category, [encode(evaluation) for evaluation in classification.evaluations]


def _lose(runner: TaskRunner, state: TaskState, outcome: Outcome, error: str, message: str) -> None:
    outcome.failed.append(state.task_id)
    runner.paid.journal.write("task_failed", task_id=state.task_id, error=error, message=message, durable=True)
    _keep(runner, state, f"{error}: {message.strip().splitlines()[-1]}")


def _keep(runner: TaskRunner, state: TaskState, why: str) -> None:
    """After an error: whatever kernel was found stays the task's result."""
    runner.end(state, "failed", why)


def _close(journal: Journal, outcome: Outcome, tasks: int, wall_s: float, listeners: tuple[Listener, ...]) -> None:
    if outcome.waiting:
        return
    name = "failed" if outcome.failed else "budget" if outcome.budget else "done"
    journal.write("run_ended", outcome=name, tasks=tasks, failed=outcome.failed, wall_s=round(wall_s, 3), durable=True)
