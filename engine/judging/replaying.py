"""Binds a launch plan to memory and runs it: kernels by the driver, host operations by PyTorch, on its streams."""

from __future__ import annotations

import base64
import ctypes
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.canonical import Json
from engine.errors import EngineError
from engine.judging.driver import Driver, Function
from engine.judging.images import Image, ReplayError, packed
from engine.judging.plan import Call, HostCall, Launch, Life, Origin, Plan, Ref, Step

_STREAM: Any = torch.cuda.Stream
MAX_SCRATCH_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """A kernel in this context. `parameters`: pointer, i1 to i64, f16, bf16, f32 or f64, in order; two scratch
    pointers follow, as Triton's launcher passes them."""

    function: Function
    parameters: tuple[str, ...]
    scratch_bytes: int


def load_kernel(
    image: bytes,
    symbol: str,
    parameters: tuple[str, ...],
    *,
    threads: int,
    shared_bytes: int,
    cluster: tuple[int, int, int],
    cooperative: bool,
    scratch_bytes: int,
) -> LoadedKernel:
    """Put a compiled kernel into the current context. `scratch_bytes`: global scratch of one block."""
    function = Driver().load(
        image, symbol, threads=threads, shared_bytes=shared_bytes, cluster=cluster, cooperative=cooperative
    )
    return LoadedKernel(function, parameters, scratch_bytes)


def load_image(image: Image) -> LoadedKernel:
    """The same of a kernel as it travels."""
    return load_kernel(
        base64.b64decode(image.image),
        image.symbol,
        image.parameters,
        threads=image.threads,
        shared_bytes=image.shared_bytes,
        cluster=image.cluster,
        cooperative=image.cooperative,
        scratch_bytes=image.scratch_bytes,
    )


