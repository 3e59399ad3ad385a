"""Traces one candidate on fake tensors at the full variant, and compiles its kernels for the declared chip.

One command, `trace` {source, init, program, target, compile, budget_s}: launches with grid, bytes and meta-parameters,
host operations, output tree, and with `compile` registers, spills and shared memory. No device, no values.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.canonical import Json
from engine.judging import child, pretend
from engine.judging.host_ops import OpRecorder
from engine.judging.inputs import Program, flatten, replay
from engine.judging.recorder import (
    DEFAULT_STAGES,
    DEFAULT_WARPS,
    CompileFailed,
    LaunchRecorder,
    Recorded,
    has_dot,
    low_precision_dot,
)
from engine.judging.reference import tree_of
from engine.judging.wire import Channel
from profilers.static import Resources, bundled_cuobjdump, parse_resource_usage


def trace(folder: Path, message: Json) -> Json:
    """The launch record as JSON; `compile_error` instead of resources when a kernel does not compile or fit."""
    started = time.monotonic()
    pretend.answer_as_cuda()
    pretend.answer_on_fake_tensors()
    pretend.install_driver(message["target"])
    recorder = LaunchRecorder()
    recorder.install()
    ops = OpRecorder()
    mode = pretend.Pretend(cuda=True, fake=True)
    with mode:
        module = child.import_candidate(message["source"], folder)
    program = Program(tuple(message["program"]["steps"]), message["program"]["result"])
    answer: dict[str, Json] = {"launches": [], "host_ops": [], "remarks": [], "compile_error": None}
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            inputs = replay(program, "cpu", 0, "nominal")
            with mode:
                model = child.build(module, message["init"])
                answer["state"] = {name: list(value.shape) for name, value in model.state_dict().items()}
                recorder.launches.clear()
                with ops:
                    result = model(*inputs)
            answer["tree"] = tree_of(result)
            answer["outputs"] = [_described(tensor) for tensor in flatten(result)]
        if message["compile"]:
            recorder.compile_all(started + message["budget_s"])
    except CompileFailed as failed:
        answer["compile_error"] = {"kernel": failed.kernel, "message": failed.text, "resources": failed.resources}
    answer["host_ops"] = ops.as_json()
    answer["foreign"] = dict(recorder.foreign)
    answer["remarks"] = recorder.remarks
    answer["launches"] = [_launch(launch, folder) for launch in recorder.launches.values()]
    answer["interpreter_limit"] = sorted({r.name for r in recorder.launches.values() if low_precision_dot(r)})
    return answer


def _described(tensor: Any) -> Json:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}


def _launch(recorded: Recorded, folder: Path) -> Json:
    usage = _resources(recorded.compiled, folder) if recorded.compiled is not None else None
    return {
        "kernel": recorded.name,
        "grid": list(recorded.grid),
        "count": recorded.count,
        "bytes": float(recorded.bytes),
        "num_warps": recorded.option("num_warps", DEFAULT_WARPS),
        "num_stages": recorded.option("num_stages", DEFAULT_STAGES),
        "has_dot": has_dot(recorded.function),
        "registers": None if usage is None else usage.registers,
        "spill_bytes": None if usage is None else usage.spill_bytes,
        "shared_bytes": None if recorded.compiled is None else int(recorded.compiled.metadata.shared),
    }


def _resources(compiled: Any, folder: Path) -> Resources | None:
    tool = bundled_cuobjdump()
    if tool is None or "cubin" not in compiled.asm:
        return None
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    command = [tool, "--dump-resource-usage", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    usage = parse_resource_usage(done.stdout)
    return usage[0] if usage else None


def main(channel: Channel, layers: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    folder = Path(os.environ["HOME"])
    child.serve(channel, layers, folder, {"trace": trace})
    shutil.rmtree(folder / "triton", ignore_errors=True)
