"""The judge's own process: holds seeds, fp64 references and tolerances, and never imports candidate code.

`python -m engine.judging.service`, JSON lines on stdin and stdout: `{"op": "open", ...}` as `Opening`, then
`{"op": "judge", "task": Task, "source": text}` answered by `{"verdict": Verdict}`, and on a GPU
`{"op": "measure", "request": MeasureRequest}` by `{"measurement": Measurement}`; `{"op": "confirm", "request":
ConfirmRequest}` by `{"confirmation": Confirmation}`; `{"op": "count", "request": CountRequest}` by `{"counted":
Counted}`, `{"refused": why}` or `{"unavailable": why}`. A process that is not opened runs no candidate and answers
`{"op": "lint", "task": Task, "settings": JudgeSettings, "limit_s": seconds}` by `{"lint": TaskLint}`, on the CPU. Our
own faults come back as `{"fault": {"kind", "message", "hint"}}`.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import os
import resource
import secrets
import select
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.canonical import Json
from engine.codec import decode, encode
from engine.errors import EngineError, ProfilerError
from engine.judging.seeds import Seeds
from engine.records import Measurement, Mode, Precision, Task, Trace
from engine.settings import CudaSettings, JudgeSettings

if TYPE_CHECKING:
    from engine.judging.children import ForkServerClient
    from engine.judging.judge import Judge
    from profilers.cupti import Counted


IDLE_S = 0.5
"""So often a judge that waits for work looks whether another one lacks memory."""

UNSPLIT = "max_split_size_mb:128"
"""Of PyTorch's memory in this process: larger pieces are used whole or not at all."""

SETTLING = 4
"""Requests after which nothing more is imported."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How to judge: `device` cpu is Triton's interpreter; `environment` goes to the candidates' processes."""

    settings: JudgeSettings
    device: str
    target: str
    compile_kernels: bool
    scratch: str
    environment: Mapping[str, str]
    gpu_uuid: str = ""
    cuda: CudaSettings | None = None
    """How to time; None on the CPU."""
    shared_bytes: int = 232448
    """Shared memory that one block may use."""
    compiled: str = ""
    """Folder of compiled kernels, shared with other judges; empty: one of its own."""


@dataclass(frozen=True, slots=True)
class MeasureRequest:
    """What to time: a candidate, what it is to beat, or neither: the baselines alone."""

    task: Task
    precision: Precision
    source: str | None
    incumbent: str | None
    floor_us: float | None


@dataclass(frozen=True, slots=True)
class ConfirmRequest:
    """The kernel that is to be reported, with its launch record. `floor_us`: as in a request for times."""

    task: Task
    precision: Precision
    source: str
    trace: Trace | None
    floor_us: float | None


@dataclass(frozen=True, slots=True)
class NcuTool:
    """The executable, and seconds for one profile."""

    path: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class CountRequest:
    """Whose counters to read: a candidate's, or with `source` None the eager reference's; of `limit` launches."""

    task: Task
    precision: Precision
    source: str | None
    counters: tuple[str, ...]
    limit: int
    ncu: NcuTool | None = None
    """None: by CUPTI in a process that is warm already."""


class GpuSide:
    """What a judge with a GPU has beside it: the compiler, executors, and the clock."""

    def __init__(
        self, opening: Opening, cuda: CudaSettings, judge: Judge, tracer: ForkServerClient, runner: ForkServerClient
    ) -> None:
        from engine.judging.compiler import CompileService, Confines, DeviceLimits
        from engine.judging.executors import ExecutorPool, Seat
        from engine.judging.gpu_state import lock_path
        from engine.judging.measure import Stopwatch
        from engine.judging.on_device import ReplayJudge
        from engine.judging.planned import Planner
        from engine.judging.sides import Bench

        settings, scratch = opening.settings, Path(opening.scratch)
        limits = settings.limits
        confines = Confines(
            int(limits.memory_gib * 2**30), limits.processes, limits.file_mib << 20, settings.sandbox == "required"
        )
        folder = Path(opening.compiled or scratch / "compiled")
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_path(opening.gpu_uuid)
        self.compiler = CompileService(tracer, folder, scratch, confines)
        seat = Seat(opening.device)
        required = settings.sandbox == "required"
        self.pool = ExecutorPool(runner, seat, limits, scratch, lock, standby=cuda.standby, required=required)
        planner = Planner(judge, self.compiler, DeviceLimits(opening.shared_bytes), self.pool.warm)
        judge.device = self.replays = ReplayJudge(judge, planner, self.pool, lock)
        self.bench = Bench(cuda, limits, opening.gpu_uuid, opening.environment, scratch, self.replays, required)
        self.stopwatch = Stopwatch(self.bench)
        self.replays.spare = self.stopwatch.forget_baseline

    def measure_afresh(self, request: ConfirmRequest) -> Measurement:
        """Times from processes that are started for it, the baselines' among them."""
        from engine.judging.measure import Stopwatch

        # Two of them may hold more of the device's memory than there is.
        self.stopwatch.forget_baseline()
        # The candidate's own Python was called once, when it was first timed.
        cuda = dataclasses.replace(self.bench.cuda, python_probe=False)
        stopwatch = Stopwatch(dataclasses.replace(self.bench, cuda=cuda))
        try:
            return stopwatch.measure(request.task, request.precision, request.source, None, request.floor_us)
        finally:
            stopwatch.close()

    def counted_by_ncu(self, task: Task, source: str, counters: Sequence[str], limit: int, ncu: NcuTool) -> Counted:
        """Counters by ncu of a process that replays the plan and imports no PyTorch, confined like a candidate's."""
        from engine.judging.children import new_scratch
        from engine.judging.confined import copied_package, write_launcher
        from engine.worker import scrubbed_environment
        from profilers.ncu import Ncu

        folder = Path(new_scratch(Path(self.bench.scratch)))
        copied_package(folder)
        launcher = write_launcher(folder, self.bench.limits, ncu.timeout_s, self.bench.required)
        tool = Ncu(ncu.path, ncu.timeout_s, limit, launcher)
        environment = scrubbed_environment({**self.bench.environment, "PYTHONPATH": str(folder)})
        try:
            cold = self.bench.cuda.flush_l2
            return self.replays.counted_by(tool, folder, task, source, counters, environment, cold=cold)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        self.stopwatch.close()
        self.pool.close()
        self.compiler.close()


