"""The candidate's process on an NPU: `python -m engine.backends.npu_worker serve FD DEVICE` or `... once FILE`.

Runs in the interpreter of the environment with torch_npu and triton-ascend (Python 3.11; that Triton cannot share an
environment with ours), so it imports torch, Triton and what of ours needs neither anything else nor a newer torch. Its
answers are claims of a process that the candidate owns. It has never run on an NPU: tests put the CPU in its place.

`serve` answers the judge over a socket as `engine.judging.child_run` does, whose functions it uses, and
`time` {program, seed, warm_up, active, folder}: that many calls, each waited for, under torch_npu's profiler, whose
kernel_details go below `folder`. `once` makes the calls of a `Request`, for a profiler that runs this command.
Inputs and parameters of judged calls are drawn on the CPU, so that they are the judge's own; those of timed calls,
whose values nobody compares, on the device.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.canonical import Json
from engine.codec import decode
from engine.judging import child, child_run
from engine.judging.inputs import Program, map_tensors, replay
from engine.judging.reference import fill_entries
from engine.judging.wire import Channel

CPU = "cpu"
WAITING = ("set_device", "synchronize", "memory_reserved", "empty_cache")
"""Functions of torch.cuda that `child_run` calls; torch.npu has the same."""

SUITE = "nominal"


@dataclass(frozen=True, slots=True)
class Request:
    """What `once` runs. `init`, `program`: as in a judge's messages; `folder`: of the profiler's files, empty without
    torch_npu's profiler."""

    source: str
    init: Json
    program: Json
    seed: int
    device: str
    calls: int
    folder: str


def synchronize(device: str) -> None:
    """Wait for all that the device has been given."""
    getattr(torch, torch.device(device).type).synchronize()


def redirect(device: str) -> None:
    """Let `child_run`, which knows the CPU and CUDA, work on an NPU: what it draws is drawn on the CPU and moved, what
    it compares and writes is compared and written there, and where it waits for CUDA it waits for the NPU."""
    same, write = child_run._same, child_run._write

    def drawn(program: Program, _: str, seed: int, suite: str) -> Any:
        return map_tensors(replay(program, CPU, seed, suite), lambda tensor: tensor.to(device))

    def filled(entries: Any, specs: Any, kept: Any, _: str, seed: int, suite: str) -> None:
        fill_entries(entries, specs, kept, CPU, seed, suite)

    def compared(old: torch.Tensor, new: torch.Tensor) -> bool:
        return same(old.cpu(), new.cpu())

    def written(path: Path, tensor: torch.Tensor) -> Json:
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.__dict__
        described = {"plain": plain, "type": type(tensor).__name__, "device": tensor.device.type}
        return {**write(path, tensor.detach().cpu()), **described, "stride": list(tensor.stride())}

    ours = {"replay": drawn, "fill_entries": filled, "_same": compared, "_write": written}
    for name, function in ours.items():
        setattr(child_run, name, function)
    for name in WAITING:
        setattr(torch.cuda, name, getattr(getattr(torch, torch.device(device).type), name))


def call(state: child_run.RunState, message: Json) -> Json:
    """As `child_run.call`, without guard bytes around allocations: they need views that nobody has tried on an NPU."""
    return child_run.call(state, {**message, "guard": False})


def time_calls(state: child_run.RunState, message: Json) -> Json:
    """`warm_up` + `active` profiled calls on one draw of inputs."""
    inputs = replay(_program(message), state.device, message["seed"], SUITE)
    with torch.no_grad():
        profiled(lambda: state.model(*inputs), message["warm_up"] + message["active"], message["folder"], state.device)
    return {"calls": message["warm_up"] + message["active"]}


def profiled(work: Callable[[], object], calls: int, folder: str, device: str) -> None:
    """Calls under torch_npu's profiler, as triton-ascend's own timer makes them: level 1, because level 0 drops the
    counters with a warning; one call before it, so that compilation is not in it."""
    import torch_npu  # type: ignore[import-not-found]

    profiler = torch_npu.profiler
    work()
    synchronize(device)
    with profiler.profile(
        activities=[profiler.ProfilerActivity.NPU],
        on_trace_ready=profiler.tensorboard_trace_handler(folder),
        record_shapes=False,
        profile_memory=False,
        with_stack=False,
        experimental_config=profiler._ExperimentalConfig(
            aic_metrics=profiler.AiCMetrics.PipeUtilization, profiler_level=profiler.ProfilerLevel.Level1
        ),
    ):
        for _ in range(calls):
            work()
            synchronize(device)


def once(request: Request, folder: Path) -> None:
    """The calls that a profiler is to see. The first compiles: a table of all launches includes it."""
    model = child.build(child.import_candidate(request.source, folder), request.init).to(request.device)
    program = Program(tuple(request.program["steps"]), request.program["result"])
    inputs = replay(program, request.device, request.seed, SUITE)
    with torch.no_grad():
        if request.folder:
            profiled(lambda: model(*inputs), request.calls, request.folder, request.device)
            return
        for _ in range(request.calls):
            model(*inputs)
            synchronize(request.device)


def _program(message: Json) -> Program:
    return Program(tuple(message["program"]["steps"]), message["program"]["result"])


HANDLERS = {**child_run.HANDLERS, "call": call, "time": time_calls}


def main(arguments: list[str]) -> None:
    # Registers the device with torch; triton-ascend expects it before Triton is used.
    import torch_npu  # noqa: F401

    if arguments[0] == "once":
        path = Path(arguments[1])
        once(decode(Request, json.loads(path.read_text()), "request of a profile"), path.parent)
        return
    _, descriptor, device = arguments
    if torch.device(device).type != CPU:
        redirect(device)
    state = child_run.RunState(Path.cwd(), device=device)
    child.serve(Channel(socket.socket(fileno=int(descriptor))), (), state, HANDLERS)


if __name__ == "__main__":
    main(sys.argv[1:])
