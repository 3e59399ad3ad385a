"""Judging on a GPU from launch plans: prepared without it, replayed by an executor, results read by the judge."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.judging.executors import Executor, ExecutorFault, ExecutorPool
from engine.judging.gpu_state import lease
from engine.judging.judge import Findings, Judge, Stop
from engine.judging.messages import Failure
from engine.judging.planned import Planner, Prepared, Untraceable
from engine.judging.references import FULL
from engine.judging.replayed import NotReplayable, ReplayedVariant
from engine.judging.timed import TimedReplay
from engine.records import Reason, Status, Task

KEPT = 32
"""Candidates whose compiled plans are kept for timing them later."""


class ReplayJudge:
    """Checks candidates from their plans; keeps these for the clock."""

    def __init__(self, judge: Judge, planner: Planner, pool: ExecutorPool, lock: Path) -> None:
        self.judge, self.planner, self.pool, self.lock = judge, planner, pool, lock
        self._kept: OrderedDict[tuple[str, str], Prepared] = OrderedDict()

    def shared(self) -> contextlib.AbstractContextManager[None]:
        return lease(self.lock, shared=True)

    def decide(self, task: Task, source: str, host_ops: str, found: Findings) -> bool:
        """False when no plan describes the candidate: its own process has to run it."""
        try:
            prepared = self.prepared(task, source, host_ops, found)
            with self.shared(), found.stage("check"):
                started = time.monotonic()
                try:
                    self._check(task, source, prepared, found)
                finally:
                    found.gpu_s += time.monotonic() - started
        except (Untraceable, NotReplayable) as error:
            found.trace_error = str(error)
            found.checks.clear()
            found.precision_class = None
            return False
        return True

    def prepared(
        self, task: Task, source: str, host_ops: str, found: Findings, variants: Sequence[str] | None = None
    ) -> Prepared:
        """Compiled plans, from before or made now. Raises Stop or Untraceable."""
        key = (task.task_hash, source)
        if key not in self._kept or (variants is None and not self._whole(task, key)):
            self._kept[key] = self.planner.prepare(task, source, host_ops, found, variants)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        kept = self._kept[key]
        found.trace = found.trace or kept.trace
        return kept

    def _whole(self, task: Task, key: tuple[str, str]) -> bool:
        return set(self.judge.references.variants(task)) <= set(self._kept[key].variants)

    def _check(self, task: Task, source: str, prepared: Prepared, found: Findings) -> None:
        executor = self._executor()
        intact = False
        try:
            deadline = time.monotonic() + self.judge.settings.limits.run_s
            for variant in self.judge.references.variants(task):
                compiled = prepared.variants[variant]
                ReplayedVariant(self.judge, executor, compiled, task, variant, found, deadline).all_suites(source)
            intact = True
        except Stop as stop:
            # A wrong result leaves the executor as it was; a fault or an overwritten guard does not.
            intact = stop.failure.status is Status.REJECTED
            raise
        finally:
            self.pool.give_back(executor, intact=intact)

    def _executor(self) -> Executor:
        try:
            return self.pool.take()
        except ExecutorFault as fault:
            raise Stop(
                Failure(Status.UNDECIDED, Reason.OUT_OF_MEMORY, f"no executor can start now: {fault}")
            ) from fault

    @contextlib.contextmanager
    def timed(self, task: Task, source: str, *, cold: bool) -> Iterator[TimedReplay]:
        """The candidate's plan at full size in an executor of its own, ready for the clock."""
        found = Findings(secrets.randbits(62))
        host_ops = task.contract.host_ops or self.judge.settings.host_ops
        prepared = self.prepared(task, source, host_ops, found, (FULL,))
        executor = self._executor()
        intact = False
        try:
            deadline = time.monotonic() + self.judge.settings.limits.run_s
            timed = TimedReplay(self.judge, executor, prepared.variants[FULL], task, FULL, found, deadline)
            timed.open(cold=cold)
            yield timed
            intact = True
        finally:
            self.pool.give_back(executor, intact=intact)