class Service:
    """One judge with its two fork servers, started at once so that they import in parallel."""

    def __init__(self, opening: Opening) -> None:
        from engine.judging.children import ForkServerClient

        scratch = Path(opening.scratch)
        scratch.mkdir(parents=True, exist_ok=True)
        self.opening, self.settings = opening, opening.settings
        self._seeds = Seeds()
        self._answered = 0
        self.tracer = ForkServerClient(opening.environment, scratch / "tracer.log", gpu=False)
        interpret = {"TRITON_INTERPRET": "1"} if opening.device == "cpu" else {}
        self.runner = ForkServerClient(
            {**opening.environment, **interpret}, scratch / "runner.log", gpu=opening.device != "cpu"
        )

        if opening.cuda is not None:
            # PyTorch carves small tensors out of the memory of large ones, which it cannot give back while one lives:
            # what is remembered of each task would in time hold most of a device.
            os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", UNSPLIT)

        import torch

        from engine.judging.judge import Judge, Place

        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        _plain_arithmetic()
        place = Place(opening.device, opening.target, opening.compile_kernels, scratch)
        self.judge = Judge(opening.settings, place, self.tracer, self.runner)
        self.gpu = (
            None if opening.cuda is None else GpuSide(opening, opening.cuda, self.judge, self.tracer, self.runner)
        )

    def handle_judge(self, message: Json) -> Json:
        task = decode(Task, message["task"], "task")
        seed = self.settings.seed if self.settings.seed is not None else self._seeds.of(task.task_hash)
        verdict = self.judge.judge(task, message["source"], seed)
        if verdict.mode is not Mode.PLAN:
            # Its own process has seen the draws, and what it printed may reach whoever writes the next candidate.
            self._seeds.forget(task.task_hash)
        return {"verdict": encode(verdict)}

    def handle_measure(self, message: Json) -> Json:
        if self.gpu is None:
            raise EngineError("a judge without a GPU was asked for times")
        request = decode(MeasureRequest, message["request"], "request for times")
        measurement = self.gpu.stopwatch.measure(
            request.task, request.precision, request.source, request.incumbent, request.floor_us
        )
        return {"measurement": encode(measurement)}

    def handle_count(self, message: Json) -> Json:
        """`refused`: this call cannot be counted; `unavailable`: no call can, by this tool on this machine."""
        from engine.judging.inputs import UnsupportedTask
        from engine.judging.judge import Stop
        from engine.judging.messages import is_memory
        from engine.judging.planned import Untraceable
        from engine.judging.replayed import NotReplayable
        from engine.judging.sides import SideLostError

        if self.gpu is None:
            raise EngineError("a judge without a GPU was asked for counters")
        request = decode(CountRequest, message["request"], "request for counters")
        task, counters, limit = request.task, request.counters, request.limit
        try:
            if request.source is None:
                counted = self.gpu.stopwatch.count_reference(task, request.precision, counters, limit)
            elif request.ncu is None:
                cold = self.gpu.bench.cuda.flush_l2
                counted = encode(self.gpu.replays.counted(task, request.source, counters, limit, cold=cold))
            else:
                counted = encode(self.gpu.counted_by_ncu(task, request.source, counters, limit, request.ncu))
        except (Stop, Untraceable, NotReplayable, SideLostError, UnsupportedTask) as error:
            return {"refused": str(error)}
        except RuntimeError as error:
            if not is_memory(error):
                raise
            return {"refused": f"no memory to count: {str(error).splitlines()[0]}"}
        except ProfilerError as error:
            return {"unavailable": "; ".join(filter(None, (str(error), error.hint)))}
        return {"counted": counted}

    def handle_cubins(self, message: Json) -> Json:
        """Where the compiled kernels of a candidate lie; `refused` where it has no plan."""
        from engine.judging.judge import Stop
        from engine.judging.planned import Untraceable

        if self.gpu is None:
            raise EngineError("a judge without a GPU was asked for compiled kernels")
        request = decode(CountRequest, message["request"], "request for compiled kernels")
        assert request.source is not None, "the reference has no compiled kernels of ours"
        try:
            keys = self.gpu.replays.compiled_keys(request.task, request.source)
        except (Stop, Untraceable) as error:
            return {"refused": str(error)}
        return {"paths": [str(self.gpu.compiler.entry(key)) for key in keys]}

    def handle_confirm(self, message: Json) -> Json:
        from engine.judging.confirm import Confirmer, Device
        from engine.judging.inputs import derive_seed

        request = decode(ConfirmRequest, message["request"], "request for a confirmation")
        given = self.settings.seed
        seed = secrets.randbits(62) if given is None else derive_seed(given, "confirm")
        device = None
        if self.gpu is not None:
            gpu = self.gpu
            clock = functools.partial(gpu.measure_afresh, request)
            device = Device(gpu.replays, self.opening.environment, Path(self.opening.scratch), clock)
        made = Confirmer(self.judge, self.settings.confirm).confirm(
            request.task, request.source, seed, device, request.trace
        )
        return {"confirmation": encode(made)}

    def settle(self) -> None:
        """After an answer: what the first requests imported need not be searched for garbage each time memory lacks."""
        self._answered += 1
        if self.gpu is not None and self._answered <= SETTLING:
            gc.collect()
            gc.freeze()

    def idle(self) -> None:
        """Called now and then while nobody asks."""
        if self.gpu is not None:
            self.gpu.stopwatch.make_room_if_short()

    def close(self) -> None:
        if self.gpu is not None:
            self.gpu.close()
        self.tracer.close()
        self.runner.close()