class Session:
    """One plan bound to `sets` of buffers in the arena. `offsets[set][buffer]`: bytes from its start, -1 for buffers
    that host operations make."""

    def __init__(
        self,
        plan: Plan,
        kernels: Sequence[LoadedKernel | None],
        memory: torch.Tensor,
        offsets: Sequence[Sequence[int]],
        device: str,
    ) -> None:
        self.plan, self.kernels, self.memory, self.offsets, self.device = plan, kernels, memory, offsets, device
        self._base = memory.data_ptr()
        self._made: list[dict[int, torch.Tensor]] = [{} for _ in offsets]
        self._kept: dict[int, torch.Tensor] = {}
        self._streams: dict[int, Any] = {}
        self._events: dict[tuple[int, int], Any] = {}
        self._bound: dict[tuple[str, int], list[Callable[[], None]]] = {}
        self._choice: dict[tuple[str, int], int] = {}
        self._driver = Driver() if device != "cpu" else None

    def end(self) -> None:
        """Free what its operations made: what is bound refers to the session, so that dropping it frees nothing."""
        self._bound, self._events = {}, {}
        self._made, self._kept = [{} for _ in self.offsets], {}

    def place(self, buffer: int, memory: torch.Tensor) -> None:
        """Give a buffer memory of its own in place of a part of the arena, in set 0; before anything is run."""
        kept = self.plan.buffers[buffer].life is Life.KEPT
        (self._kept if kept else self._made[0])[buffer] = memory

    def steps(self, part: str) -> tuple[Step, ...]:
        return self.plan.prelude if part == "prelude" else self.call(part).steps

    def call(self, part: str) -> Call:
        call = self.plan.first if part == "first" else self.plan.steady
        if call is None:
            raise EngineError(f"the plan has no part {part}")
        return call

    def run(self, part: str, number: int) -> None:
        """Enqueue `part` (prelude, first or steady) on the buffers of set `number`; nothing is waited for."""
        key = (part, number)
        if key not in self._bound:
            self._bound[key] = [self._bind(part, index, step, number) for index, step in enumerate(self.steps(part))]
        for action in self._bound[key]:
            action()

    def choose(self, number: int, repeats: int) -> list[int]:
        """The fastest choice of each autotuned steady launch, from the least of `repeats` times; it stays in force."""
        chosen = []
        for index, step in enumerate(self.plan.steady.steps):
            if len(step.launch) > 1:
                times = [self._least_time(launch, number, repeats) for launch in step.launch]
                self._choice["steady", index] = times.index(min(times))
                chosen.append(times.index(min(times)))
            else:
                self._bind("steady", index, step, number)()
        self._bound = {key: actions for key, actions in self._bound.items() if key[0] != "steady"}
        if self.device != "cpu":
            # What follows the last launch that was timed may still run, and the judge writes there next.
            torch.cuda.synchronize()
        return chosen

    def freeze(self, choices: Sequence[int]) -> None:
        """What `choose` found elsewhere."""
        tuned = [index for index, step in enumerate(self.plan.steady.steps) if len(step.launch) > 1]
        self._choice |= {("steady", index): choice for index, choice in zip(tuned, choices, strict=True)}

    def _least_time(self, launch: Launch, number: int, repeats: int) -> float:
        action = self._launch(launch, number, 0)
        action()
        torch.cuda.synchronize()
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            action()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times)

    def export(self, part: str, number: int, places: Sequence[int]) -> None:
        """Copy each output with a place other than -1 to that byte offset of the arena, contiguously."""
        for ref, place in zip(self.call(part).outputs, places, strict=True):
            if place >= 0:
                value = self.tensor(ref, number).contiguous()
                raw = value.reshape(-1).view(torch.uint8) if value.numel() else value.new_empty(0, dtype=torch.uint8)
                self.memory[place : place + raw.numel()] = raw

    def tensor(self, ref: Ref, number: int) -> torch.Tensor:
        dtype = getattr(torch, ref.dtype)
        made = self._made[number].get(ref.buffer, self._kept.get(ref.buffer))
        storage = (self.memory if made is None else made).untyped_storage()
        start = 0 if made is not None else self._offset(ref.buffer, number) // dtype.itemsize
        empty = torch.empty(0, dtype=dtype, device=self.device)
        return empty.set_(storage, start + ref.offset, ref.shape, ref.stride)

    def _offset(self, buffer: int, number: int) -> int:
        offset = self.offsets[number][buffer]
        if offset < 0:
            raise ReplayError(f"buffer {buffer} is used before the operation that makes it")
        return offset

    def _address(self, buffer: int, number: int) -> int:
        made = self._made[number].get(buffer, self._kept.get(buffer))
        if made is not None:
            return int(made.untyped_storage().data_ptr())
        return self._base + self._offset(buffer, number)

    def _bind(self, part: str, index: int, step: Step, number: int) -> Callable[[], None]:
        if step.wait is not None:
            return self._wait(step.stream, step.wait)
        if step.event is not None:
            return self._mark(number, step.event, step.stream)
        if step.wait_event is not None:
            return self._await(number, step.wait_event, step.stream)
        if step.call is not None:
            return self._host_call(step.call, number, step.stream)
        return self._launch(step.launch[self._choice.get((part, index), 0)], number, step.stream)

    def _stream(self, index: int) -> Any:
        if index == 0:
            return torch.cuda.current_stream()
        if index not in self._streams:
            self._streams[index] = new_stream()
        return self._streams[index]

    def _wait(self, stream: int, other: int) -> Callable[[], None]:
        if self.device == "cpu":
            return lambda: None
        return lambda: self._stream(stream).wait_stream(self._stream(other))

    def _mark(self, number: int, event: int, stream: int) -> Callable[[], None]:
        if self.device == "cpu":
            return lambda: None

        def record() -> None:
            # A new one for each call, as calls of two sets may be in flight and in different graphs.
            self._events[number, event] = self._stream(stream).record_event()

        return record

    def _await(self, number: int, event: int, stream: int) -> Callable[[], None]:
        if self.device == "cpu":
            return lambda: None
        return lambda: self._stream(stream).wait_event(self._events[number, event])

    def _launch(self, launch: Launch, number: int, stream: int) -> Callable[[], None]:
        kernel = self.kernels[launch.kernel]
        if kernel is None or self._driver is None:
            raise ReplayError("this device has no compiled form of the kernel")
        if any(argument.kind == "pointer" and self._late(argument.buffer) for argument in launch.arguments):
            return lambda: self._start(kernel, launch, number, stream)
        start = self._prepared(kernel, launch, number)
        return lambda: start(self._stream(stream).cuda_stream)

    def _late(self, buffer: int) -> bool:
        """Whether its address is known only when a host operation has made it."""
        return self.plan.buffers[buffer].origin is Origin.OP

    def _start(self, kernel: LoadedKernel, launch: Launch, number: int, stream: int) -> None:
        self._prepared(kernel, launch, number)(self._stream(stream).cuda_stream)

    def _prepared(self, kernel: LoadedKernel, launch: Launch, number: int) -> Callable[[int], None]:
        if len(kernel.parameters) != len(launch.arguments):
            raise ReplayError(
                f"kernel takes {len(kernel.parameters)} arguments, the plan gives {len(launch.arguments)}"
            )
        values = [
            packed(kind, argument, lambda buffer: self._address(buffer, number))
            for kind, argument in zip(kernel.parameters, launch.arguments, strict=True)
        ]
        size = kernel.scratch_bytes * math.prod(launch.grid) * math.prod(kernel.function.cluster)
        if size > MAX_SCRATCH_BYTES:
            raise ReplayError(f"a kernel asks for {size} bytes of scratch memory")
        scratch = torch.empty(size, dtype=torch.uint8, device=self.device) if size else None
        values += [ctypes.c_uint64(scratch.data_ptr() if scratch is not None else 0), ctypes.c_uint64(0)]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        driver, grid = self._driver, launch.grid
        assert driver is not None

        # The values and the scratch memory live as long as this closure, which the launch needs.
        def start(stream: int, _alive: object = (values, scratch)) -> None:
            driver.launch(kernel.function, grid, addresses, stream)

        return start

    def _host_call(self, call: HostCall, number: int, stream: int) -> Callable[[], None]:
        operation: Any = torch.ops
        for name in call.op.split("."):
            operation = getattr(operation, name)

        def perform() -> None:
            arguments = self._decode(call.arguments, number)
            keywords = {name: self._decode(value, number) for name, value in call.keywords.items()}
            result = operation(*arguments, **keywords)
            self._store(call, result, number)

        if stream == 0 or self.device == "cpu":
            return perform

        def elsewhere() -> None:
            with torch.cuda.stream(self._stream(stream)):
                perform()

        return elsewhere

    def _store(self, call: HostCall, result: object, number: int) -> None:
        tensors = list(_flat(result))
        for position, (buffer, tensor) in enumerate(zip(call.results, tensors, strict=True)):
            if buffer is None:
                continue
            layout = call.layouts[position] if call.layouts else None
            described = self.plan.buffers[buffer]
            if tensor.untyped_storage().nbytes() < described.bytes or not _laid_out(tensor, layout):
                raise ReplayError(f"{call.op} gives another layout on this device than on fake tensors")
            (self._kept if described.life is Life.KEPT else self._made[number])[buffer] = tensor

    def _decode(self, tree: Json, number: int) -> Any:
        if isinstance(tree, list):
            return [self._decode(item, number) for item in tree]
        if not isinstance(tree, dict):
            return tree
        if "tensor" in tree:
            buffer, offset, shape, stride, dtype = tree["tensor"]
            return self.tensor(Ref(buffer, offset, tuple(shape), tuple(stride), dtype), number)
        if "dtype" in tree:
            return getattr(torch, tree["dtype"])
        if "layout" in tree:
            return getattr(torch, tree["layout"])
        if "memory_format" in tree:
            return getattr(torch, tree["memory_format"])
        if "device" in tree:
            return torch.device(self.device)
        if "float" in tree:
            return float(tree["float"])
        raise ReplayError(f"an argument of an operation has no known form: {str(tree)[:200]}")


def new_stream() -> Any:
    """A CUDA stream of PyTorch's."""
    return _STREAM()


def _laid_out(tensor: torch.Tensor, layout: Ref | None) -> bool:
    """Whether a result lies in its storage as it did on fake tensors; without a record of that, contiguously."""
    if layout is None:
        return tensor.is_contiguous()
    return (tensor.storage_offset(), tensor.shape, tensor.stride()) == (layout.offset, layout.shape, layout.stride)


def _flat(result: object) -> Sequence[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, (list, tuple)):
        return [tensor for item in result for tensor in _flat(item)]
    return []
