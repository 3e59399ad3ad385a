"""The CUDA back-end: checks through the judge, times against PyTorch in paired blocks, profiles with hardware counters.

A candidate is judged and timed from its launch plan; one that has none is timed by its own process, `unverified`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import json
import platform
import secrets
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.backends import sanity
from engine.backends.answers import INSTRUCTIONS, TIMED, TRACED, algebra_answer, static_answer, trace_answer
from engine.backends.ceilings import KnownRates, known_rates, stored
from engine.backends.detect import cuda_devices
from engine.backends.floors import Floor, floor, stated
from engine.backends.ladder import Answer, counters_of, left_for, metric_values
from engine.confirmation import Confirmation
from engine.errors import ConfigError, Fault, ProfilerError
from engine.judging.client import JUDGE_VERSION, JudgeClient, NotCounted
from engine.judging.confined import OUTPUT, copied_package, write_launcher
from engine.judging.gpu_state import Gpu, find_gpu, lease, lock_path
from engine.judging.seats import take_seat
from engine.project import resolve
from engine.records import Device, Judged, Measurement, MetricValue, Operator, Precision, Trace, Verdict
from engine.settings import BackendSettings, CudaSettings, ProfilerSettings, Settings
from engine.worker import scrubbed_environment
from profilers.cupti import Cupti, NoCounters
from profilers.ncu import REFUSED, Ncu
from profilers.seam import Job, Workload
from profilers.static import Static
from profilers.trace import KernelTrace

CUPTI = "cupti"
FULL = "full"
COUNTING = frozenset({CUPTI, "ncu"})
"""Profilers that give each launch's duration with its counters."""

TAIL_CHARS = 300
VERSIONED = ("torch", "triton", "numpy")


