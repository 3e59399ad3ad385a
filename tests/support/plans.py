"""Launch plans made by hand, of host operations only: what an executor without a device can replay."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import torch

from engine.canonical import Json
from engine.judging.plan import Buffer, Call, HostCall, Life, Origin, Plan, Ref, Step


def buffer(size: int, origin: Origin = Origin.EMPTY, *, kept: bool = False, name: str = "", dtype: str = "float32"):
    return Buffer(size, dtype, origin, Life.KEPT if kept else Life.CALL, name)


def literal(values: Sequence[float], *, kept: bool = False, dtype: str = "float32") -> Buffer:
    content = torch.tensor(values, dtype=getattr(torch, dtype)).numpy().tobytes()
    life = Life.KEPT if kept else Life.CALL
    return Buffer(len(content), dtype, Origin.LITERAL, life, data=base64.b64encode(content).decode())


def ref(index: int, *shape: int, stride: Sequence[int] | None = None, offset: int = 0, dtype: str = "float32") -> Ref:
    """A view of buffer `index`, contiguous unless `stride` is given."""
    dense = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Ref(index, offset, shape, tuple(dense if stride is None else stride), dtype)


def tensor(view: Ref) -> Json:
    return {"tensor": [view.buffer, view.offset, list(view.shape), list(view.stride), view.dtype]}


def host(op: str, *arguments: object, makes: Sequence[int | None] = (None,), **keywords: object) -> Step:
    """One aten operation, e.g. `mul.out`; `makes`: the buffer of each result, None where it lies in a known one."""

    def plain(value: object) -> Json:
        return tensor(value) if isinstance(value, Ref) else value

    named = {name: plain(value) for name, value in keywords.items()}
    return Step(call=HostCall(f"aten.{op}", [*map(plain, arguments)], named, tuple(makes)))


def call(steps: Sequence[Step], *outputs: Ref, tree: Json = "t") -> Call:
    return Call(tuple(steps), outputs, tree)


def plan(buffers: Sequence[Buffer], steady: Call, *, first: Call | None = None, prelude: Sequence[Step] = ()) -> Plan:
    return Plan(tuple(buffers), (), tuple(prelude), first, steady)
