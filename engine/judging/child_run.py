"""Runs a candidate, call by call as the judge asks: on the CPU in Triton's interpreter, or on a CUDA device.

Commands (JSON): `load` {source, init, params, seed, device, target, tf32} imports and builds; `call` {id, program,
seed, suite, params_seed, poison, guard, count_ops, reuse, backwards} runs forward() and holds its outputs, with `reuse`
on the tensors of the call before, which get new values, with `backwards` from the grid's last program to the first;
`repeat` {program, seed, suite, least, count, seconds} runs it again and again and holds nothing; `collect` {ids} writes
the held outputs as raw files. Answers are parsed by `answers.py`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from engine.canonical import Json
from engine.codec import decode
from engine.judging import child, interpreter, pretend
from engine.judging.host_ops import OpRecorder, foreign_kind, row_of, values_read
from engine.judging.inputs import ParamSpec, Program, flatten, replay
from engine.judging.reference import fill_entries, tree_of
from engine.judging.untouched import Untouched
from engine.judging.wire import PART_BYTES, Channel, read_raw

KEPT_BYTES = 1 << 30
"""Device memory that a child may keep cached between calls."""


@dataclass(slots=True)
class RunState:
    folder: Path
    device: str = "cpu"
    module: ModuleType | None = None
    model: Any = None
    params: tuple[ParamSpec, ...] = ()
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    entries: dict[str, torch.Tensor] = field(default_factory=dict)
    """Of the state_dict, asked for once, before there are inputs: the model may override what answers."""
    owned: frozenset[str] = frozenset()
    """Those of the entries that are the modules' own tensors, and no copies."""
    held: dict[str, tuple[list[torch.Tensor], Json]] = field(default_factory=dict)
    """Results by call: their tensors and their tree, as they were when forward() returned."""
    launches: Counter[str] = field(default_factory=Counter)
    tuning: bool = False
    inputs: Any = None
    """Of the call before, while they are small."""
    untouched: Untouched | None = None
    """On a CPU, where all that is said of a call is said by this process."""

    def replaced(self) -> list[str]:
        return [] if self.untouched is None else self.untouched.replaced()

    def mode(self, pattern: str | None = None, *, guard: bool = False) -> pretend.Pretend:
        # The interpreter checks every access itself.
        return pretend.Pretend(cuda=self.device == "cpu", pattern=pattern, guard=guard and self.device != "cpu")


def load(state: RunState, message: Json) -> Json:
    """Import once, build for one variant; answers with the state_dict's names and shapes."""
    state.device = message["device"]
    if state.module is None:
        pretend.part_memory()
        if state.device == "cpu":
            pretend.answer_as_cuda()
            pretend.install_driver(message["target"])
            interpreter.install(lambda name: state.launches.update([name]))
            pretend.count_bytes_given()
            state.untouched = Untouched()
        else:
            torch.cuda.set_device(state.device)
            torch.backends.cuda.matmul.allow_tf32 = message["tf32"]
            torch.backends.cudnn.allow_tf32 = message["tf32"]
            _count_launches(state)
        with state.mode():
            state.module = child.import_candidate(message["source"], state.folder)
    state.params = tuple(decode(ParamSpec, spec, "parameter") for spec in message["params"])
    torch.manual_seed(message["seed"])
    with state.mode():
        state.model = child.build(state.module, message["init"])
    if state.device != "cpu":
        state.model = state.model.to(state.device)
    state.kept = _kept_values(state)
    state.inputs = None
    state.entries = dict(state.model.state_dict(keep_vars=True))
    own = _own_tensors(state.model, "")
    state.owned = frozenset(name for name, value in own if state.entries.get(name) is value)
    shapes = {name: list(value.shape) for name, value in _entries(state).items()}
    return {"state": shapes, "replaced": state.replaced()}