class CudaBackend:
    """One GPU of this machine; `scratch` is a writable folder for the files of its processes."""

    def __init__(self, settings: Settings, root: Path, scratch: Path) -> None:
        self._settings = settings
        self._backend = settings.backends[settings.backend]
        self._cuda = _cuda_settings(self._backend, settings.backend)
        self._seat = take_seat(self._cuda.device, find_gpu, cuda_devices)
        self._gpu = self._seat.gpu
        self._scratch = scratch
        self._environment = {"CUDA_VISIBLE_DEVICES": self._gpu.uuid}
        self._required = settings.judge.sandbox == "required"
        self._known = _known_rates(settings, self._gpu)
        described = describe_device(settings.backend, self._gpu, self._backend.hardware)
        self.device = replace(described, ceilings=self._known.identity)
        self._no_cupti = ""
        """Why this machine gives no counters in process, once that is known."""
        self._judge = JudgeClient(settings, "cuda", root, scratch, self._environment, self._gpu.uuid)

    def judge(self, operator: Operator, source: str) -> Verdict:
        """Check one candidate; several may be checked at once, never while one is being timed."""
        return self._judge.judge(operator, source)

    def measure(self, operator: Operator, candidate: Judged | None, incumbent: Judged | None) -> Measurement:
        """Paired times under the exclusive lease of this GPU."""
        precision = self._precision(operator)
        found = self._floor(operator)
        mine = candidate.source if candidate else None
        best = incumbent.source if incumbent else None
        return stated(self._judge.measure(operator.task, precision, mine, best, found.us if found else None), found)

    def confirm(self, operator: Operator, winner: Judged) -> Confirmation:
        """From its plan by executors that served nobody else, under compute-sanitizer where there is one, and timed."""
        found = self._floor(operator)
        made = self._judge.confirm(operator.task, self._precision(operator), winner, found.us if found else None)
        return replace(made, measurements=tuple(stated(measured, found) for measured in made.measurements))

    def profile(self, operator: Operator, candidate: Judged | None, metrics: Sequence[str]) -> tuple[MetricValue, ...]:
        """Walk the declared ladder; a rung that cannot answer leaves its reason on the metrics that it spells."""
        source = candidate.source if candidate else None
        trace = candidate.trace if candidate else None
        time_us = candidate.time_us if candidate else None
        launches = None if trace is None or trace.launch_count == 0 else trace.launch_count
        answers: list[Answer] = []
        timed = not TIMED.isdisjoint(counters_of(metrics, self._settings.metrics, "algebra"))
        for name, profiler in self._backend.profilers.items():
            missing = left_for(name, metrics, self._settings.metrics, answers, launches)
            counters = counters_of(missing, self._settings.metrics, name)
            untimed = timed and not any(answer.samples for answer in answers if answer.profiler in COUNTING)
            if counters or (name in COUNTING and untimed):
                answers.extend(self._ask(name, profiler, operator, source, trace, counters, answers, time_us))
        values = metric_values(metrics, self._settings.metrics, answers, launches)
        return sanity.checked(values, self._evidence(operator, trace, time_us, answers))

    def _evidence(
        self, operator: Operator, trace: Trace | None, time_us: float | None, answers: Sequence[Answer]
    ) -> sanity.Evidence:
        precision = self._precision(operator).value
        timed = sanity.Run(us=time_us, dtype=operator.facts.dtype, precision=precision, shape=FULL)
        l2_bytes = self._backend.hardware["l2_bytes"]
        return sanity.Evidence(operator.facts, self._known, l2_bytes, trace, timed, sanity.profiled(answers))

    def _ask(
        self,
        name: str,
        profiler: ProfilerSettings,
        operator: Operator,
        source: str | None,
        trace: Trace | None,
        counters: Sequence[str],
        earlier: Sequence[Answer],
        time_us: float | None,
    ) -> tuple[Answer, ...]:
        if name == "cupti":
            return (self._cupti(profiler, operator, source, counters),)
        if name == "ncu":
            return (self._ncu(profiler, operator, source, trace, counters),)
        if name == "trace":
            recorded = trace_answer(trace, operator.facts, self._backend.hardware["sm_count"])
            return self._traced(profiler, operator, source, trace, counters, recorded)
        if name == "static":
            return self._static(profiler, operator, source, counters, static_answer(trace, self._backend.target))
        if name == "algebra":
            return (self._algebra(operator, time_us, earlier),)
        return (Answer(name, (), "this back-end has no such profiler"),)

    def _algebra(self, operator: Operator, time_us: float | None, earlier: Sequence[Answer]) -> Answer:
        """`time_us`: as measured; without it the sum of profiled durations stands for it."""
        found = self._floor(operator)
        kernels = next((answer.samples for answer in earlier if answer.profiler in COUNTING and answer.samples), ())
        durations = [sample.duration_us for sample in kernels if sample.duration_us is not None]
        spent = sum(durations) if durations else None
        known_us = spent if time_us is None else time_us
        parts = found.parts if found else None
        return algebra_answer(operator.facts, found.us if found else None, known_us, kernels, parts)

    def _cupti(
        self, profiler: ProfilerSettings, operator: Operator, source: str | None, counters: Sequence[str]
    ) -> Answer:
        """Counters in a process that is warm already; what forbids them once forbids them for good."""
        if self._no_cupti:
            return Answer(CUPTI, (), self._no_cupti)
        precision, limit = self._precision(operator), profiler.max_launches
        try:
            tool = Cupti(lambda wanted: self._judge.count(operator.task, precision, source, wanted, limit))
            samples = tool.collect(Job((), "", {}, (), None, self._workload(operator)), counters)
        except NotCounted as error:
            return Answer(CUPTI, (), str(error))
        except NoCounters as error:
            self._no_cupti = str(error)
            return Answer(CUPTI, (), str(error))
        except ProfilerError as error:
            return Answer(CUPTI, (), "; ".join(filter(None, (str(error), error.hint))))
        return Answer(CUPTI, samples)

    def _static(
        self, profiler: ProfilerSettings, operator: Operator, source: str | None, counters: Sequence[str], known: Answer
    ) -> tuple[Answer, ...]:
        """What the compiler noted, and where instructions are asked for what the disassembler finds in the cubins."""
        wanted = [name for name in counters if name.startswith(INSTRUCTIONS)]
        if source is None or not wanted:
            return (known,)
        folder = Path(tempfile.mkdtemp(prefix="static-", dir=self._scratch))
        tool = Static(profiler.path, profiler.timeout_s, profiler.max_launches)
        try:
            paths = self._judge.cubins(operator.task, self._precision(operator), source)
            found = tool.collect(Job((), str(folder), scrubbed_environment({}), (), None, cubins=paths), wanted)
        except ProfilerError as error:
            return known, Answer(known.profiler, (), str(error))
        return known, Answer(known.profiler, found)

    def _traced(
        self,
        profiler: ProfilerSettings,
        operator: Operator,
        source: str | None,
        trace: Trace | None,
        counters: Sequence[str],
        recorded: Answer,
    ) -> tuple[Answer, ...]:
        """The launch record, and where durations are asked for that no counter gave, a call under torch's profiler."""
        wanted = [name for name in counters if name in TRACED]
        if not wanted:
            return (recorded,)
        kernels = () if source is None else kernel_names(source, trace)
        folder = Path(tempfile.mkdtemp(prefix="trace-", dir=self._scratch))
        tool = KernelTrace(
            profiler.path,
            profiler.timeout_s,
            profiler.max_launches,
            write_launcher(folder, self._settings.judge.limits, profiler.timeout_s, self._required),
        )
        job = self._job(folder, operator, source, kernels, trace, traced=True)
        try:
            with lease(lock_path(self._gpu.uuid)):
                found = tool.collect(job, wanted)
        except ProfilerError as error:
            return recorded, Answer(recorded.profiler, (), str(error))
        return recorded, Answer(recorded.profiler, found)

    def _ncu_alone(
        self, profiler: ProfilerSettings, operator: Operator, source: str, counters: Sequence[str]
    ) -> Answer:
        """By ncu of a process that makes the planned call and nothing else. NotCounted where there is no plan."""
        precision = self._precision(operator)
        try:
            counted = self._judge.count(operator.task, precision, source, counters, profiler.max_launches, profiler)
        except NotCounted:
            raise
        except ProfilerError as error:
            return Answer("ncu", (), "; ".join(filter(None, (str(error), error.hint))))
        return Answer("ncu", counted.samples, cut=counted.launches > len(counted.samples), of=counted.launches)

    def _ncu(
        self,
        profiler: ProfilerSettings,
        operator: Operator,
        source: str | None,
        trace: Trace | None,
        counters: Sequence[str],
    ) -> Answer:
        """Of the planned call alone where there is one and it can be watched, else of a script that imports the
        candidate."""
        if source is not None and Ncu(profiler.path, profiler.timeout_s, profiler.max_launches).available() is None:
            with contextlib.suppress(NotCounted):
                answer = self._ncu_alone(profiler, operator, source, counters)
                if answer.samples or REFUSED in answer.note:
                    return answer
        return self._ncu_script(profiler, operator, source, trace, counters)

    def _ncu_script(
        self,
        profiler: ProfilerSettings,
        operator: Operator,
        source: str | None,
        trace: Trace | None,
        counters: Sequence[str],
    ) -> Answer:
        kernels = () if source is None else kernel_names(source, trace)
        folder = Path(tempfile.mkdtemp(prefix="profile-", dir=self._scratch))
        launcher = write_launcher(folder, self._settings.judge.limits, profiler.timeout_s, self._required)
        tool = Ncu(profiler.path, profiler.timeout_s, profiler.max_launches, launcher)
        reason = tool.available()
        if reason is not None:
            return Answer(tool.name, (), reason)
        job = self._job(folder, operator, source, kernels, trace)
        try:
            with lease(lock_path(self._gpu.uuid)):
                samples = tool.collect(job, counters)
            return Answer(tool.name, samples, cut=len(samples) >= profiler.max_launches)
        except ProfilerError as error:
            parts = (str(error), error.hint, _tail(folder / OUTPUT))
            return Answer(tool.name, (), "; ".join(filter(None, parts)))

    def _job(
        self,
        folder: Path,
        operator: Operator,
        source: str | None,
        kernels: tuple[str, ...],
        trace: Trace | None,
        *,
        traced: bool = False,
    ) -> Job:
        """The command to profile, with a copy of this package: its own folder is all that it may read of ours."""
        copied_package(folder)
        request = {
            "task_source": operator.task.source,
            "source": source,
            "precision": self._precision(operator).value,
            "seed": secrets.randbits(31),
            "folder": str(folder),
            "flush_l2": False,
            "trace": traced,
        }
        path = folder / "request.json"
        path.write_text(json.dumps(request))
        environment = scrubbed_environment({**self._environment, "PYTHONPATH": str(folder)})
        command = (sys.executable, "-P", "-m", "engine.judging.profile_run", str(path))
        return Job(command, str(folder), environment, kernels, trace, self._workload(operator))

    def _workload(self, operator: Operator) -> Workload:
        return Workload("", FULL, operator.facts.dtype, self._precision(operator).value, self._cuda.flush_l2)

    def _floor(self, operator: Operator) -> Floor | None:
        return floor(operator.facts, self._known, self._precision(operator))

    def _precision(self, operator: Operator) -> Precision:
        return operator.task.contract.precision or self._settings.judge.precision

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._judge.close()
        self._seat.close()


