"""Checks a launch plan that a candidate's process handed over: nothing outside the contract reaches compiler or
executor. Pure: no candidate code, no device.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.canonical import Json
from engine.judging.plan import (
    MAX_BUFFERS,
    MAX_CHOICES,
    MAX_GRID,
    MAX_LITERAL_BYTES,
    MAX_STEPS,
    Argument,
    Buffer,
    Call,
    HostCall,
    Kernel,
    Launch,
    Life,
    Origin,
    Plan,
    Ref,
    Step,
    tensors_of,
)
from engine.judging.plan_arguments import PlanError as PlanError
from engine.judging.plan_arguments import check_number, check_value, dtype_of, expect, operation_of
from engine.judging.plan_pointers import written_pointers

MAX_BUFFER_BYTES = 1 << 40
MAX_KERNELS = 1024
MAX_TTIR_CHARS = 4 << 20
MAX_RANK = 64
MAX_ARGUMENTS = 512
MAX_STREAMS = 64
MAX_STAGES = 64
MAX_WARPS = 64
MAX_CTAS = 16

_KERNEL_NAME = re.compile(r"[A-Za-z_]\w{0,199}")


def check_plan(plan: Plan, state_shapes: Mapping[str, tuple[int, ...]], input_tensors: Sequence[torch.Tensor]) -> None:
    """PlanError for anything that no honest tracer emits. `state_shapes` are the reference's; a buffer's own dtype says
    how many bytes that is. `input_tensors`: forward()'s, flattened; a buffer covers the whole storage of one."""
    expect(len(plan.buffers) <= MAX_BUFFERS, f"at most {MAX_BUFFERS} buffers, got {len(plan.buffers)}")
    expect(len(plan.kernels) <= MAX_KERNELS, f"at most {MAX_KERNELS} kernels, got {len(plan.kernels)}")
    for index, buffer in enumerate(plan.buffers):
        _buffer(f"buffer {index}", buffer, state_shapes, input_tensors)
    for index, kernel in enumerate(plan.kernels):
        _kernel(f"kernel {index}", kernel)
    parts = {"prelude": plan.prelude, **{name: call.steps for name, call in _calls(plan).items()}}
    total = sum(map(len, parts.values()))
    expect(total <= 3 * MAX_STEPS, f"at most {3 * MAX_STEPS} steps, got {total}")
    made: set[int] = set()
    for name, steps in parts.items():
        # What an earlier call made is there for a later one only if it is kept.
        made = {index for index in made if plan.buffers[index].life is Life.KEPT}
        checker = _Steps(plan, name, made)
        for number, step in enumerate(steps):
            checker.step(number, step)
        if name != "prelude":
            call = _calls(plan)[name]
            for position, ref in enumerate(call.outputs):
                checker.known(f"{name}, output {position}", ref)
            _tree(f"{name}, output tree", call)


def _calls(plan: Plan) -> dict[str, Call]:
    return {"steady": plan.steady} if plan.first is None else {"first": plan.first, "steady": plan.steady}


def _buffer(
    where: str, buffer: Buffer, state_shapes: Mapping[str, tuple[int, ...]], inputs: Sequence[torch.Tensor]
) -> None:
    itemsize = dtype_of(where, buffer.dtype).itemsize
    expect(0 <= buffer.bytes <= MAX_BUFFER_BYTES, f"{where}: {buffer.bytes} bytes")
    expected: int | None = None
    if buffer.origin is Origin.STATE:
        expect(buffer.name in state_shapes, f"{where}: the reference's state_dict has no {buffer.name[:80]!r}")
        expect(buffer.life is Life.KEPT, f"{where}: an entry of state_dict is kept")
        expected = math.prod(state_shapes[buffer.name]) * itemsize
    elif buffer.origin is Origin.INPUT:
        known = re.fullmatch("[0-9]{1,6}", buffer.name) is not None and int(buffer.name) < len(inputs)
        expect(known, f"{where}: forward() has {len(inputs)} tensors, got position {buffer.name[:20]!r}")
        expected = inputs[int(buffer.name)].untyped_storage().nbytes()
    elif buffer.origin is Origin.LITERAL:
        expected = _literal_bytes(where, buffer.data)
    if buffer.origin not in (Origin.STATE, Origin.INPUT):
        expect(buffer.name == "", f"{where}: a name on memory of the candidate's own")
    if buffer.origin is not Origin.LITERAL:
        expect(buffer.data == "", f"{where}: data on a buffer that is not literal")
    if expected is not None:
        expect(buffer.bytes == expected, f"{where} ({buffer.origin}): expected {expected} bytes, got {buffer.bytes}")


