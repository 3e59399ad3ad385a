"""Records one instance of a candidate as a launch plan: the tensors that __init__ and forward() make, what they do to
them on which stream, and what they return. Runs on fake tensors in the candidate's own process.

What a plan cannot say is noted once as `reason`, never raised into the candidate's code, which might catch it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from engine.canonical import Json
from engine.judging.host_ops import OpRecorder, foreign_kind, is_composite
from engine.judging.lowering import Specialiser, Unsupported
from engine.judging.plan import (
    MAX_BUFFERS,
    MAX_LITERAL_BYTES,
    MAX_STEPS,
    Argument,
    HostCall,
    Launch,
    Origin,
    Ref,
    Step,
    tensors_of,
)
from engine.judging.pretend import is_fake_address
from engine.judging.streams import STREAMS

INIT = 0
"""The phase of __init__; calls of forward() are phases 1, 2, 3."""

_aten = torch.ops.aten
EMPTY = frozenset(
    [_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided, _aten.empty_permuted]
)
_CONSTANT: Mapping[Any, float | None] = {
    _aten.zeros: 0,
    _aten.zeros_like: 0,
    _aten.new_zeros: 0,
    _aten.ones: 1,
    _aten.ones_like: 1,
    _aten.new_ones: 1,
    _aten.full: None,
    _aten.full_like: None,
    _aten.new_full: None,
}
"""Allocation and fill in one; None: the value is the argument `fill_value`."""
_LIFTS = frozenset([_aten.lift_fresh, _aten.lift_fresh_copy, _aten.lift])
_RESHAPING_STORAGE = frozenset([_aten.resize_, _aten.resize_as_, _aten.set_])
_CPU_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(slots=True)
class Storage:
    """A storage seen. `storage` is held so that its identity is not used again; `real` is host data behind it."""

    bytes: int
    dtype: str
    origin: Origin
    phase: int
    storage: Any
    name: str = ""
    data: str = ""


@dataclass(frozen=True, slots=True)
class Noted:
    """A step with the buffers that it writes. Kernels of its launches are indices of `Specialiser.kernels`."""

    step: Step
    writes: frozenset[int]

    @property
    def touched(self) -> frozenset[int]:
        return self.writes | frozenset(buffers_of(self.step))


@dataclass(frozen=True, slots=True)
class Recording:
    """One forward(): its steps, where its inputs lie, and what it returned."""

    steps: tuple[Noted, ...]
    outputs: tuple[Ref, ...]
    tree: Json


def buffers_of(step: Step) -> Iterator[int]:
    """Every buffer that a step names, with repetitions."""
    for launch in step.launch:
        yield from (argument.buffer for argument in launch.arguments if argument.kind == "pointer")
    if step.call is not None:
        yield from (ref.buffer for ref in tensors_of([step.call.arguments, step.call.keywords]))
        yield from (index for index in step.call.results if index is not None)


class PlanRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Enter it inside the fake mode. `ops`, while set, counts the host operations."""

    def __init__(self, fake: FakeTensorMode, specialiser: Specialiser) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = fake
        self.ops: OpRecorder | None = None
        self.storages: list[Storage] = []
        self.specialiser = specialiser
        self.reason: str | None = None
        self.phase = INIT
        self.steps: list[Noted] = []
        self._index: dict[int, int] = {}
        self._alive: list[Any] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The default wraps the mode so that its first use imports torch._dynamo: two seconds in every child.
        return False

    def refuse(self, reason: str) -> None:
        """No plan can say what the candidate does; the first reason counts."""
        if self.reason is None:
            self.reason = reason

    def begin(self, phase: int, inputs: Sequence[torch.Tensor]) -> None:
        """A call of forward() starts on new inputs."""
        self.phase, self.steps = phase, []
        STREAMS.sink = self
        STREAMS.begin_call()
        for position, tensor in enumerate(inputs):
            self._alive.append(tensor)
            if self._key(tensor) not in self._index:
                self._add(tensor, Origin.INPUT, name=str(position))

    def name_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """After __init__: storages of state_dict get their values from the judge. A later name of a storage counts,
        as with parameters that are filled one after another."""
        for name, tensor in state.items():
            index = self.buffer(tensor)
            storage = self.storages[index]
            size = tensor.numel() * tensor.element_size()
            if storage.bytes != size or not tensor.is_contiguous():
                self.refuse(f"the entry {name} of state_dict is a view of other memory")
            storage.origin, storage.name, storage.data = Origin.STATE, name, ""
            storage.dtype, storage.phase = _dtype(tensor), INIT

    def finish(self, outputs: Sequence[torch.Tensor], tree: Json) -> Recording:
        """The call ends and returns `outputs`."""
        STREAMS.sink = None
        for tensor in outputs:
            if type(tensor) not in (torch.Tensor, torch.nn.Parameter, FakeTensor):
                self.refuse(f"forward() returns a {type(tensor).__name__}, expected a plain torch.Tensor")
        return Recording(tuple(self.steps), tuple(self.ref(tensor) for tensor in outputs), tree)

    def buffer(self, tensor: torch.Tensor) -> int:
        """The index of a tensor's storage. Host data becomes a literal; a fake tensor must have been seen."""
        tensor = self._faked(tensor)
        key = self._key(tensor)
        if key not in self._index:
            self.refuse("a tensor that no recorded operation made")
            return self._add(tensor, Origin.EMPTY)
        return self._index[key]

    def ref(self, tensor: torch.Tensor) -> Ref:
        """The view that a tensor is."""
        if tensor.is_conj() or tensor.is_neg() or tensor.layout != torch.strided:
            self.refuse("a tensor that is not a plain strided view (conjugate, negative or sparse)")
            return Ref(self.buffer(tensor), 0, (), (), _dtype(tensor))
        shape, stride = tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride()))
        return Ref(self.buffer(tensor), int(tensor.storage_offset()), shape, stride, _dtype(tensor))

    def recorded(self, stream: int, event: int) -> None:
        """`streams.Sink`: an event marks a point on a stream."""
        self._append(Step(stream=stream, event=event), frozenset())

    def waited(self, stream: int, event: int) -> None:
        """`streams.Sink`: a stream waits for an event."""
        self._append(Step(stream=stream, wait_event=event), frozenset())

    def choice(self, function: Any, args: Any, kwargs: Any, grid: tuple[int, int, int]) -> Launch | None:
        """One configuration of a launch; None, with `reason` set, where a plan cannot hold it."""
        try:
            with torch._C.DisableTorchFunction():
                kernel, values = self.specialiser.specialise(function, args, kwargs)
                arguments = tuple(self._argument(kind, value, function) for kind, value in values)
        except Unsupported as error:
            self.refuse(str(error))
            return None
        return Launch(kernel, grid, arguments)

    def launch(self, choices: tuple[Launch, ...]) -> None:
        """One launch on the current stream."""
        pointers = (argument for choice in choices for argument in choice.arguments if argument.kind == "pointer")
        self._append(Step(STREAMS.issue(), launch=choices), frozenset(pointer.buffer for pointer in pointers))

    def _argument(self, kind: str, value: Any, function: Any) -> Argument:
        if kind.startswith("*"):
            if not hasattr(value, "tensor"):
                raise Unsupported(f"kernel {function.__name__} takes a pointer that is not a tensor")
            return Argument("pointer", self.buffer(value.tensor), value.offset)
        if kind.startswith(("fp", "bf")):
            return Argument("float", value=repr(float(value)))
        if is_fake_address(int(value)):
            raise Unsupported(f"kernel {function.__name__} takes an address as a number")
        return Argument("int", value=str(int(value)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = foreign_kind(types)
        if own is not None:
            self.refuse("a tensor subclass with operations of its own")
            with self:
                return own.__torch_dispatch__(func, types, args, kwargs or {})
        kwargs = kwargs or {}
        if is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        packet = func._overloadpacket
        if packet in _LIFTS and not isinstance(args[0], FakeTensor):
            result = func(*args, **kwargs)
            self._literal(result, args[0])
        else:
            args, kwargs = self._map(args), self._map(kwargs)
            mutable = func._schema.is_mutable and torch.Tag.inplace_view not in func.tags
            # An operation in place may change what its arguments look like.
            before = self._call(func, args, kwargs) if mutable else None
            try:
                result = func(*args, **kwargs)
            except DataDependentOutputException:
                self.refuse(f"forward() reads values on the host ({func._schema.name.split('::')[-1]})")
                raise
            self._note(func, args, kwargs, result, before)
        if self.ops is not None:
            self.ops.note(func, args, kwargs, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any, before: HostCall | None) -> None:
        packet = func._overloadpacket
        made = _tensors(result)
        fresh = list(dict.fromkeys(self._key(tensor) for tensor in made if self._key(tensor) not in self._index))
        if packet in _RESHAPING_STORAGE:
            self.refuse(f"forward() changes the memory behind a tensor ({packet.__name__})")
        if packet in EMPTY and fresh:
            self._add(made[0], Origin.EMPTY)
        elif packet in _CONSTANT and fresh:
            self._add(made[0], Origin.EMPTY)
            self._fill(made[0], _fill_value(func, args, kwargs) if _CONSTANT[packet] is None else _CONSTANT[packet])
        elif before is not None or fresh:
            call = self._call(func, args, kwargs) if before is None else before
            known: list[int | None] = []
            for tensor in made:
                seen = self._key(tensor) in self._index
                known.append(None if seen else self._add(tensor, Origin.OP))
            layouts = tuple(self.ref(t) if index is not None else None for t, index in zip(made, known, strict=True))
            if packet is _CPU_ATTENTION:
                call, known, layouts = self._attention(call), known[:1], layouts[:1]
            elif "mkldnn" in call.op or call.op.endswith("_for_cpu"):
                self.refuse(f"forward() runs {call.op}, which a GPU has under another name")
            call = HostCall(call.op, call.arguments, call.keywords, tuple(known), layouts)
            written = self._mutated(func, args, kwargs) if before is not None else []
            new = [index for index in known if index is not None]
            self._append(Step(STREAMS.issue(), call=call), frozenset([*written, *new]))

    def _fill(self, tensor: torch.Tensor, value: Any) -> None:
        if tensor.numel() == 0:
            return
        target = self._encode(tensor)
        if value == 0 and math.copysign(1.0, value) > 0:
            call = HostCall("aten.zero_.default", [target], {}, (None,), (None,))
        else:
            call = HostCall("aten.fill_.Scalar", [target, self._encode(value)], {}, (None,), (None,))
        self._append(Step(STREAMS.issue(), call=call), frozenset([self.buffer(tensor)]))

    def _attention(self, call: HostCall) -> HostCall:
        """The library's attention, whose spelling depends on the device."""
        query, key, value, *rest = call.arguments
        named = {"attn_mask": None, "scale": None, "dropout_p": 0.0, "is_causal": False} | call.keywords
        named |= dict(zip(("dropout_p", "is_causal"), rest, strict=False))
        arguments = [query, key, value, named["attn_mask"], named["dropout_p"], named["is_causal"]]
        return HostCall("aten.scaled_dot_product_attention.default", arguments, {"scale": named["scale"]}, ())

    def _call(self, func: Any, args: Any, kwargs: Any) -> HostCall:
        name = func._schema.name.replace("::", ".", 1)
        return HostCall(f"{name}.{func._overloadname}", self._encode(list(args)), self._encode(dict(kwargs)), ())

    def _mutated(self, func: Any, args: Any, kwargs: Any) -> Iterator[int]:
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[position] if position < len(args) else kwargs[argument.name]
            yield from (self.buffer(tensor) for tensor in _tensors(value))

    def _encode(self, value: Any) -> Json:
        if isinstance(value, torch.Tensor):
            ref = self.ref(value)
            return {"tensor": [ref.buffer, ref.offset, list(ref.shape), list(ref.stride), ref.dtype]}
        if isinstance(value, (list, tuple)):
            return [self._encode(item) for item in value]
        if isinstance(value, dict):
            return {str(name): self._encode(item) for name, item in value.items()}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.device):
            return {"device": 0}
        for kind in (torch.dtype, torch.layout, torch.memory_format):
            if isinstance(value, kind):
                return {kind.__name__: str(value).removeprefix("torch.")}
        self.refuse(f"a torch operation takes a {type(value).__name__}")
        return None

    def _map(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._faked(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self._map(item) for item in value)
        if isinstance(value, dict):
            return {name: self._map(item) for name, item in value.items()}
        return value

    def _faked(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        fake: torch.Tensor = self.fake.from_tensor(tensor, static_shapes=True)
        if self._key(fake) not in self._index:
            self._alive.append(tensor)
            # Data that the module made outside any call is there before every call.
            self._literal(fake, tensor, INIT)
        return fake

    def _literal(self, fake: torch.Tensor, real: torch.Tensor, phase: int | None = None) -> None:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            storage = real.detach().untyped_storage()
            size = storage.nbytes()
            data = b""
            if size > MAX_LITERAL_BYTES:
                self.refuse(f"host data of {size} bytes, at most {MAX_LITERAL_BYTES} fit into a plan")
            elif size:
                raw = torch.empty(0, dtype=torch.uint8).set_(storage)
                data = raw.numpy().tobytes()
                if size % 8 == 0 and any(is_fake_address(number) for number in memoryview(data).cast("q")):
                    self.refuse("a tensor holds addresses of other tensors")
        index = self._add(fake, Origin.LITERAL, data=base64.b64encode(data).decode())
        if phase is not None:
            self.storages[index].phase = phase

    def _add(self, tensor: torch.Tensor, origin: Origin, name: str = "", data: str = "") -> int:
        storage = tensor.untyped_storage()
        index = len(self.storages)
        if index >= MAX_BUFFERS:
            self.refuse(f"more than {MAX_BUFFERS} tensors")
        self._index[storage._cdata] = index
        self.storages.append(Storage(storage.nbytes(), _dtype(tensor), origin, self.phase, storage, name, data))
        return index

    def _append(self, step: Step, writes: frozenset[int]) -> None:
        if len(self.steps) >= MAX_STEPS:
            self.refuse(f"more than {MAX_STEPS} steps")
            return
        self.steps.append(Noted(step, writes))

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _fill_value(func: Any, args: Any, kwargs: Any) -> Any:
    if "fill_value" in kwargs:
        return kwargs["fill_value"]
    names = [argument.name for argument in func._schema.arguments]
    return args[names.index("fill_value")]
