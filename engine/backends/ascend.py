"""The Ascend back-end: candidates run on an NPU by their own Python, in the environment of torch_npu and triton-ascend.

It has never run on an NPU. What is tested, with the CPU in the NPU's place and recorded CSV files in the tools': every
plan to its end, the protocol of the processes, the parsers and the ladder (docs/ascend.md).
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.backends import sanity
from engine.backends.answers import TIMED, algebra_answer, trace_answer
from engine.backends.ascend_probe import HINT, Environment, examine, find_python, refusal
from engine.backends.ceilings import KnownRates, known_rates
from engine.backends.cuda import kernel_names
from engine.backends.floors import Floor, floor, stated
from engine.backends.ladder import Answer, counters_of, left_for, metric_values
from engine.backends.npu_child import PACKAGE, WORKER, environment
from engine.backends.npu_clock import AS_CANDIDATE
from engine.canonical import Json, digest, short
from engine.codec import encode
from engine.confirmation import Confirmation
from engine.errors import ConfigError, Fault, MissingError, ProfilerError, WorkerError
from engine.judging.client import JUDGE_VERSION, START_S, JudgeClient
from engine.judging.gpu_state import lease, lock_path
from engine.records import Device, Judged, Measurement, MetricValue, Operator, Precision, Verdict
from engine.settings import AscendSettings, BackendSettings, ProfilerSettings, Settings
from engine.worker import Worker, ascend_python, scrubbed_environment
from profilers.ascend_tool import Chip
from profilers.msprof import Msprof, TorchNpu
from profilers.msprof_op import MsprofOp
from profilers.seam import Job, Workload

CALLS = 4
"""Calls of a profiled program: the first compiles and tunes, the last is read."""

CLOCK = "clock_pct"
"""Of `msprof op`: the clock of a launch over the rated one."""

COUNTING = ("msprof_op", "msprof", "torch_npu")
"""Profilers that give each launch's duration with its counters."""


class NpuClient(JudgeClient):
    """Asks the NPU's judge, which is another module than the GPU's and answers the same messages."""

    def __init__(self, settings: Settings, root: Path, scratch: Path, python: str, lock: Path) -> None:
        super().__init__(settings, "cpu", root, scratch)
        self._python, self._lock_file = python, lock

    def program(self, operator: Operator) -> Json:
        """`init` and `program` of the operator at full size."""
        worker = self._take()
        answer = worker.ask({"op": "program", "task": encode(operator.task)}, START_S)
        self._give(worker)
        if "fault" in answer:
            raise WorkerError(f"judge: {answer['fault']['message']}", hint=f"its log: {worker.log}")
        return answer

    def _start(self) -> Worker:
        self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="judge-", dir=self._scratch)).resolve()
        own = {**dict.fromkeys(("HOME", "TMPDIR"), str(folder)), "PYTHONPATH": str(PACKAGE)}
        worker = Worker(
            [sys.executable, "-m", "engine.worker", "engine.backends.npu_service"],
            environment=scrubbed_environment(own),
            cwd=str(folder),
            log=str(folder / "judge.log"),
        )
        opening = {
            "settings": encode(self._settings.judge),
            "ascend": encode(self._settings.backends[self._settings.backend].ascend),
            "python": self._python,
            "lock": str(self._lock_file),
            "scratch": str(folder / "candidates"),
        }
        answer = worker.ask({"op": "open", "opening": opening}, START_S)
        if "fault" in answer:
            worker.close()
            raise MissingError(f"judge: {answer['fault']['message']}", hint=f"its log: {worker.log}")
        return worker


