"""Judging on a GPU from launch plans: prepared without it, replayed by an executor, results read by the judge."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from engine.codec import decode
from engine.judging.allowance import Allowance
from engine.judging.counted import CountedReplay
from engine.judging.device_memory import await_room, is_large
from engine.judging.executors import Executor, ExecutorFault, ExecutorPool
from engine.judging.gpu_state import lease, share, tell_shortage
from engine.judging.judge import Findings, Judge, Stop
from engine.judging.layout import set_bytes
from engine.judging.messages import Failure
from engine.judging.planned import Planner, Prepared, Untraceable
from engine.judging.references import FULL
from engine.judging.replayed import NotReplayable, ReplayedVariant
from engine.judging.seeds import Seeds
from engine.judging.timed import TimedReplay
from engine.records import Reason, Status, Task
from profilers.cupti import Counted
from profilers.ncu import Ncu
from profilers.seam import Job, absent

Replayed = TypeVar("Replayed", bound=ReplayedVariant)

KEPT = 32
"""Candidates whose compiled plans are kept for timing them later."""


class ReplayJudge:
    """Checks candidates from their plans; keeps these for the clock."""

    def __init__(self, judge: Judge, planner: Planner, pool: ExecutorPool, lock: Path) -> None:
        self.judge, self.planner, self.pool, self.lock = judge, planner, pool, lock
        self._kept: OrderedDict[tuple[str, str], Prepared] = OrderedDict()
        self._one_shot = False
        self._seeds = Seeds()
        self.spare: Callable[[], None] = lambda: None

    @contextlib.contextmanager
    def one_shot(self) -> Iterator[None]:
        """Inside, every executor is one that has served no candidate before, and ends with its task."""
        before, self._one_shot = self._one_shot, True
        try:
            yield
        finally:
            self._one_shot = before

    def shared(self, *, large: bool = False) -> contextlib.AbstractContextManager[None]:
        return share(self.lock, large=large)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        return lease(self.lock)

    def make_room(self) -> None:
        tell_shortage(self.lock)
        self.free()
        self.spare()
        await_room()

    def decide(self, task: Task, source: str, host_ops: str, found: Findings) -> bool:
        """False when no plan describes the candidate: its own process has to run it."""
        try:
            prepared = self.prepared(task, source, host_ops, found)
            large = is_large(max(set_bytes(variant.plan) for variant in prepared.variants.values()))
            self.judge.with_memory(found, lambda held: self._checked(held, task, source, prepared, found), large=large)
        except (Untraceable, NotReplayable) as error:
            found.trace_error = str(error)
            found.checks.clear()
            found.precision_class = None
            return False
        return True

    def _checked(
        self,
        held: contextlib.AbstractContextManager[None],
        task: Task,
        source: str,
        prepared: Prepared,
        found: Findings,
    ) -> None:
        # Before the lease: an executor that starts now takes a share of it, which nobody has while one is alone.
        executor = self._executor()
        intact = False
        try:
            with held, found.stage("check"):
                started = time.monotonic()
                try:
                    self._check(executor, task, source, prepared, found)
                finally:
                    found.gpu_s += time.monotonic() - started
            intact = True
        except Stop as stop:
            # A wrong result leaves the executor as it was; a fault or an overwritten guard does not.
            intact = stop.failure.status is Status.REJECTED
            raise
        finally:
            self._give_back(executor, intact=intact)

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

    def _check(self, executor: Executor, task: Task, source: str, prepared: Prepared, found: Findings) -> None:
        allowance = Allowance(self.judge.settings.limits.run_s, lambda: executor.waited_s)
        for variant in self.judge.references.variants(task):
            compiled = prepared.variants[variant]
            ReplayedVariant(self.judge, executor, compiled, task, variant, found, allowance).all_suites(source)

    @contextlib.contextmanager
    def executor(self) -> Iterator[Executor]:
        """An executor for one replay that may harm it."""
        executor = self._executor()
        try:
            yield executor
        finally:
            self._give_back(executor, intact=False)

    def _give_back(self, executor: Executor, *, intact: bool) -> None:
        # First: what this process keeps for later does not make memory scarce.
        self.judge.references.give_back_memory()
        self.pool.give_back(executor, intact=intact and not self._one_shot)

    def _executor(self) -> Executor:
        try:
            executor = self.pool.take()
            while self._one_shot and executor.uses:
                self.pool.give_back(executor, intact=False)
                executor = self.pool.take()
            return executor
        except ExecutorFault as fault:
            text = f"not enough memory: no executor can start now: {fault}"
            raise Stop(Failure(Status.UNDECIDED, Reason.OUT_OF_MEMORY, text)) from fault

    def compiled_keys(self, task: Task, source: str) -> tuple[str, ...]:
        """Names of the kernels of the candidate's plan at full size. Raises Stop or Untraceable."""
        found = Findings(secrets.randbits(62))
        host_ops = task.contract.host_ops or self.judge.settings.host_ops
        compiled = self.prepared(task, source, host_ops, found, (FULL,)).variants[FULL]
        return tuple(dict.fromkeys(key for key in compiled.keys if key is not None))

    @contextlib.contextmanager
    def timed(self, task: Task, source: str, who: str) -> Iterator[TimedReplay]:
        """The candidate's plan at full size beside an executor of its own, to be opened for the clock. Who is timed as
        `who` gets the same secret values for some time."""
        seed = secrets.randbits(62) if self._one_shot else self._seeds.of(task.task_hash, who)
        with self._at_full_size(TimedReplay, task, source, seed) as timed:
            yield timed

    def free(self) -> None:
        """What the judge and executors that stand by keep of the device's memory only to save time."""
        self.judge.references.make_room()
        self.pool.make_room()

    def counted(self, task: Task, source: str, counters: Sequence[str], limit: int, *, cold: bool) -> Counted:
        """Hardware counters of one call of the candidate, with L2 as the clock finds it."""
        with self._at_full_size(CountedReplay, task, source, secrets.randbits(62)) as counted:
            with self.shared():
                counted.open()
            with lease(self.lock):
                answer = decode(Counted, counted.count(counters, limit, cold=cold), "counters from an executor")
            workload = counted.workload(cold=cold)
            samples = tuple(dataclasses.replace(sample, workload=workload) for sample in answer.samples)
            return dataclasses.replace(answer, samples=samples)

    def counted_by(
        self,
        tool: Ncu,
        folder: Path,
        task: Task,
        source: str,
        counters: Sequence[str],
        environment: Mapping[str, str],
        *,
        cold: bool,
    ) -> Counted:
        """The same by ncu, of a process that makes this call and nothing else; ProfilerError when it gives none."""
        with self._at_full_size(CountedReplay, task, source, secrets.randbits(62)) as counted:
            with self.shared():
                counted.open()
            request = folder / "call.json"
            module = counted.write_request(request)
            command = (sys.executable, "-P", "-m", module, str(request))
            order = counted.symbols()
            kernels, workload = tuple(dict.fromkeys(order)), counted.workload(cold=cold)
            job = Job(command, str(folder), environment, kernels, counted.found.trace, workload, order=order)
            with lease(self.lock):
                samples = tool.collect(job, counters)
            return Counted(samples, len(order), 0, absent(samples, counters))

    @contextlib.contextmanager
    def _at_full_size(self, kind: type[Replayed], task: Task, source: str, seed: int) -> Iterator[Replayed]:
        found = Findings(seed)
        host_ops = task.contract.host_ops or self.judge.settings.host_ops
        prepared = self.prepared(task, source, host_ops, found, (FULL,))
        executor = self._executor()
        intact = False
        try:
            allowance = Allowance(self.judge.settings.limits.run_s, lambda: executor.waited_s)
            yield kind(self.judge, executor, prepared.variants[FULL], task, FULL, found, allowance)
            intact = True
        finally:
            self._give_back(executor, intact=intact)
