"""One variant of one candidate replayed from its launch plan: the judge writes inputs and parameters into the arena,
poisons the rest, has the executor run the plan, and reads results, inputs and guards back itself."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engine.canonical import Json
from engine.codec import encode
from engine.judging.allowance import Allowance
from engine.judging.compiler import CompiledKernel
from engine.judging.executors import Executor, ExecutorFault, NoRoom
from engine.judging.images import Image
from engine.judging.inputs import derive_seed, flatten, replay
from engine.judging.judge import Findings, Judge, Stop
from engine.judging.layout import GARBAGE_BYTE, NAN_BYTE, Guards, Layout, lay_out, set_bytes
from engine.judging.messages import Failure
from engine.judging.plan import Life, Origin, Plan, Ref
from engine.judging.reference import fill_parameters
from engine.judging.runs import Call, VariantRun
from engine.records import Precision, Reason, Status, Task

if TYPE_CHECKING:
    from engine.judging.references import Expected

SETS = 2
"""Sets of buffers while results are checked: two results are held before the first is read."""

ONE_SET_ABOVE_BYTES = 24 << 30
RACE_CALLS = 5
CALL_S = 20.0
"""Seconds of one call: a kernel that hangs holds the device no longer."""

POISON = {"nan": NAN_BYTE, "garbage": GARBAGE_BYTE}
KEPT_BYTE = NAN_BYTE
DEVICE_FAULTS = frozenset({"ended", "DriverError", "AcceleratorError"})
"""Faults that a kernel may have caused; any other means that the plan cannot be followed."""


class NotReplayable(Exception):
    """The executor cannot run this plan; the candidate's own process has to."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan and what its kernels became: `keys` in the plan's order, None for one that nothing launches."""

    plan: Plan
    keys: tuple[str | None, ...]
    kernels: Mapping[str, CompiledKernel]


class Replay:
    """A compiled plan in an executor, on `sets` sets of buffers in the arena that both see."""

    def __init__(
        self, executor: Executor, compiled: Compiled, sets: int, seed: int | None, *, tf32: bool, timeout_s: float
    ) -> None:
        self.executor, self.plan, self.sets = executor, compiled.plan, sets
        self.layout: Layout = lay_out(compiled.plan, sets, seed)
        self.memory = executor.memory(self.layout.bytes, timeout_s)
        self.guards = Guards(self.layout, self.memory)
        fresh = [kernel for key, kernel in compiled.kernels.items() if key not in executor.loaded]
        if fresh:
            executor.ask({"op": "load", "kernels": [encode(image_of(kernel)) for kernel in fresh]}, timeout_s)
            executor.loaded |= {kernel.key for kernel in fresh}
        offsets = [list(row) for row in self.layout.offsets]
        plan, keys = encode(compiled.plan), list(compiled.keys)
        message = {"op": "plan", "plan": plan, "keys": keys, "offsets": offsets, "tf32": tf32}
        executor.ask(message, timeout_s)
        self.wipe()
        self.fill_kept()

    def wipe(self) -> None:
        """Nothing is left in the sets of what another candidate had there; `fill_kept` does the rest."""
        self.memory[self.layout.kept_end : self.layout.regions[-1][1]].fill_(KEPT_BYTE)

    def fill_kept(self) -> None:
        """Poison what outlives calls, and put literals there."""
        self.memory[: self.layout.kept_end].fill_(KEPT_BYTE)
        self.memory[self.layout.regions[-1][1] :].fill_(KEPT_BYTE)
        self._literals(Life.KEPT, 0)

    def fill(self, number: int, byte: int) -> None:
        """Poison a set and its guards, then write its literals."""
        start, end = self.layout.regions[number]
        self.memory[start:end].fill_(byte)
        self._literals(Life.CALL, number)

    def poison_fresh(self, number: int, byte: int) -> None:
        """Poison what the candidate allocates in a set, and nothing else."""
        start, end = self.layout.fresh[number]
        self.memory[start:end].fill_(byte)

    def literals(self, life: Life, number: int) -> list[tuple[int, int]]:
        """Start and end of each literal in a set."""
        return [
            (start := self.layout.offsets[number][index], start + buffer.bytes)
            for index, buffer in enumerate(self.plan.buffers)
            if buffer.origin is Origin.LITERAL and buffer.life is life
        ]

    def _literals(self, life: Life, number: int) -> None:
        for index, buffer in enumerate(self.plan.buffers):
            if buffer.origin is Origin.LITERAL and buffer.life is life and buffer.bytes:
                content = torch.frombuffer(bytearray(base64.b64decode(buffer.data)), dtype=torch.uint8)
                self._place(index, number, buffer.bytes)[: content.numel()] = content.to(self.memory.device)

    def _place(self, buffer: int, number: int, size: int) -> torch.Tensor:
        start = self.layout.offsets[number][buffer]
        return self.memory[start : start + size]

    def write_inputs(self, number: int, tensors: Sequence[torch.Tensor], *, first: bool) -> None:
        """Put each input's bytes into the buffers that stand for it; those that outlive calls only at the first."""
        for index, buffer in enumerate(self.plan.buffers):
            if buffer.origin is Origin.INPUT and (first or buffer.life is Life.CALL):
                self._place(index, number, buffer.bytes).copy_(input_bytes(tensors[int(buffer.name)], buffer.bytes))

    def inputs_changed(self, number: int, tensors: Sequence[torch.Tensor]) -> list[int]:
        """Positions of inputs whose bytes are not what was written."""
        return sorted(
            {
                int(buffer.name)
                for index, buffer in enumerate(self.plan.buffers)
                if buffer.origin is Origin.INPUT
                and buffer.life is Life.CALL
                and not torch.equal(
                    self._place(index, number, buffer.bytes), input_bytes(tensors[int(buffer.name)], buffer.bytes)
                )
            }
        )

    def write_state(self, state: Mapping[str, torch.Tensor]) -> None:
        for place, raw in self._state(state):
            place.copy_(raw)

    def state_changed(self, state: Mapping[str, torch.Tensor]) -> bool:
        """Whether a parameter or buffer is not what was written."""
        return any(not torch.equal(place, raw) for place, raw in self._state(state))

    def _state(self, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, raw in state_bytes(self.plan, state):
            yield self._place(index, 0, raw.numel()), raw

    def run(self, part: str, number: int, timeout_s: float, *, traffic: bool = False) -> float:
        """Run a part of the plan to its end; seconds it took."""
        settle(self.memory)
        message = {"op": "run", "part": part, "set": number, "traffic": traffic}
        return float(self.executor.ask(message, timeout_s)["wall_s"])

    def result(self, part: str, number: int, index: int, timeout_s: float) -> torch.Tensor:
        """A copy of one output."""
        call = self.plan.first if part == "first" and self.plan.first is not None else self.plan.steady
        ref = call.outputs[index]
        start = self.layout.offsets[number][ref.buffer]
        if start >= 0:
            return _view(self.memory, start, ref).clone(memory_format=torch.contiguous_format)
        exports = self.layout.exports[number][: len(call.outputs)]
        places = [place if k == index else -1 for k, place in enumerate(exports)]
        self.executor.ask({"op": "export", "part": part, "set": number, "places": places}, timeout_s)
        packed = Ref(ref.buffer, 0, ref.shape, _contiguous(ref.shape), ref.dtype)
        return _view(self.memory, places[index], packed).clone()


def state_bytes(plan: Plan, state: Mapping[str, torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """Each buffer that stands for a parameter, with the parameter's bytes."""
    for index, buffer in enumerate(plan.buffers):
        if buffer.origin is Origin.STATE:
            value = state[buffer.name].detach().contiguous().reshape(-1)
            raw = value.view(torch.uint8) if value.numel() else value.new_empty(0, dtype=torch.uint8)
            if raw.numel() != buffer.bytes:
                raise NotReplayable(f"{buffer.name} shares its storage with another parameter")
            yield index, raw


def input_bytes(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """The bytes of an input's storage, of which a plan has `size`."""
    storage = tensor.detach().untyped_storage()
    if storage.nbytes() != size:
        raise NotReplayable(f"an input has {storage.nbytes()} bytes of storage on this device, {size} in the plan")
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (size,), (1,))


def _view(memory: torch.Tensor, start: int, ref: Ref) -> torch.Tensor:
    dtype = getattr(torch, ref.dtype)
    empty = torch.empty(0, dtype=dtype, device=memory.device)
    return empty.set_(memory.untyped_storage(), start // dtype.itemsize + ref.offset, ref.shape, ref.stride)


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def settle(memory: torch.Tensor) -> None:
    """What this process wrote must be in memory before the other one reads."""
    if memory.device.type == "cuda":
        torch.cuda.synchronize()


def image_of(kernel: CompiledKernel) -> Image:
    """A compiled kernel as it travels to the process that loads it."""
    return Image(
        key=kernel.key,
        image=base64.b64encode(kernel.cubin).decode(),
        symbol=kernel.symbol,
        parameters=kernel.parameters,
        threads=kernel.threads,
        shared_bytes=kernel.shared_bytes,
        cluster=kernel.cluster,
        cooperative=kernel.cooperative,
        scratch_bytes=kernel.global_scratch_bytes,
    )


class ReplayedVariant(VariantRun):
    """All calls of one variant from its plan. Stops the judgement at the first failure; NotReplayable when the
    executor cannot follow the plan."""

    def __init__(
        self,
        judge: Judge,
        executor: Executor,
        compiled: Compiled,
        task: Task,
        variant: str,
        found: Findings,
        allowance: Allowance,
    ) -> None:
        super().__init__(judge, task, variant, found, allowance)
        self.executor, self.compiled = executor, compiled
        self.choices: tuple[int, ...] = ()
        """Of each autotuned steady launch, in order, once the plan is loaded."""
        self._where: dict[str, tuple[str, int]] = {}
        self._turn = 0

    def _load(self, source: str) -> None:
        tf32 = self.precision is not Precision.IEEE
        try:
            self.replay = Replay(
                self.executor, self.compiled, self._sets(), self._layout_seed(), tf32=tf32, timeout_s=self._left()
            )
            self.replay.write_state(self.reference.model.state_dict())
            self.replay.run("prelude", 0, self._left())
            if any(len(step.launch) > 1 for step in self.compiled.plan.steady.steps):
                self._tune()
        except NoRoom as fault:
            text = f"not enough memory for its tensors beside what others hold: {fault}"
            raise Stop(Failure(Status.UNDECIDED, Reason.OUT_OF_MEMORY, text), self.variant) from fault
        except ExecutorFault as fault:
            raise self._stop(fault, "while its plan was loaded", None) from fault
        if self.compiled.plan.first is not None:
            self._first()

    def _layout_seed(self) -> int | None:
        return derive_seed(self.found.seed, self.variant, "layout")

    def _sets(self) -> int:
        return SETS if set_bytes(self.compiled.plan) < ONE_SET_ABOVE_BYTES else 1

    def _tune(self) -> None:
        call = self._call("nominal", 0, "nan")
        inputs = self._inputs(call)
        self.replay.fill(0, POISON[call.poison])
        self.replay.write_inputs(0, inputs, first=True)
        settle(self.replay.memory)
        if self.compiled.plan.first is not None:
            self.replay.run("first", 0, self._left())
        answer = self.executor.ask({"op": "choose", "set": 0, "repeats": 5}, self._left())
        self.choices = tuple(answer["choices"])
        self.found.remark(f"{self.variant}: autotune choices {', '.join(map(str, self.choices))}")
        self.replay.fill_kept()
        self.replay.write_state(self.reference.model.state_dict())
        self.replay.run("prelude", 0, self._left())

    def _first(self) -> None:
        """The first call of an instance, whose results count like any other's."""
        call = self._call("nominal", 1 << 20, "garbage")
        result = self._expected(call)
        assert result is not None
        self._forward_part(call, "first")
        self._check(call, self._collect([call.name], call.suite)[call.name], result)

    def _inputs(self, call: Call) -> list[torch.Tensor]:
        return flatten(replay(self.reference.inputs, self.reference.device, call.seed, call.suite))

    def _forward(self, call: Call, *, count_ops: bool, late: bool = False) -> float:
        return self._forward_part(call, "steady")

    def _forward_part(self, call: Call, part: str, *, traffic: bool = False) -> float:
        number = self._turn % self.replay.sets
        self._turn += 1
        byte = POISON[call.poison]
        inputs = self._inputs(call)
        self.fill_state(call)
        self.replay.fill(number, byte)
        self.replay.write_inputs(number, inputs, first=part == "first")
        try:
            wall = self.replay.run(part, number, self._left(), traffic=traffic)
        except ExecutorFault as fault:
            raise self._stop(fault, f"in forward() (variant {self.variant}, suite {call.suite})", call.suite) from fault
        self._intact(number, byte, inputs, call)
        self._where[call.name] = (part, number)
        return wall

    def fill_state(self, call: Call) -> None:
        """Parameters of this draw, into the storage that the plan has had all along."""
        reference = self.reference
        seed, suite = call.params_seed, call.suite
        fill_parameters(reference.model, reference.params, reference.kept, reference.device, seed, suite)
        self.replay.write_state(self.reference.model.state_dict())

    def _intact(self, number: int, byte: int, inputs: Sequence[torch.Tensor], call: Call) -> None:
        changed = self.replay.inputs_changed(number, inputs)
        if changed:
            text = f"forward() changed its input {', '.join(map(str, changed))} (variant {self.variant})"
            raise Stop(Failure(Status.REJECTED, Reason.MUTATED_INPUT, text), self.variant, call.suite)
        if self.replay.state_changed(self.reference.model.state_dict()):
            text = f"forward() changed a parameter or buffer of the module (variant {self.variant})"
            raise Stop(Failure(Status.REJECTED, Reason.MUTATED_INPUT, text), self.variant, call.suite)
        if self.replay.guards.overwritten(number, byte, KEPT_BYTE):
            text = f"a kernel wrote outside its tensors (variant {self.variant}). A mask or an index is wrong."
            raise Stop(Failure(Status.FAILED, Reason.CRASH, text), self.variant, call.suite)

    def _collect(self, names: Sequence[str], suite: str) -> Mapping[str, Json]:
        outputs: dict[str, Json] = {}
        for name in names:
            part, number = self._where[name]
            plan = self.compiled.plan
            call = plan.first if part == "first" and plan.first is not None else plan.steady
            rows = [
                {
                    "plain": True,
                    "type": "Tensor",
                    "dtype": ref.dtype,
                    "shape": list(ref.shape),
                    "stride": list(ref.stride),
                    "device": torch.device(self.judge.place.device).type,
                    "at": [part, number, index],
                }
                for index, ref in enumerate(call.outputs)
            ]
            outputs[name] = {"tree": call.tree, "tensors": rows}
        return outputs

    def _raw(self, row: Json, size: int | None = None) -> torch.Tensor:
        part, number, index = row["at"]
        try:
            result = self.replay.result(part, number, index, self._left())
        except ExecutorFault as fault:
            raise self._stop(fault, f"while outputs were read (variant {self.variant})", None) from fault
        return result.reshape(-1).view(torch.uint8)

    def _further_calls(self) -> None:
        """The race probe: one draw again and again, once beside other traffic; results may differ by rounding only."""
        draw = self._call("nominal", 2 << 20, "nan")
        result = self._expected(draw)
        if result is None:
            return
        before: list[torch.Tensor] | None = None
        for number in range(RACE_CALLS):
            call = Call(f"race{number}", draw.suite, draw.seed, draw.params_seed, draw.poison)
            self._forward_part(call, "steady", traffic=number == RACE_CALLS - 1)
            output = self._collect([call.name], call.suite)[call.name]
            content = [self._raw(row) for row in output["tensors"]]
            if before is not None and len(content) == len(before) and all(map(torch.equal, before, content)):
                continue
            self._check_repeated(call, output, result, first=before is None)
            before = content

    def _check_repeated(self, call: Call, output: Json, result: Expected, *, first: bool) -> None:
        try:
            self._check(call, output, result)
        except Stop as stop:
            if first or stop.failure.reason not in (Reason.WRONG_RESULT, Reason.NON_FINITE, Reason.PRECISION):
                raise
            text = f"right once, wrong when repeated on the same values: {stop.failure.message}"
            raise Stop(Failure(Status.REJECTED, Reason.UNSTABLE, text), self.variant, call.suite) from stop

    def _left(self) -> float:
        return min(CALL_S, self.allowance.left_s)

    def _stop(self, fault: ExecutorFault, when: str, suite: str | None) -> Exception:
        """What a failed command means for the candidate."""
        if fault.kind == "timeout":
            return Stop(Failure(Status.FAILED, Reason.TIMEOUT, f"{fault} {when}"), self.variant, suite)
        if fault.kind == "OutOfMemoryError" or "out of memory" in str(fault):
            return Stop(Failure(Status.FAILED, Reason.OUT_OF_MEMORY, f"{when}: {fault}"), self.variant, suite)
        if fault.kind not in DEVICE_FAULTS and "CUDA error" not in str(fault):
            return NotReplayable(f"{fault.kind}: {fault}")
        text = f"{when}: {fault} (a kernel read or wrote outside its tensors, or the device refused its launch)"
        return Stop(Failure(Status.FAILED, Reason.CRASH, text), self.variant, suite)