class AscendBackend:
    """One NPU of this machine; `scratch` is a writable folder for the files of its processes. MissingError where the
    environment lacks torch_npu or triton-ascend."""

    def __init__(self, settings: Settings, root: Path, scratch: Path) -> None:
        self._settings, self._scratch = settings, scratch
        self._backend = settings.backends[settings.backend]
        self._ascend = _ascend_settings(self._backend, settings.backend)
        self._python = find_python(ascend_python(self._ascend.python))
        found = examine(self._python)
        reason = refusal(self._python, found, self._tool_path())
        if reason is not None:
            raise MissingError(reason, hint=HINT)
        self._lock = lock_path(f"ascend-{self._ascend.device.replace(':', '-')}")
        self.device = describe_device(settings.backend, self._backend, self._ascend, found)
        self._judge = NpuClient(settings, root, scratch, self._python, self._lock)

    def judge(self, operator: Operator, source: str) -> Verdict:
        """Check one candidate on the NPU at the small variants."""
        return self._judge.judge(operator, source)

    def measure(self, operator: Operator, candidate: Judged | None, incumbent: Judged | None) -> Measurement:
        """Paired device times, those of candidates `unverified`."""
        mine = candidate.source if candidate else None
        best = incumbent.source if incumbent else None
        made = self._judge.measure(operator.task, self._precision(operator), mine, best, None)
        return stated(made, self._floor(operator))

    def confirm(self, operator: Operator, winner: Judged) -> Confirmation:
        """On other seeds, at shape variants drawn anew; it is not timed again."""
        return self._judge.confirm(operator.task, self._precision(operator), winner, None)

    def profile(self, operator: Operator, candidate: Judged | None, metrics: Sequence[str]) -> tuple[MetricValue, ...]:
        """Walk the declared ladder; a tool runs for what those before it could not give."""
        trace = candidate.trace if candidate else None
        launches = None if trace is None or trace.launch_count == 0 else trace.launch_count
        vocabulary = self._settings.metrics
        answers: list[Answer] = []
        timed = not TIMED.isdisjoint(counters_of(metrics, vocabulary, "algebra"))
        for name, profiler in self._backend.profilers.items():
            counters = counters_of(left_for(name, metrics, vocabulary, answers, launches), vocabulary, name)
            untimed = timed and not any(answer.samples for answer in answers if answer.profiler in COUNTING)
            if counters or (name in COUNTING and untimed):
                answers.append(self._ask(name, profiler, operator, candidate, counters, answers))
        values = metric_values(metrics, vocabulary, answers, launches)
        return sanity.checked(throttled(values, answers), self._evidence(operator, candidate, answers))

    def _evidence(self, operator: Operator, candidate: Judged | None, answers: Sequence[Answer]) -> sanity.Evidence:
        time_us, trace = (candidate.time_us, candidate.trace) if candidate else (None, None)
        timed = sanity.Run(us=time_us, dtype=operator.facts.dtype, precision=self._precision(operator).value)
        l2_bytes = self._backend.hardware["l2_bytes"]
        return sanity.Evidence(operator.facts, self._known(), l2_bytes, trace, timed, sanity.profiled(answers))

    def _ask(
        self,
        name: str,
        profiler: ProfilerSettings,
        operator: Operator,
        candidate: Judged | None,
        counters: Sequence[str],
        earlier: Sequence[Answer],
    ) -> Answer:
        trace = candidate.trace if candidate else None
        if name == "trace":
            return trace_answer(trace, operator.facts, self._backend.hardware["sm_count"])
        if name == "algebra":
            return self._algebra(operator, candidate, earlier)
        tool = self._tool(name, profiler)
        if tool is None:
            return Answer(name, (), "this back-end has no such profiler")
        reason = tool.available()
        if reason is not None:
            return Answer(name, (), reason)
        try:
            with tempfile.TemporaryDirectory(prefix="profile-", dir=self._scratch) as folder:
                job = self._job(Path(folder).resolve(), operator, candidate, name)
                with lease(self._lock):
                    samples = tool.collect(job, counters)
        except ProfilerError as error:
            return Answer(name, (), "; ".join(filter(None, (str(error), error.hint))))
        return Answer(name, samples, cut=len(samples) >= profiler.max_launches)

    def _tool(self, name: str, profiler: ProfilerSettings) -> MsprofOp | Msprof | TorchNpu | None:
        chip = Chip(self._backend.hardware["dram_gbps"], self._ascend.vector_cores, self._ascend.cube_cores)
        if name == "msprof_op":
            return MsprofOp(profiler.path, profiler.timeout_s, profiler.max_launches, chip)
        if name == "msprof":
            return Msprof(profiler.path, profiler.timeout_s, profiler.max_launches, chip, CALLS)
        if name == "torch_npu":
            return TorchNpu(profiler.timeout_s, profiler.max_launches, chip, CALLS)
        return None

    def _job(self, folder: Path, operator: Operator, candidate: Judged | None, tool: str) -> Job:
        """A program that makes the calls of one profile. `msprof op` warms up by itself and wants one call."""
        full = self._judge.program(operator)
        request = {
            "source": candidate.source if candidate else operator.task.source + AS_CANDIDATE,
            "init": full["init"],
            "program": full["program"],
            "seed": secrets.randbits(31),
            "device": self._ascend.device,
            "calls": 1 if tool == "msprof_op" else CALLS,
            "folder": str(folder / "profile") if tool == "torch_npu" else "",
        }
        path = folder / "request.json"
        path.write_text(json.dumps(request))
        trace = candidate.trace if candidate else None
        kernels = kernel_names(candidate.source, trace) if candidate else ()
        workload = Workload("", "full", operator.facts.dtype, self._precision(operator).value)
        command = (self._python, *WORKER, "once", str(path))
        return Job(command, str(folder), environment(folder), kernels, trace, workload)

    def _algebra(self, operator: Operator, candidate: Judged | None, earlier: Sequence[Answer]) -> Answer:
        found = self._floor(operator)
        kernels = next((answer.samples for answer in earlier if answer.profiler in COUNTING and answer.samples), ())
        durations = [sample.duration_us for sample in kernels if sample.duration_us is not None]
        measured = candidate.time_us if candidate else None
        time_us = measured if measured is not None else sum(durations) if durations else None
        return algebra_answer(operator.facts, found.us if found else None, time_us, kernels)

    def _floor(self, operator: Operator) -> Floor | None:
        return floor(operator.facts, self._known(), self._precision(operator))

    def _known(self) -> KnownRates:
        # Nothing measures an NPU's rates yet: those of the configuration, which are from documents.
        return known_rates(self._backend.hardware, self._backend.hardware_source)

    def _tool_path(self) -> str:
        paths = [tool.path for name, tool in self._backend.profilers.items() if name in COUNTING and tool.path]
        return next(iter(paths), "msprof")

    def _precision(self, operator: Operator) -> Precision:
        return operator.task.contract.precision or self._settings.judge.precision

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._judge.close()


