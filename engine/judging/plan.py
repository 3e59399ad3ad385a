"""The launch plan: what one candidate does per call, as data. A tracer that the candidate owns emits it; trusted code
checks it here, compiles its kernels and replays it on buffers of its own.

A plan gains a forger nothing: only what it says is run, judged and timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from engine.canonical import Json

MAX_BUFFERS = 1 << 17
MAX_STEPS = 1 << 16
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_LITERAL_BYTES = 1 << 20
MAX_CHOICES = 16
"""Autotune configurations of one launch that are compiled and tried."""


class Origin(StrEnum):
    """Where a buffer's bytes come from before its first step."""

    INPUT = "input"
    """`name` is the position among the tensors of forward()'s arguments."""
    STATE = "state"
    """`name` is an entry of state_dict."""
    EMPTY = "empty"
    """Allocated by the candidate; poisoned before each call."""
    OP = "op"
    """The result of a host operation of the plan."""
    LITERAL = "literal"
    """Host data that the candidate made a tensor of; `data` holds it in base64."""


class Life(StrEnum):
    """How long a buffer lives: `kept` ones are made in __init__ or by the first call and outlive a call."""

    CALL = "call"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Buffer:
    """One storage. `dtype`: torch name of the first tensor on it, which decides its poison pattern."""

    bytes: int
    dtype: str
    origin: Origin
    life: Life
    name: str = ""
    data: str = ""


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor: a strided view of a buffer. `offset` and `stride` in elements of `dtype` (torch name, e.g. float32)."""

    buffer: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Argument:
    """One parameter of a compiled kernel, in the order of the TTIR function. `kind`: pointer (`buffer` plus `offset`
    bytes), int or float (`value` as Python writes it)."""

    kind: str
    buffer: int = 0
    offset: int = 0
    value: str = ""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch; `kernel` indexes the plan's kernels."""

    kernel: int
    grid: tuple[int, int, int]
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class HostCall:
    """One torch operation. `op`: `aten.name.overload`. Arguments are plain JSON, except
    `{"tensor": [buffer, offset, shape, stride, dtype]}`, `{"dtype": name}`, `{"layout": name}`, `{"device": 0}`,
    `{"memory_format": name}`, `{"float": text}` for numbers that JSON has not. `results`: for each tensor that it
    returns the buffer it makes, or None where it lies in a known one. `layouts`: how the tensor that makes a buffer
    lies in it, as later steps see it; an operation may choose other strides on another device."""

    op: str
    arguments: Json
    keywords: Json
    results: tuple[int | None, ...]
    layouts: tuple[Ref | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One thing on one stream (0 is the caller's): a launch (its autotune choices, the default first), a host call, or
    a wait for all that stream `wait` has been given so far. Where more work has been put on that stream since the
    point that is waited for: `event` marks the point on its stream, and `wait_event` waits for that mark."""

    stream: int = 0
    launch: tuple[Launch, ...] = ()
    call: HostCall | None = None
    wait: int | None = None
    event: int | None = None
    wait_event: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """What one forward() does and returns. `tree`: the output's nesting as `reference.tree_of` writes it."""

    steps: tuple[Step, ...]
    outputs: tuple[Ref, ...]
    tree: Json


@dataclass(frozen=True, slots=True)
class Kernel:
    """One specialised kernel as Triton IR after the front end's passes, and the options it is lowered with."""

    name: str
    ttir: str
    num_warps: int
    num_stages: int
    num_ctas: int = 1
    maxnreg: int | None = None
    enable_fp_fusion: bool = True
    launch_cooperative_grid: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """`prelude`: what __init__ did on tensors, once. `first`: the first forward() where it differs from later ones
    (lazily made workspaces, caches), else None. `steady`: every later forward()."""

    buffers: tuple[Buffer, ...]
    kernels: tuple[Kernel, ...]
    prelude: tuple[Step, ...]
    first: Call | None
    steady: Call

    @property
    def calls(self) -> tuple[Call, ...]:
        return (self.steady,) if self.first is None else (self.first, self.steady)


def tensors_of(tree: Json) -> Iterator[Ref]:
    """The tensors in a host call's arguments."""
    if isinstance(tree, list):
        for item in tree:
            yield from tensors_of(item)
    elif isinstance(tree, dict):
        if "tensor" in tree:
            buffer, offset, shape, stride, dtype = tree["tensor"]
            yield Ref(int(buffer), int(offset), tuple(map(int, shape)), tuple(map(int, stride)), str(dtype))
        else:
            for item in tree.values():
                yield from tensors_of(item)