def _known_rates(settings: Settings, gpu: Gpu) -> KnownRates:
    """Measured rates of this GPU where they are stored, the configuration's for the rest."""
    declared = settings.backends[settings.backend]
    measured = stored(resolve(settings.paths.results), gpu.name, gpu.uuid)
    return known_rates(declared.hardware, declared.hardware_source, measured, gpu.uuid)


def describe_device(backend: str, gpu: Gpu, hardware: Mapping[str, float]) -> Device:
    """What results on this GPU depend on. Versions come from package records: nothing heavy is imported."""
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    facts = {**versions, "python": platform.python_version(), "driver": gpu.driver, "judge": JUDGE_VERSION}
    return Device(backend, gpu.name, facts, hardware)


def _tail(path: Path) -> str:
    """The end of what a confined command printed, in one line."""
    return " ".join(path.read_text(errors="replace")[-TAIL_CHARS:].split()) if path.is_file() else ""


def kernel_names(source: str, trace: Trace | None) -> tuple[str, ...]:
    """The candidate's own kernels: those that it launched, or without a record every jitted function of its source.

    A jitted helper among the latter is harmless: it is inlined, so no launch has its name.
    """
    if trace is not None and trace.launches:
        return tuple(dict.fromkeys(launch.kernel for launch in trace.launches))
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return tuple(f.name for f in functions if any(_is_jit(mark) for mark in f.decorator_list))


def _is_jit(mark: ast.expr) -> bool:
    called = mark.func if isinstance(mark, ast.Call) else mark
    return (isinstance(called, ast.Attribute) and called.attr == "jit") or (
        isinstance(called, ast.Name) and called.id == "jit"
    )


def _cuda_settings(backend: BackendSettings, name: str) -> CudaSettings:
    if backend.cuda is None:
        raise ConfigError([Fault(f"backends.{name}.cuda", "expected the timing settings of a CUDA back-end, got null")])
    return backend.cuda
