"""The last look at a task's best kernel: judged on a seed of its own, at shape variants drawn for it, in processes that
have seen no candidate; on a GPU also with launches left out, under compute-sanitizer, and timed anew."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.canonical import digest
from engine.codec import encode
from engine.confirmation import Confirmation, DropResult, SanitizerResult
from engine.judging.dropped import DropTest, launched
from engine.judging.inputs import derive_seed, flatten, replay
from engine.judging.judge import Findings, Judge, Stop
from engine.judging.on_device import ReplayJudge
from engine.judging.reference import fill_parameters
from engine.judging.replayed import Compiled, NotReplayable
from engine.judging.sanitized import write_call
from engine.judging.sanitizer import TOOLS, failure_of, find_sanitizer, run_tool
from engine.records import (
    Measurement,
    Precision,
    Reason,
    Status,
    Task,
    Trace,
    Verdict,
)
from engine.settings import ConfirmSettings
from engine.tasks.facts import prober
from engine.tasks.unseen import draw_unseen

SUITE = "nominal"
Draw = Callable[[Task, int], Mapping[str, Mapping[str, int]]]
"""Shape variants of a task that it has not, from a seed."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a GPU's judge has for it. `clock`: times the kernel once, in processes started for that."""

    replays: ReplayJudge
    environment: Mapping[str, str]
    scratch: Path
    clock: Callable[[], Measurement]


@dataclass(slots=True)
class _Seen:
    """What the checks beyond those of every candidate found."""

    drops: tuple[DropResult, ...] = ()
    sanitizers: list[SanitizerResult] = field(default_factory=list)


class Confirmer:
    """Confirms kernels with the judge that found them, one after another."""

    def __init__(self, judge: Judge, settings: ConfirmSettings, draw: Draw | None = None) -> None:
        self._judge, self._settings = judge, settings
        self._draw = draw or self._drawn

    def confirm(
        self, task: Task, source: str, seed: int, device: Device | None, trace: Trace | None = None
    ) -> Confirmation:
        """Candidates' failures are data, as in a verdict. `seed`: of this confirmation alone. `trace`: the launch
        record of the search, which without a device is not made again."""
        variants = self._draw(task, derive_seed(seed, "unseen"))
        subject = with_variants(task, variants) if variants else task
        seen = _Seen()

        def further(found: Findings) -> None:
            if not variants:
                found.remark("no shape variant could be drawn that it was not judged at: new seeds alone")
            if device is not None:
                self._on_device(device, subject, source, found, seen)

        if device is None:
            verdict = self._judge.judge(subject, source, seed, further=further, trace=trace)
            return Confirmation(verdict, variants)
        with device.replays.one_shot():
            verdict = self._judge.judge(subject, source, seed, further=further)
            measurements = self._measured(device) if verdict.status is Status.CORRECT else ()
        verdict = next((refuted(verdict, made) for made in measurements if made.refuted), verdict)
        return Confirmation(verdict, variants, seen.drops, tuple(seen.sanitizers), measurements)

    def _drawn(self, task: Task, seed: int) -> Mapping[str, Mapping[str, int]]:
        own = {name: sizes for name, sizes in task.contract.variants.items() if sizes}
        if not own:
            return {}
        return draw_unseen(task.source, own, seed=seed, count=self._settings.variants, probe=prober(task.source))

    def _measured(self, device: Device) -> tuple[Measurement, ...]:
        return tuple(device.clock() for _ in range(self._settings.repeats))

    def _on_device(self, device: Device, task: Task, source: str, found: Findings, seen: _Seen) -> None:
        if found.mode is not None:
            found.remark("without a launch plan there is no drop test and no sanitizer")
            return
        host_ops = task.contract.host_ops or self._judge.settings.host_ops
        plans = device.replays.prepared(task, source, host_ops, found).variants
        variant = min(plans, key=lambda name: sum(buffer.bytes for buffer in plans[name].plan.buffers))
        started = time.monotonic()
        try:
            with device.replays.shared(), found.stage("drop"):
                test = DropTest(self._judge, device.replays.executor, plans[variant], task, variant, found)
                seen.drops = test.run()
            with found.stage("sanitize"):
                self._sanitized(device, task, plans[variant], variant, found, seen)
        finally:
            found.gpu_s += time.monotonic() - started

    def _sanitized(
        self, device: Device, task: Task, compiled: Compiled, variant: str, found: Findings, seen: _Seen
    ) -> None:
        """Stops the judgement at the first tool that finds an error."""
        if self._settings.sanitizer == "off":
            return
        path = find_sanitizer()
        if path is None:
            found.remark("compute-sanitizer is not installed: no memcheck, racecheck and initcheck")
            return
        with tempfile.TemporaryDirectory(prefix="sanitize-", dir=device.scratch) as folder:
            request = Path(folder)
            try:
                write_request(self._judge, request, task, compiled, variant, found.seed)
            except NotReplayable as error:
                found.remark(f"no sanitizer: {error}")
                return
            for tool in TOOLS:
                with device.replays.shared():
                    kernels, limit = launched(compiled.plan), self._settings.sanitizer_s
                    result = run_tool(path, tool, request, kernels, device.environment, limit)
                seen.sanitizers.append(result)
                failure = failure_of(result)
                if failure is not None:
                    raise Stop(failure, variant, SUITE)
                if result.note:
                    found.remark(f"compute-sanitizer {tool}: {result.note}"[:300])


def write_request(judge: Judge, folder: Path, task: Task, compiled: Compiled, variant: str, seed: int) -> None:
    """What compute-sanitizer's process reads: the plan at a variant with inputs and parameters of its own draw."""
    reference = judge.references.reference(task, variant)
    drawn = derive_seed(seed, variant, "sanitized")
    fill_parameters(reference.model, reference.params, reference.kept, reference.device, drawn, SUITE)
    inputs = flatten(replay(reference.inputs, reference.device, drawn, SUITE))
    precision = task.contract.precision or judge.settings.precision
    write_call(folder, compiled, inputs, reference.model.state_dict(), tf32=precision is not Precision.IEEE)


def with_variants(task: Task, variants: Mapping[str, Mapping[str, int]]) -> Task:
    """The task with these shape variants in place of its own; what is kept of the one never serves the other."""
    contract = dataclasses.replace(task.contract, variants=variants)
    return dataclasses.replace(task, contract=contract, task_hash=digest([task.task_hash, encode(variants)]))


def refuted(verdict: Verdict, measurement: Measurement) -> Verdict:
    """The verdict of a kernel whose timed calls gave other results than its judged ones."""
    text = f"while it was timed it computed something else: {measurement.refuted}"
    return dataclasses.replace(verdict, status=Status.REJECTED, reason=Reason.WRONG_RESULT, message=text)