def answer_lint(message: Json) -> Json:
    """The faults of a task, found with its reference alone; its memory is bounded by `judge.limits.memory_gib`."""
    from engine.judging.lint import lint
    from engine.judging.references import References

    settings = decode(JudgeSettings, message["settings"], "settings of the judge")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(settings.limits.memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    task = decode(Task, message["task"], "task")
    return {"lint": encode(lint(task, References("cpu"), settings, limit_s=message["limit_s"]))}


def _plain_arithmetic() -> None:
    """The reference in the task's dtype is PyTorch without TF32 and without reduced-precision reductions."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _lines() -> Iterator[bytes | None]:
    """Lines of stdin until it closes; None every IDLE_S seconds while there is none."""
    waiting = b""
    while True:
        line, newline, rest = waiting.partition(b"\n")
        if newline:
            waiting = rest
            yield line
        elif not select.select([0], [], [], IDLE_S)[0]:
            yield None
        elif chunk := os.read(0, 1 << 20):
            waiting += chunk
        else:
            return


def _handled(service: Service | None, message: Json) -> Json:
    if service is None and message["op"] == "lint":
        return answer_lint(message)
    assert service is not None, "the first message opens the judge"
    handlers: Mapping[str, Callable[[Json], Json]] = {
        "judge": service.handle_judge,
        "measure": service.handle_measure,
        "count": service.handle_count,
        "cubins": service.handle_cubins,
        "confirm": service.handle_confirm,
    }
    return handlers[message["op"]](message)


def serve() -> None:
    """Answer until stdin closes. Only protocol lines reach stdout; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    service: Service | None = None
    for line in _lines():
        try:
            if line is None:
                if service is not None:
                    service.idle()
                continue
            message = json.loads(line)
            if message["op"] == "open":
                service = Service(decode(Opening, message["opening"], "opening of the judge"))
                answer: Json = {"ready": True}
            else:
                answer = _handled(service, message)
        except EngineError as error:
            answer = {"fault": {"kind": type(error).__name__, "message": str(error), "hint": error.hint}}
        except Exception as error:  # noqa: BLE001 - the outermost boundary of this process; its log has the traceback
            import traceback

            traceback.print_exc()
            answer = {"fault": {"kind": "WorkerError", "message": f"{type(error).__name__}: {error}", "hint": ""}}
        if line is not None:
            answers.write(json.dumps(answer) + "\n")
        if service is not None:
            service.settle()
    if service is not None:
        service.close()


if __name__ == "__main__":
    serve()