def throttled(values: Sequence[MetricValue], answers: Sequence[Answer]) -> tuple[MetricValue, ...]:
    """The values, those of a tool that saw the chip below its rated clock with a note of it."""
    lowest: dict[str, float] = {}
    for answer in answers:
        clocks = [sample.counters[CLOCK] for sample in answer.samples if CLOCK in sample.counters]
        if clocks and min(clocks) < 100.0:
            lowest[answer.profiler] = min(clocks)
    return tuple(_with_clock(value, lowest) for value in values)


def _with_clock(value: MetricValue, lowest: Mapping[str, float]) -> MetricValue:
    if value.source not in lowest:
        return value
    told = f"the chip ran at {lowest[value.source]:.3g} % of its rated clock"
    return dataclasses.replace(value, note="; ".join(filter(None, (value.note, told))))


def describe_device(name: str, backend: BackendSettings, ascend: AscendSettings, found: Environment) -> Device:
    """What results on this NPU depend on; the timing protocol is among it, as step keys know no other place for it."""
    facts: Mapping[str, str | None] = {
        "python": ".".join(map(str, found.python)),
        "torch": found.torch,
        "torch_npu": found.torch_npu,
        "triton": found.triton_ascend,
        "vector_cores": str(ascend.vector_cores),
        "cube_cores": str(ascend.cube_cores),
        "protocol": short(digest(encode(dataclasses.replace(ascend, python="")))),
        "judge": JUDGE_VERSION,
        "chip": backend.hardware_source,
    }
    return Device(name, backend.target, {key: value for key, value in facts.items() if value}, backend.hardware)


def _ascend_settings(backend: BackendSettings, name: str) -> AscendSettings:
    if backend.ascend is None:
        raise ConfigError([Fault(f"backends.{name}.ascend", "expected the settings of an Ascend back-end, got null")])
    return backend.ascend
