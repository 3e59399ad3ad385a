"""One call of a launch plan with host operations in a process with PyTorch, for ncu to watch: `python -m
engine.judging.planned_call FILE`, FILE holding the JSON of a `PlannedCall`.

Trusted code, which imports neither Triton nor the candidate. As in `lone_call`, the buffers are copied from an
executor's arena. What the module does once and warm-up calls come first, then one call between cudaProfilerStart and
cudaProfilerStop.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.codec import decode
from engine.judging.arena import attach
from engine.judging.images import Image
from engine.judging.plan import Plan
from engine.judging.replaying import Session, load_image

WARM_UP_CALLS = 2


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """`keys`: of each kernel of the plan its image, None where nothing launches it; `offsets`: of its buffers in the
    arena of `bytes` bytes that `token` names; `choices`: of its autotuned launches; `tf32`: for host operations."""

    token: str
    bytes: int
    plan: Plan
    keys: tuple[str | None, ...]
    images: tuple[Image, ...]
    offsets: tuple[int, ...]
    choices: tuple[int, ...]
    tf32: bool


def opened(request: PlannedCall, device: str) -> Session:
    """The plan bound to a copy of the arena, after its prelude and first call."""
    torch.backends.cuda.matmul.allow_tf32 = request.tf32
    torch.backends.cudnn.allow_tf32 = request.tf32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    theirs = attach(device, request.bytes, request.token)
    memory = theirs.bytes.clone()
    if device != "cpu":
        torch.cuda.synchronize()
    theirs.close()
    loaded = {image.key: load_image(image) for image in request.images}
    kernels = [None if key is None else loaded[key] for key in request.keys]
    session = Session(request.plan, kernels, memory, [request.offsets], device)
    session.freeze(request.choices)
    session.run("prelude", 0)
    if request.plan.first is not None:
        session.run("first", 0)
    return session


def main() -> None:
    request = decode(PlannedCall, json.loads(Path(sys.argv[1]).read_text()), sys.argv[1])
    with torch.no_grad():
        session = opened(request, "cuda")
        for _ in range(WARM_UP_CALLS):
            session.run("steady", 0)
        torch.cuda.synchronize()
        cuda: Any = torch.cuda
        runtime = cuda.cudart()
        runtime.cudaProfilerStart()
        session.run("steady", 0)
        torch.cuda.synchronize()
        runtime.cudaProfilerStop()


if __name__ == "__main__":
    main()
