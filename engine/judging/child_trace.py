"""Traces one candidate on fake tensors at the full variant, and compiles its kernels for the declared chip.

`trace` {source, init, program, target, compile, budget_s, real}: launches with grid, bytes and meta-parameters, host
operations, output tree, and with `compile` registers, spills and shared memory; with `real` on tensors of the host that
have values, though no kernel changes them. `plan` {source, init, program, target,
budget_s}: the same without resources, and the launch plan, or why there is none (`untraceable`); it may be asked for
one variant after another. No device, no values.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

# FakeTensorMode imports it: two seconds that every child would pay after the fork.
import torch._dynamo.config
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.canonical import Json
from engine.codec import encode
from engine.judging import child, pretend
from engine.judging.host_ops import OpRecorder
from engine.judging.inputs import Program, flatten, replay
from engine.judging.lowering import CompileFailed, Specialiser, warm
from engine.judging.plan_build import build
from engine.judging.plan_recorder import INIT, PlanRecorder, Recording
from engine.judging.recorder import (
    DEFAULT_STAGES,
    DEFAULT_WARPS,
    LaunchRecorder,
    Recorded,
    has_dot,
    low_precision_dot,
)
from engine.judging.reference import tree_of
from engine.judging.rehearsal import rehearse, tensors_held
from engine.judging.streams import STREAMS
from engine.judging.wire import Channel
from profilers.static import Resources, bundled_cuobjdump, parse_resource_usage

# The fork server imports this module once for all children.
warm()

CALLS = 3
"""Calls of forward() that a plan is made from: the first, a later one, and one more that shows that it repeats."""


@dataclass(slots=True)
class Tracer:
    """One candidate: imported once, under a launch path that only records."""

    folder: Path
    recorder: LaunchRecorder = field(default_factory=LaunchRecorder)
    specialiser: Specialiser = field(default_factory=Specialiser)
    module: ModuleType | None = None
    rehearsed: bool = False

    def load(self, message: Json) -> ModuleType:
        """The candidate's module; what was recorded before is forgotten."""
        if self.module is None:
            pretend.answer_as_cuda()
            pretend.answer_on_fake_tensors()
            pretend.install_driver(message["target"])
            self.recorder.install()
            self.recorder.asks_for_best = "best_config" in message["source"]
            with pretend.Pretend(cuda=True, fake=True):
                self.module = child.import_candidate(message["source"], self.folder)
        self.recorder.clear()
        return self.module

    def answer(self, ops: OpRecorder) -> dict[str, Json]:
        """What both commands say of the launches and operations of one forward()."""
        launches = self.recorder.launches.values()
        return {
            "host_ops": ops.as_json(),
            "foreign": dict(self.recorder.foreign),
            "remarks": self.recorder.remarks,
            "launches": [_launch(launch, self.folder) for launch in launches],
            "interpreter_limit": sorted({r.name for r in launches if low_precision_dot(r)}),
        }


def trace(tracer: Tracer, message: Json) -> Json:
    """The launch record as JSON; `compile_error` instead of resources when a kernel does not compile or fit."""
    started = time.monotonic()
    module = tracer.load(message)
    recorder = tracer.recorder
    ops = OpRecorder()
    real = bool(message["real"])
    mode = pretend.Pretend(cuda=True, fake=not real)
    program = Program(tuple(message["program"]["steps"]), message["program"]["result"])
    answer: dict[str, Json] = {"compile_error": None}
    try:
        with contextlib.nullcontext() if real else FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            inputs = replay(program, "cpu", 0, "nominal")
            with mode:
                model = child.build(module, message["init"])
                answer["state"] = {name: list(value.shape) for name, value in model.state_dict().items()}
                recorder.launches.clear()
                with ops:
                    result = model(*inputs)
                    tensors, answer["tree"] = flatten(result), tree_of(result)
            answer["outputs"] = [_described(tensor) for tensor in tensors]
        if message["compile"]:
            recorder.compile_all(started + message["budget_s"])
    except CompileFailed as failed:
        answer["compile_error"] = {"kernel": failed.kernel, "message": failed.text, "resources": failed.resources}
    return answer | tracer.answer(ops)


def plan(tracer: Tracer, message: Json) -> Json:
    """The launch plan of one variant, with all that `trace` says of the first call."""
    deadline = time.monotonic() + message["budget_s"]
    module = tracer.load(message)
    launches = tracer.recorder
    ops = OpRecorder()
    answer: dict[str, Json] = {"compile_error": None, "plan": None, "grows": False}
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = PlanRecorder(fake, tracer.specialiser)
    mode = pretend.Pretend(cuda=True, fake=True)
    program = Program(tuple(message["program"]["steps"]), message["program"]["result"])
    launches.plan = recorder
    calls = []
    try:
        with fake, torch.no_grad():
            recorder.begin(INIT, ())
            launches.counting = False
            with mode, recorder:
                model = child.build(module, message["init"])
            recorder.name_state(model.state_dict(keep_vars=True))
            answer["state"] = {name: list(value.shape) for name, value in model.state_dict().items()}
            prelude = recorder.steps
            for phase in range(INIT + 1, INIT + 1 + CALLS):
                inputs = replay(program, "cpu", 0, "nominal")
                recorder.begin(phase, flatten(inputs))
                recorder.ops = ops if phase == INIT + 1 else None
                launches.counting = phase == INIT + 1
                with mode, recorder:
                    result = model(*inputs)
                    tensors, tree = flatten(result), tree_of(result)
                calls.append(recorder.finish(tensors, tree))
            if not tracer.rehearsed:
                tracer.rehearsed = True
                launches.counting = False

                def again(inputs: Any, phase: int) -> Recording:
                    recorder.begin(phase, flatten(inputs))
                    with mode, recorder:
                        returned = model(*inputs)
                        found = flatten(returned), tree_of(returned)
                    return recorder.finish(*found)

                phase = INIT + 1 + CALLS
                before = tensors_held(module, model)
                count = rehearse(recorder, calls[-1], phase, lambda: replay(program, "cpu", 0, "nominal"), again)
                answer["grows"] = tensors_held(module, model) - before >= count
            answer["tree"], answer["outputs"] = tree, [_described(tensor) for tensor in tensors]
        if mode.host_copies:
            recorder.refuse("it asks for memory of the host")
        if STREAMS.unsaid is not None:
            recorder.refuse(STREAMS.unsaid)
        made = build(recorder, prelude, calls, deadline)
        answer["plan"] = None if made is None else encode(made)
    except CompileFailed as failed:
        answer["compile_error"] = {"kernel": failed.kernel, "message": failed.text, "resources": failed.resources}
    finally:
        launches.plan = None
    answer["untraceable"] = recorder.reason
    return answer | tracer.answer(ops)


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
    child.serve(channel, layers, Tracer(folder), {"trace": trace, "plan": plan})
    shutil.rmtree(folder / "triton", ignore_errors=True)
