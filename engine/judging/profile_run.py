"""The command that a profiler runs: one marked call of an operator, after warm-up calls outside the mark.

`python -m engine.judging.profile_run FILE`, FILE holding the JSON of a `gpu_side.Open`. With a source it runs the
candidate, without one the eager reference. Warm-up takes compilation and autotuning out of the profile; the mark is
cudaProfilerStart/Stop, which `ncu --profile-from-start off` waits for; with `trace` the call is made under torch's
profiler instead.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from engine.codec import decode
from engine.judging import gpu_side

WARM_UP_CALLS = 2
TRACE_FILE = "kernel_trace.json"
"""As profilers.trace looks for it; that package is not in the folder of a confined command."""


def run(request: gpu_side.Open) -> None:
    gpu_side.apply_precision(request.precision)
    task = gpu_side.load_module(request.task_source, "reference", request.folder)
    owner, name = task, "Model"
    if request.source is not None:
        owner, name = gpu_side.load_module(request.source, "candidate", request.folder), "ModelNew"
    inputs = gpu_side.device_inputs(task, request.seed)
    model = gpu_side.build_model(task, owner, name, request.seed)
    for _ in range(WARM_UP_CALLS):
        model(*inputs)
    torch.cuda.synchronize()
    if request.trace:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as watched:
            model(*inputs)
            torch.cuda.synchronize()
        watched.export_chrome_trace(str(Path(request.folder, TRACE_FILE)))
        return
    cuda: Any = torch.cuda
    runtime = cuda.cudart()
    runtime.cudaProfilerStart()
    model(*inputs)
    torch.cuda.synchronize()
    runtime.cudaProfilerStop()


def main() -> None:
    tree = json.loads(Path(sys.argv[1]).read_text())
    with torch.inference_mode():
        run(decode(gpu_side.Open, tree, "profile request"))


if __name__ == "__main__":
    main()
