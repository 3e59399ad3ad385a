"""The judge of an NPU: `python -m engine.backends.npu_service`, spoken to as `engine.judging.service`.

fp64 references are computed on the CPU, at the small shape variants; the candidate runs in a process of its own in the
environment with torch_npu, which draws the same inputs from the same seeds. Verdicts are therefore of mode `fallback`
and times `unverified`. Never run on an NPU; tests put the CPU in its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.backends.npu_child import Npu, NpuChild
from engine.backends.npu_clock import TRACED_FOR, NpuClock
from engine.canonical import Json
from engine.codec import decode, encode
from engine.errors import EngineError, MissingError
from engine.judging.allowance import Allowance
from engine.judging.children import ForkServerClient
from engine.judging.gpu_state import lease
from engine.judging.judge import Findings, Judge, Place
from engine.judging.own_process import OwnProcessVariant
from engine.judging.seeds import Seeds
from engine.judging.service import MeasureRequest, Service
from engine.judging.service import Opening as CpuOpening
from engine.records import Mode, Task
from engine.settings import AscendSettings, JudgeSettings


@dataclass(frozen=True, slots=True)
class Opening:
    """How to judge: `python` is the resolved interpreter of the NPU's environment, `lock` the file of its lease."""

    settings: JudgeSettings
    ascend: AscendSettings
    python: str
    lock: str
    scratch: str


class NpuJudge(Judge):
    """A judge whose candidates run on an NPU and whose references are computed on the CPU."""

    def __init__(self, settings: JudgeSettings, place: Place, tracer: ForkServerClient, npu: Npu, lock: Path) -> None:
        super().__init__(settings, place, tracer, tracer)
        self.npu, self.lock = npu, lock

    def _in_own_process(self, task: Task, source: str, host_ops: str, found: Findings) -> None:
        found.mode = Mode.FALLBACK
        if found.trace is None:
            with found.stage("trace"):
                self._trace(task, source, host_ops, found)
        found.remark("compared at the small shapes only: the reference is computed on the CPU")
        with found.stage("check"), lease(self.lock, shared=True), self.process(found) as child:
            allowance = Allowance(self.settings.limits.run_s, lambda: child.waited_s)
            for variant in self.references.variants(task):
                OwnProcessVariant(self, child, task, variant, host_ops, found, allowance).all_suites(source)

    @contextlib.contextmanager
    def process(self, found: Findings) -> Iterator[NpuChild]:
        """A process on the NPU that has imported torch_npu. MissingError where a sandbox is demanded: there is none."""
        if self.settings.sandbox == "required":
            raise MissingError(
                "judge.sandbox=required, but candidates on an NPU are not confined",
                hint="judge.sandbox=best_effort, on a machine that holds nothing of value",
            )
        with NpuChild(self.npu) as child:
            child.ready(self.npu.settings.start_s)
            found.layers = child.layers
            yield child


class NpuService(Service):
    """One judge with a tracer; references and comparisons are its own, candidates run elsewhere."""

    def __init__(self, opening: Opening) -> None:
        scratch = Path(opening.scratch)
        scratch.mkdir(parents=True, exist_ok=True)
        self.opening = CpuOpening(opening.settings, "cpu", TRACED_FOR, False, opening.scratch, {})
        self.settings, self.gpu = opening.settings, None
        self._seeds = Seeds()
        self.tracer = self.runner = ForkServerClient({}, scratch / "tracer.log")
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        npu = Npu(opening.python, opening.ascend, opening.settings.limits, scratch)
        place = Place("cpu", TRACED_FOR, False, scratch)
        lock = Path(opening.lock)
        judge = NpuJudge(opening.settings, place, self.tracer, npu, lock)
        self.judge = judge
        self.clock = NpuClock(npu, judge.references, lock)

    def handle_measure(self, message: Json) -> Json:
        request = decode(MeasureRequest, message["request"], "request for times")
        return {"measurement": encode(self.clock.measure(request.task, request.source, request.incumbent))}

    def handle_program(self, message: Json) -> Json:
        """What a profile needs of the full variant: `init` and `program`."""
        full = self.judge.references.full(decode(Task, message["task"], "task"))
        return {"init": full.init, "program": encode(full.program)}

    def close(self) -> None:
        self.tracer.close()


def serve() -> None:
    """Answer until stdin closes. Only protocol lines reach stdout; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    service: NpuService | None = None
    for line in sys.stdin:
        try:
            message = json.loads(line)
            if service is None:
                service = NpuService(decode(Opening, message["opening"], "opening of the judge"))
                answer: Json = {"ready": True}
            else:
                handlers: Mapping[str, Callable[[Json], Json]] = {
                    "judge": service.handle_judge,
                    "measure": service.handle_measure,
                    "confirm": service.handle_confirm,
                    "program": service.handle_program,
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
