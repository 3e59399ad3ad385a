"""The judge's own process: holds seeds, fp64 references and tolerances, and never imports candidate code.

`python -m engine.judging.service`, JSON lines on stdin and stdout: `{"op": "open", ...}` as `Opening`, then
`{"op": "judge", "task": Task, "source": text}` answered by `{"verdict": Verdict}`, and on a GPU
`{"op": "measure", "request": MeasureRequest}` by `{"measurement": Measurement}`. A process that is not opened runs no
candidate and answers `{"op": "lint", "task": Task, "settings": JudgeSettings, "limit_s": seconds}` by
`{"lint": TaskLint}`, on the CPU. Our own faults come back as `{"fault": {"kind", "message", "hint"}}`.
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.canonical import Json
from engine.codec import decode, encode
from engine.errors import EngineError
from engine.records import Mode, Precision, Task
from engine.settings import CudaSettings, JudgeSettings

if TYPE_CHECKING:
    from engine.judging.children import ForkServerClient
    from engine.judging.judge import Judge


SEED_USES = 16
"""Candidates of a task that are judged on the same draws; none of them ever sees one."""


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


class GpuSide:
    """What a judge with a GPU has beside it: the compiler, executors, and the clock."""

    def __init__(
        self, opening: Opening, cuda: CudaSettings, judge: Judge, tracer: ForkServerClient, runner: ForkServerClient
    ) -> None:
        from engine.judging.compiler import CompileService, Confines, DeviceLimits
        from engine.judging.executors import ExecutorPool, Seat
        from engine.judging.gpu_state import lock_path
        from engine.judging.measure import Bench, Stopwatch
        from engine.judging.on_device import ReplayJudge
        from engine.judging.planned import Planner

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
        self.pool = ExecutorPool(runner, seat, limits, scratch, lock, standby=cuda.standby)
        planner = Planner(judge, self.compiler, DeviceLimits(opening.shared_bytes), self.pool.warm)
        judge.device = replays = ReplayJudge(judge, planner, self.pool, lock)
        bench = Bench(cuda, limits, opening.gpu_uuid, opening.environment, scratch, replays)
        self.stopwatch = Stopwatch(bench)

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
        self.settings = opening.settings
        self._seeds: dict[str, tuple[int, int]] = {}
        self.tracer = ForkServerClient(opening.environment, scratch / "tracer.log")
        interpret = {"TRITON_INTERPRET": "1"} if opening.device == "cpu" else {}
        self.runner = ForkServerClient({**opening.environment, **interpret}, scratch / "runner.log")

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
        seed = self.settings.seed if self.settings.seed is not None else self._seed(task)
        verdict = self.judge.judge(task, message["source"], seed)
        if verdict.mode is not Mode.PLAN:
            # Its own process has seen the draws, and what it printed may reach whoever writes the next candidate.
            self._seeds.pop(task.task_hash, None)
        return {"verdict": encode(verdict)}

    def _seed(self, task: Task) -> int:
        """A secret seed for some candidates of a task, so that what the reference gives is computed once for them."""
        seed, uses = self._seeds[task.task_hash] if task.task_hash in self._seeds else (secrets.randbits(62), 0)
        if uses >= SEED_USES:
            seed, uses = secrets.randbits(62), 0
        self._seeds[task.task_hash] = (seed, uses + 1)
        return seed

    def handle_measure(self, message: Json) -> Json:
        if self.gpu is None:
            raise EngineError("a judge without a GPU was asked for times")
        request = decode(MeasureRequest, message["request"], "request for times")
        measurement = self.gpu.stopwatch.measure(
            request.task, request.precision, request.source, request.incumbent, request.floor_us
        )
        return {"measurement": encode(measurement)}

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


def serve() -> None:
    """Answer until stdin closes. Only protocol lines reach stdout; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    service: Service | None = None
    for line in sys.stdin:
        try:
            message = json.loads(line)
            if message["op"] == "open":
                service = Service(decode(Opening, message["opening"], "opening of the judge"))
                answer: Json = {"ready": True}
            elif message["op"] == "lint" and service is None:
                answer = answer_lint(message)
            else:
                assert service is not None, "the first message opens the judge"
                handlers: Mapping[str, Callable[[Json], Json]] = {
                    "judge": service.handle_judge,
                    "measure": service.handle_measure,
                }
                answer = handlers[message["op"]](message)
        except EngineError as error:
            answer = {"fault": {"kind": type(error).__name__, "message": str(error), "hint": error.hint}}
        except Exception as error:  # noqa: BLE001 - the outermost boundary of this process; its log has the traceback
            import traceback

            traceback.print_exc()
            answer = {"fault": {"kind": "WorkerError", "message": f"{type(error).__name__}: {error}", "hint": ""}}
        answers.write(json.dumps(answer) + "\n")
    if service is not None:
        service.close()


if __name__ == "__main__":
    serve()