def _count_launches(state: RunState) -> None:
    """Count the candidate's kernels that really start: launched without an exception, on a grid that is not empty, and
    not as a trial of autotuning, whose torch operations are not the candidate's either."""
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    launch, trial = JITFunction.run, Autotuner._bench

    def counted(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        extents = [grid]

        def evaluated(arguments: Any) -> Any:
            extents[0] = grid(arguments)
            return extents[0]

        result = launch(self, *args, grid=evaluated if callable(grid) else grid, warmup=warmup, **kwargs)
        own = getattr(self.fn, "__module__", "") == child.MODULE
        if own and not warmup and not state.tuning and all(size >= 1 for size in extents[0]):
            state.launches.update([self.__name__])
        return result

    def unrecorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        state.tuning = True
        try:
            with _disable_current_modes():
                return trial(self, *args, **kwargs)
        finally:
            state.tuning = False

    JITFunction.run, Autotuner._bench = counted, unrecorded


def _kept_values(state: RunState) -> dict[str, torch.Tensor]:
    kept = {}
    for index, spec in enumerate(state.params):
        if spec.kind == "keep":
            dtype = getattr(torch, spec.dtype)
            count = int(torch.Size(spec.shape).numel())
            raw = read_raw(state.folder / f"param_{index}.bin", count * dtype.itemsize)
            value = torch.frombuffer(raw, dtype=dtype) if count else torch.empty(0, dtype=dtype)
            kept[spec.name] = value.reshape(spec.shape).to(state.device)
    return kept


def _entries(state: RunState) -> dict[str, torch.Tensor]:
    """The state_dict's tensors as the modules have them now, without a call of what the candidate may override."""
    now = dict(_own_tensors(state.model, ""))
    found = {name: now.get(name, old) if name in state.owned else old for name, old in state.entries.items()}
    for name, value in found.items():
        if foreign_kind([type(value)]) is not None:
            raise TypeError(f"the entry {name} of state_dict is a {type(value).__name__}, expected a plain tensor")
    return found


def _own_tensors(module: torch.nn.Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    own = object.__getattribute__(module, "__dict__")
    for kind in ("_parameters", "_buffers"):
        yield from ((prefix + name, value) for name, value in dict.items(own[kind]) if value is not None)
    for name, inner in dict.items(own["_modules"]):
        if inner is not None:
            yield from _own_tensors(inner, f"{prefix}{name}.")


def call(state: RunState, message: Json) -> Json:
    """One forward(); parameters are rewritten in place first."""
    inputs = _inputs(state, message)
    entries = _entries(state)
    fill_entries(entries, state.params, state.kept, state.device, message["params_seed"], message["suite"])
    before = [torch.Tensor.clone(tensor) for tensor in flatten(inputs)]
    held = {name: torch.Tensor.clone(torch.Tensor.detach(value)) for name, value in entries.items()}
    recorder = OpRecorder() if message["count_ops"] else None
    state.launches.clear()
    pretend.GIVEN.values = 0
    interpreter.ORDER.backwards = message["backwards"]
    started = time.perf_counter()
    watched = contextlib.nullcontext() if recorder is None else recorder
    with torch.no_grad(), state.mode(message["poison"], guard=message["guard"]) as mode, watched:
        result = state.model(*inputs)
        state.held[message["id"]] = flatten(result), tree_of(result)
        # What a result of the candidate's own kind does when it goes, it does here.
        del result
    if state.device != "cpu":
        torch.cuda.synchronize()
    wall = time.perf_counter() - started
    changed = [i for i, (old, new) in enumerate(zip(before, flatten(inputs), strict=True)) if not _same(old, new)]
    read = [row_of(values_read(pretend.GIVEN.values))] if pretend.GIVEN.values else []
    rewritten = [name for name, now in _entries(state).items() if not _same(held[name], now)]
    del before, inputs, held, entries
    _give_back(state)
    return {
        "wall_s": wall,
        "mutated": changed,
        "rewritten": rewritten,
        "overwritten": mode.overwritten_guards(),
        "replaced": state.replaced(),
        "launches": dict(state.launches),
        "host_ops": [*([] if recorder is None else recorder.as_json()), *read],
    }


def _inputs(state: RunState, message: Json) -> Any:
    """A call's inputs: new tensors, or those of the call before with new values, at the same address, of the same
    identity and version, where no result that is held lies in them."""
    program = Program(tuple(message["program"]["steps"]), message["program"]["result"])
    inputs = replay(program, state.device, message["seed"], message["suite"])
    fresh, old = flatten(inputs), flatten(state.inputs)
    mine = {torch.Tensor.untyped_storage(tensor).data_ptr() for tensor in old}
    held = (tensor for tensors, _ in state.held.values() for tensor in tensors)
    fits = [(a.shape, a.dtype, torch.Tensor.is_contiguous(a)) for a in old] == [(b.shape, b.dtype, True) for b in fresh]
    if message["reuse"] and state.inputs is not None and fits and not any(_lies_in(tensor, mine) for tensor in held):
        for before, values in zip(old, fresh, strict=True):
            # `.data` has a version counter of its own.
            before.data.copy_(values)
        return state.inputs
    state.inputs = inputs if sum(tensor.nbytes for tensor in fresh) <= KEPT_BYTES else None
    return inputs


def _lies_in(tensor: torch.Tensor, storages: set[int]) -> bool:
    try:
        return torch.Tensor.untyped_storage(tensor).data_ptr() in storages
    except (RuntimeError, NotImplementedError):
        # A tensor without a storage, which is no result that can be judged.
        return True


def repeat(state: RunState, message: Json) -> Json:
    """Up to `count` calls on one other draw of inputs within about `seconds`, the first `least` within four times as
    many, at least one; nothing is kept."""
    program = Program(tuple(message["program"]["steps"]), message["program"]["result"])
    inputs = replay(program, state.device, message["seed"], message["suite"])
    started = time.perf_counter()
    calls = 0
    with torch.no_grad(), state.mode():
        while calls < message["count"]:
            patience = 4 * message["seconds"] if calls < message["least"] else message["seconds"]
            if calls and time.perf_counter() - started > patience:
                break
            state.model(*inputs)
            calls += 1
            if state.device != "cpu":
                torch.cuda.synchronize()
    return {"calls": calls}


def _same(old: torch.Tensor, new: torch.Tensor) -> bool:
    # Without what the candidate may have set on the tensor itself.
    new = torch.Tensor.detach(new)
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    # As integers of the same width, so that NaN equals itself.
    raw = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(old.element_size(), torch.int64)
    return bool(torch.equal(old.contiguous().view(-1).view(raw), new.contiguous().view(-1).view(raw)))


def collect(state: RunState, message: Json) -> Json:
    """Write held outputs, all after the last call, so that a result overwritten by a later call shows."""
    outputs: dict[str, Json] = {}
    for name in message["ids"]:
        result, tree = state.held.pop(name)
        tensors = [_write(state.folder / f"{name}_{index}.bin", tensor) for index, tensor in enumerate(result)]
        outputs[name] = {"tree": tree, "tensors": tensors}
        del result
    _give_back(state)
    return {"outputs": outputs}


def _write(path: Path, tensor: torch.Tensor) -> Json:
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.__dict__
    described = {
        "at": path.name,
        "plain": plain,
        "type": type(tensor).__name__,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "device": tensor.device.type,
    }
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    with path.open("wb") as file:
        for start in range(0, flat.numel(), PART_BYTES):
            file.write(flat[start : start + PART_BYTES].cpu().numpy().tobytes())
    return described


def _give_back(state: RunState) -> None:
    """Free what PyTorch keeps of the device's memory: at full size the judge needs it for the comparison."""
    if state.device != "cpu" and torch.cuda.memory_reserved() > KEPT_BYTES:
        torch.cuda.empty_cache()


HANDLERS = {"load": load, "call": call, "repeat": repeat, "collect": collect}


def main(channel: Channel, layers: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    child.serve(channel, layers, RunState(Path(os.environ["HOME"])), HANDLERS)
