"""The controller's side of `engine.tasks.facts`: facts and derived variants without importing torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine.canonical import Json
from engine.codec import decode, encode
from engine.errors import WorkerError
from engine.records import Facts, Task
from engine.worker import Worker, scrubbed_environment

Variants = dict[str, dict[str, int]]

FACTS_VERSION = "2"
"""Part of the key under which facts are kept; raise it when counting changes."""

TIMEOUT_S = 120.0
"""For one task; the first one also pays the start of torch."""


def describe(tasks: Sequence[Task], scratch: Path) -> tuple[Facts, ...]:
    """Facts of each task, in order, from one process whose log goes to `scratch`/facts.log.

    Never raises for a task: one that kills or hangs the process gets zero counts and a note, the next a new process.
    """
    with _client(scratch) as ask:
        return tuple(_read(task, ask({"describe": encode(task)})) for task in tasks)


def derive_variants(sources: Sequence[str], scratch: Path) -> tuple[Variants, ...]:
    """`small` and `odd` variants of each source, as far as there are any; {} for one that cannot be run."""
    with _client(scratch) as ask:
        answers = [ask({"derive": source}) for source in sources]
    return tuple(
        {} if isinstance(answer, WorkerError) else decode(Variants, answer, "derived variants") for answer in answers
    )


def _read(task: Task, answer: Json | WorkerError) -> Facts:
    if isinstance(answer, WorkerError):
        note = f"the tracing process failed: {answer}"
        return Facts(0, 0, 0, 0, 0, 0, 0, 0, 0, None, None, 0.0, 0.0, 0.0, task.contract.dtype, "none", (), note)
    return decode(Facts, answer, "facts")


@contextmanager
def _client(scratch: Path) -> Iterator[Callable[[Json], Json | WorkerError]]:
    """A function that asks the tracing process, starting another when the last one died."""
    workers: list[Worker] = []

    def ask(message: Json) -> Json | WorkerError:
        if not workers or not workers[-1].alive:
            workers.append(_start(scratch))
        try:
            return workers[-1].ask(message, TIMEOUT_S)
        except WorkerError as error:
            return error

    try:
        yield ask
    finally:
        for worker in workers:
            worker.close()


def _start(scratch: Path) -> Worker:
    scratch.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).resolve().parents[2]
    environment = scrubbed_environment(
        {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    )
    command = [sys.executable, "-m", "engine.tasks.facts"]
    return Worker(command, environment=environment, cwd=str(scratch), log=str(scratch / "facts.log"))
