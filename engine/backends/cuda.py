"""The CUDA back-end: checks through the judge, times against PyTorch in paired blocks, profiles with hardware counters.

A candidate is judged and timed from its launch plan; one that has none is timed by its own process, `unverified`.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import platform
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.backends.answers import TIMED, algebra_answer, floor_us, static_answer, trace_answer
from engine.backends.ladder import Answer, counters_of, metric_values
from engine.errors import ConfigError, Fault, ProfilerError
from engine.judging.client import JUDGE_VERSION, JudgeClient
from engine.judging.confined import OUTPUT, write_launcher
from engine.judging.gpu_state import Gpu, find_gpu, lease, lock_path
from engine.records import Device, Judged, Measurement, MetricValue, Operator, Precision, Trace, Verdict
from engine.settings import BackendSettings, CudaSettings, ProfilerSettings, Settings
from engine.worker import scrubbed_environment
from profilers.ncu import Ncu
from profilers.seam import Job

PACKAGE = Path(__file__).resolve().parents[2]
"""Folder that holds the engine package, a checkout's root or site-packages."""

TAIL_CHARS = 300
VERSIONED = ("torch", "triton", "numpy")


class CudaBackend:
    """One GPU of this machine; `scratch` is a writable folder for the files of its processes."""

    def __init__(self, settings: Settings, root: Path, scratch: Path) -> None:
        self._settings = settings
        self._backend = settings.backends[settings.backend]
        self._cuda = _cuda_settings(self._backend, settings.backend)
        self._gpu = find_gpu(self._cuda.device)
        self._scratch = scratch
        self._environment = {"CUDA_VISIBLE_DEVICES": self._gpu.uuid}
        self.device = describe_device(settings.backend, self._gpu, self._backend.hardware)
        self._judge = JudgeClient(settings, "cuda", root, scratch, self._environment, self._gpu.uuid)

    def judge(self, operator: Operator, source: str) -> Verdict:
        """Check one candidate; several may be checked at once, never while one is being timed."""
        return self._judge.judge(operator, source)

    def measure(self, operator: Operator, candidate: Judged | None, incumbent: Judged | None) -> Measurement:
        """Paired times under the exclusive lease of this GPU."""
        precision = self._precision(operator)
        floor = floor_us(operator.facts, self._backend.hardware, precision)
        mine = candidate.source if candidate else None
        best = incumbent.source if incumbent else None
        return self._judge.measure(operator.task, precision, mine, best, floor)

    def profile(self, operator: Operator, candidate: Judged | None, metrics: Sequence[str]) -> tuple[MetricValue, ...]:
        """Walk the declared ladder; a rung that cannot answer leaves its reason on the metrics that it spells."""
        source = candidate.source if candidate else None
        trace = candidate.trace if candidate else None
        answers: list[Answer] = []
        timed = not TIMED.isdisjoint(counters_of(metrics, self._settings.metrics, "algebra"))
        for name, profiler in self._backend.profilers.items():
            counters = counters_of(metrics, self._settings.metrics, name)
            if counters or (name == "ncu" and timed):
                answers.append(self._ask(name, profiler, operator, source, trace, counters, answers))
        launches = None if trace is None or trace.launch_count == 0 else trace.launch_count
        return metric_values(metrics, self._settings.metrics, answers, launches)

    def _ask(
        self,
        name: str,
        profiler: ProfilerSettings,
        operator: Operator,
        source: str | None,
        trace: Trace | None,
        counters: Sequence[str],
        earlier: Sequence[Answer],
    ) -> Answer:
        if name == "ncu":
            return self._ncu(profiler, operator, source, trace, counters)
        if name == "trace":
            return trace_answer(trace, operator.facts)
        if name == "static":
            return static_answer(trace)
        if name == "algebra":
            return self._algebra(operator, source, counters, earlier)
        return Answer(name, (), "this back-end has no such profiler")

    def _algebra(
        self, operator: Operator, source: str | None, counters: Sequence[str], earlier: Sequence[Answer]
    ) -> Answer:
        floor = floor_us(operator.facts, self._backend.hardware, self._precision(operator))
        kernels = next((answer.samples for answer in earlier if answer.profiler == "ncu"), ())
        durations = [sample.duration_us for sample in kernels if sample.duration_us is not None]
        return algebra_answer(operator.facts, floor, sum(durations) if durations else None, kernels)

    def _ncu(
        self,
        profiler: ProfilerSettings,
        operator: Operator,
        source: str | None,
        trace: Trace | None,
        counters: Sequence[str],
    ) -> Answer:
        kernels = () if source is None else kernel_names(source, trace)
        folder = Path(tempfile.mkdtemp(prefix="profile-", dir=self._scratch))
        launcher = write_launcher(folder, self._settings.judge.limits, profiler.timeout_s)
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
        self, folder: Path, operator: Operator, source: str | None, kernels: tuple[str, ...], trace: Trace | None
    ) -> Job:
        """The command to profile, with a copy of this package: its own folder is all that it may read of ours."""
        shutil.copytree(PACKAGE / "engine", folder / "engine", ignore=shutil.ignore_patterns("__pycache__", "_data"))
        request = {
            "task_source": operator.task.source,
            "source": source,
            "precision": self._precision(operator).value,
            "seed": secrets.randbits(31),
            "folder": str(folder),
            "flush_l2": False,
        }
        path = folder / "request.json"
        path.write_text(json.dumps(request))
        environment = scrubbed_environment({**self._environment, "PYTHONPATH": str(folder)})
        command = (sys.executable, "-P", "-m", "engine.judging.profile_run", str(path))
        return Job(command, str(folder), environment, kernels, trace)

    def _precision(self, operator: Operator) -> Precision:
        return operator.task.contract.precision or self._settings.judge.precision

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._judge.close()


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