def _literal_bytes(where: str, data: str) -> int:
    expect(len(data) <= 4 * (MAX_LITERAL_BYTES // 3 + 1), f"{where}: a literal above {MAX_LITERAL_BYTES} bytes")
    try:
        return len(base64.b64decode(data.encode("ascii"), validate=True))
    except (binascii.Error, UnicodeEncodeError) as error:
        raise PlanError(f"{where}: data that is not base64") from error


def _kernel(where: str, kernel: Kernel) -> None:
    expect(_KERNEL_NAME.fullmatch(kernel.name) is not None, f"{where}: the name {kernel.name[:40]!r}")
    expect(len(kernel.ttir) <= MAX_TTIR_CHARS, f"{where}: {len(kernel.ttir)} characters of Triton IR")
    warps = kernel.num_warps
    expect(1 <= warps <= MAX_WARPS and warps & (warps - 1) == 0, f"{where}: num_warps={warps}")
    expect(0 <= kernel.num_stages <= MAX_STAGES, f"{where}: num_stages={kernel.num_stages}")
    expect(1 <= kernel.num_ctas <= MAX_CTAS, f"{where}: num_ctas={kernel.num_ctas}")
    expect(kernel.maxnreg is None or 1 <= kernel.maxnreg <= 255, f"{where}: maxnreg={kernel.maxnreg}")


@dataclass(slots=True)
class _Steps:
    """Checks the steps of one part in order. `made`: OP buffers that exist so far."""

    plan: Plan
    part: str
    made: set[int]
    marks: set[int] = field(default_factory=set)

    def step(self, number: int, step: Step) -> None:
        where = f"{self.part}, step {number}"
        expect(0 <= step.stream < MAX_STREAMS, f"{where}: stream {step.stream}")
        kinds = [bool(step.launch), step.call is not None, step.wait is not None]
        kinds += [step.event is not None, step.wait_event is not None]
        expect(sum(kinds) == 1, f"{where}: expected one of launch, call, wait, event, wait_event")
        if step.wait is not None:
            expect(0 <= step.wait < MAX_STREAMS, f"{where}: waits for stream {step.wait}")
        if step.event is not None:
            expect(0 <= step.event < MAX_STEPS and step.event not in self.marks, f"{where}: event {step.event}")
            self.marks.add(step.event)
        if step.wait_event is not None:
            expect(step.wait_event in self.marks, f"{where}: waits for event {step.wait_event}, which is not set yet")
        expect(len(step.launch) <= MAX_CHOICES, f"{where}: {len(step.launch)} choices, at most {MAX_CHOICES}")
        for launch in step.launch:
            self._launch(where, launch)
        if step.call is not None:
            self._call(where, step.call)

    def _launch(self, where: str, launch: Launch) -> None:
        expect(0 <= launch.kernel < len(self.plan.kernels), f"{where}: kernel {launch.kernel}")
        inside = all(1 <= size <= limit for size, limit in zip(launch.grid, MAX_GRID, strict=True))
        expect(inside, f"{where}: grid {launch.grid}, expected 1 to {MAX_GRID}")
        expect(len(launch.arguments) <= MAX_ARGUMENTS, f"{where}: {len(launch.arguments)} arguments")
        for position, argument in enumerate(launch.arguments):
            self._argument(f"{where}, argument {position}", argument)

    def _argument(self, where: str, argument: Argument) -> None:
        if argument.kind == "pointer":
            size = self._exists(where, argument.buffer).bytes
            expect(0 <= argument.offset <= size, f"{where}: offset {argument.offset} in {size} bytes")
        elif argument.kind == "int":
            plain = re.fullmatch(r"-?[0-9]{1,20}", argument.value) is not None
            expect(plain and -(2**63) <= int(argument.value) < 2**64, f"{where}: the int {argument.value[:40]!r}")
        else:
            expect(argument.kind == "float", f"{where}: the kind {argument.kind[:40]!r}")
            check_number(where, argument.value)

    def _exists(self, where: str, index: int) -> Buffer:
        expect(0 <= index < len(self.plan.buffers), f"{where}: buffer {index} of {len(self.plan.buffers)}")
        buffer = self.plan.buffers[index]
        expect(buffer.origin is not Origin.OP or index in self.made, f"{where}: buffer {index} is not made yet")
        if self.part == "prelude":
            expect(buffer.life is Life.KEPT, f"{where}: buffer {index} lives for a call, __init__ is none")
        return buffer

    def known(self, where: str, ref: Ref) -> None:
        """A view of a buffer that exists."""
        self._inside(where, ref, self._exists(where, ref.buffer))

    def _inside(self, where: str, ref: Ref, buffer: Buffer) -> None:
        itemsize = dtype_of(where, ref.dtype).itemsize
        expect(len(ref.shape) == len(ref.stride) <= MAX_RANK, f"{where}: shape {ref.shape}, stride {ref.stride}")
        natural = all(size >= 0 for size in (*ref.shape, *ref.stride, ref.offset))
        expect(natural, f"{where}: offset {ref.offset}, shape {ref.shape}, stride {ref.stride}")
        if 0 not in ref.shape:
            last = ref.offset + sum((n - 1) * stride for n, stride in zip(ref.shape, ref.stride, strict=True))
            end = (last + 1) * itemsize
            expect(end <= buffer.bytes, f"{where}: ends at byte {end} of a buffer of {buffer.bytes}")

    def _call(self, where: str, call: HostCall) -> None:
        operation = operation_of(where, call.op)
        schema = operation._schema
        where = f"{where} ({call.op})"
        expect(isinstance(call.arguments, list), f"{where}: expected a list of arguments")
        expect(isinstance(call.keywords, dict), f"{where}: expected named arguments")
        wanted = [argument for argument in schema.arguments if not argument.kwarg_only]
        expect(len(call.arguments) <= len(wanted), f"{where}: {len(call.arguments)} arguments, takes {len(wanted)}")
        given = dict(zip((argument.name for argument in wanted), call.arguments, strict=False))
        names = {argument.name for argument in schema.arguments} - set(given)
        expect(set(call.keywords) <= names, f"{where}: the named arguments {sorted(call.keywords)}")
        given |= call.keywords
        for argument in schema.arguments:
            if argument.name in given:
                check_value(f"{where}, {argument.name}", str(argument.real_type), given[argument.name], 0)
            else:
                expect(argument.has_default_value(), f"{where}: lacks {argument.name}")
        for ref in tensors_of([call.arguments, call.keywords]):
            self.known(where, ref)
        self._results(where, call, schema)

    def _results(self, where: str, call: HostCall, schema: Any) -> None:
        if all(str(value.type) == "Tensor" for value in schema.returns):
            expected = len(schema.returns)
            expect(len(call.results) == expected, f"{where}: {len(call.results)} results, expected {expected}")
        expect(len(call.results) <= MAX_ARGUMENTS, f"{where}: {len(call.results)} results")
        expect(len(call.layouts) in (0, len(call.results)), f"{where}: layouts of other results")
        for index in call.results:
            if index is None:
                continue
            expect(0 <= index < len(self.plan.buffers), f"{where}: result buffer {index}")
            buffer = self.plan.buffers[index]
            expect(buffer.origin is Origin.OP, f"{where}: buffer {index} is {buffer.origin}, no operation's result")
            expect(index not in self.made, f"{where}: buffer {index} is made twice")
            expect(self.part != "prelude" or buffer.life is Life.KEPT, f"{where}: buffer {index} does not outlive it")
            self.made.add(index)
        for index, ref in zip(call.results, call.layouts, strict=False):
            expect((ref is None) == (index is None), f"{where}: a layout and no result, or the reverse")
            if ref is not None:
                expect(ref.buffer == index, f"{where}: a layout of another buffer")
                self.known(where, ref)


def _tree(where: str, call: Call) -> None:
    """As many tensors in the tree as outputs, and nothing that a tree has not."""

    def count(tree: Json, depth: int) -> int:
        expect(depth <= 16, f"{where}: nested deeper than 16")
        if tree is None:
            return 0
        if isinstance(tree, str):
            return int(tree == "t")
        expect(isinstance(tree, dict) and len(tree) == 1, f"{where}: {str(tree)[:80]}")
        ((kind, items),) = tree.items()
        if kind == "map":
            expect(isinstance(items, dict), f"{where}: {str(items)[:80]}")
            items = list(items.values())
        expect(kind in ("map", "list", "tuple") and isinstance(items, list), f"{where}: {str(tree)[:80]}")
        return sum(count(item, depth + 1) for item in items)

    tensors = count(call.tree, 0)
    expect(tensors == len(call.outputs), f"{where}: {tensors} tensors in it, {len(call.outputs)} outputs")


def order_problem(call: Call, kernels: Sequence[Kernel] = ()) -> str | None:
    """Why the streams of a checked call do not order its work: two accesses of one buffer on different streams, one of
    them a write, with no wait between; a side stream that does not wait for the caller's, or is not waited for. With
    the plan's `kernels`, pointers that they only read through are reads. Happens-before by vector clocks."""
    order = _Order(kernels)
    for number, step in enumerate(call.steps):
        text = order.take(number, step)
        if text is not None:
            return text
    late = sorted(s for s, last in order.last.items() if order.clock(0)[s] < last)
    if late:
        return f"work on a side stream (stream {late[0]}) is not joined before forward() returns"
    return None


class _Order:
    """`last[s]`: the time of stream s's last work, on its own clock. The call begins at time 1 of stream 0."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self._kernels = kernels
        self.last: dict[int, int] = {}
        self._clocks: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._clocks[0][0] = 1
        self._marks: dict[int, dict[int, int]] = {}
        self._writes: dict[int, dict[int, int]] = defaultdict(dict)
        self._reads: dict[int, dict[int, int]] = defaultdict(dict)

    def clock(self, stream: int) -> dict[int, int]:
        return self._clocks[stream]

    def take(self, number: int, step: Step) -> str | None:
        clock = self.clock(step.stream)
        if step.event is not None:
            self._marks[step.event] = clock.copy()
        elif step.wait is not None or step.wait_event is not None:
            other = self.clock(step.wait) if step.wait is not None else self._marks[step.wait_event or 0]
            for stream, time in other.items():
                clock[stream] = max(clock[stream], time)
        else:
            return self._work(number, step, clock)
        return None

    def _work(self, number: int, step: Step, clock: dict[int, int]) -> str | None:
        if clock[0] < 1:
            return f"step {number} on stream {step.stream} does not wait for the stream on which forward() was called"
        now = clock[step.stream] = clock[step.stream] + 1
        self.last[step.stream] = now
        reads, writes = accesses(step, self._kernels)
        for buffer, others in [(b, self._writes) for b in (*reads, *writes)] + [(b, self._reads) for b in writes]:
            for stream, time in others[buffer].items():
                if stream != step.stream and clock[stream] < time:
                    return (
                        f"step {number} on stream {step.stream} and an earlier one on stream {stream} use buffer "
                        f"{buffer}, one of them writes, and nothing orders them: a wait is missing"
                    )
        for buffers, table in ((reads, self._reads), (writes, self._writes)):
            for buffer in buffers:
                table[buffer][step.stream] = now
        return None


def accesses(step: Step, kernels: Sequence[Kernel]) -> tuple[frozenset[int], frozenset[int]]:
    """Buffers that a checked step may read and may write."""
    if step.call is None:
        pointers = {a.buffer for launch in step.launch for a in launch.arguments if a.kind == "pointer"}
        return frozenset(pointers), frozenset(index for launch in step.launch for index in _written(launch, kernels))
    call = step.call
    schema = operation_of("", call.op)._schema
    given = dict(zip((argument.name for argument in schema.arguments), call.arguments, strict=False)) | call.keywords
    changed = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    written = {ref.buffer for name in changed if name in given for ref in tensors_of(given[name])}
    read = {ref.buffer for ref in tensors_of([call.arguments, call.keywords])}
    return frozenset(read), frozenset(written | {index for index in call.results if index is not None})


def _written(launch: Launch, kernels: Sequence[Kernel]) -> Iterator[int]:
    count = len(launch.arguments)
    places = written_pointers(kernels[launch.kernel].ttir, count) if kernels else range(count)
    yield from (launch.arguments[i].buffer for i in places if launch.arguments[i].kind == "pointer")


def reused_output(plan: Plan) -> str | None:
    """Why the result of a call does not outlive the next one: it lies in memory that is kept and written again."""
    written = {buffer for step in plan.steady.steps for buffer in accesses(step, plan.kernels)[1]}
    for position, ref in enumerate(plan.steady.outputs):
        buffer = plan.buffers[ref.buffer]
        own = buffer.origin not in (Origin.STATE, Origin.INPUT)
        if own and buffer.life is Life.KEPT and ref.buffer in written:
            return (
                f"output {position} of forward() lies in memory that every call writes again, so a later call changes "
                "an earlier result. Allocate outputs in forward()."
            )
    return None
