"""The judge's own process: holds seeds, fp64 references and tolerances, and never imports candidate code.

`python -m engine.judging.service`, JSON lines on stdin and stdout: `{"op": "open", ...}` as `Opening`, then
`{"op": "judge", "task": Task, "source": text}` answered by `{"verdict": Verdict}`. Our own faults come back as
`{"fault": {"kind", "message", "hint"}}`.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.canonical import Json
from engine.codec import decode, encode
from engine.errors import EngineError
from engine.records import Task
from engine.settings import JudgeSettings


@dataclass(frozen=True, slots=True)
class Opening:
    """How to judge: `device` cpu is Triton's interpreter; `environment` goes to the candidates' processes."""

    settings: JudgeSettings
    device: str
    target: str
    compile_kernels: bool
    scratch: str
    environment: Mapping[str, str]


class Service:
    """One judge with its two fork servers, started at once so that they import in parallel."""

    def __init__(self, opening: Opening) -> None:
        from engine.judging.children import ForkServerClient

        scratch = Path(opening.scratch)
        scratch.mkdir(parents=True, exist_ok=True)
        self.settings = opening.settings
        self.tracer = ForkServerClient(opening.environment, scratch / "tracer.log")
        interpret = {"TRITON_INTERPRET": "1"} if opening.device == "cpu" else {}
        self.runner = ForkServerClient({**opening.environment, **interpret}, scratch / "runner.log")

        import torch

        from engine.judging.judge import Judge, Place

        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        _plain_arithmetic()
        place = Place(opening.device, opening.target, opening.compile_kernels, scratch)
        self.judge = Judge(opening.settings, place, self.tracer, self.runner)

    def handle_judge(self, message: Json) -> Json:
        task = decode(Task, message["task"], "task")
        seed = self.settings.seed if self.settings.seed is not None else secrets.randbits(62)
        return {"verdict": encode(self.judge.judge(task, message["source"], seed))}

    def close(self) -> None:
        self.tracer.close()
        self.runner.close()


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
            else:
                assert service is not None, "the first message opens the judge"
                handlers: Mapping[str, Callable[[Json], Json]] = {"judge": service.handle_judge}
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
