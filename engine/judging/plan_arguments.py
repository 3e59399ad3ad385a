"""Checks the arguments of a host call against the operation's schema: tensors and plain values, nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from engine.canonical import Json

MAX_DEPTH = 4
"""Nesting of lists in an argument."""
MAX_ITEMS = 1 << 16

_OPERATION = re.compile(r"aten\.([A-Za-z_]\w{0,99})\.([A-Za-z_]\w{0,99})")
_ARGUMENT_TYPE = re.compile(
    r"(Optional|List)\[(.+)\]|Tensor|int|number|float|bool|ScalarType|Layout|MemoryFormat|Device|str|SymInt"
)
_WORDS = frozenset(
    [
        *("none", "tanh", "mean", "sum", "amax", "amin", "prod", "trunc", "floor", "multiply", "add"),
        *("constant", "reflect", "replicate", "circular", "same", "valid", "bilinear", "nearest", "bicubic"),
    ]
)
_STORAGE_CHANGING = frozenset(["set_", "resize_", "resize_as_", "as_strided_", "record_stream", "storage", "swap_"])
_MARKS: Mapping[str, str] = {
    "dtype": "ScalarType",
    "layout": "Layout",
    "memory_format": "MemoryFormat",
    "device": "Device",
}


class PlanError(Exception):
    """A plan that is outside the contract: expected and found, and where."""


def expect(condition: bool, text: str) -> None:
    if not condition:
        raise PlanError(text)


def dtype_of(where: str, name: str) -> torch.dtype:
    found = getattr(torch, name, None) if re.fullmatch(r"[a-z]\w{0,31}", name) else None
    expect(isinstance(found, torch.dtype), f"{where}: expected the name of a torch dtype, got {name[:40]!r}")
    assert isinstance(found, torch.dtype)
    return found


def operation_of(where: str, name: str) -> Any:
    found = _OPERATION.fullmatch(name)
    expect(found is not None, f"{where}: expected aten.name.overload, got {name[:80]!r}")
    assert found is not None
    packet, overload = found.groups()
    expect(packet not in _STORAGE_CHANGING, f"{where}: {name} changes storages")
    expect(overload in _overloads(packet), f"{where}: torch has no operation {name}")
    return getattr(getattr(torch.ops.aten, packet), overload)


def _overloads(packet: str) -> Sequence[str]:
    operation: Any = getattr(torch.ops.aten, packet, None)
    kind: Any = torch._ops.OpOverloadPacket
    return tuple(operation.overloads()) if isinstance(operation, kind) else ()


def check_value(where: str, kind: str, value: Json, depth: int) -> None:
    """An argument of a schema's type; the type must be one that carries no more than tensors and plain values."""
    form = _ARGUMENT_TYPE.fullmatch(kind)
    expect(form is not None and depth <= MAX_DEPTH, f"{where}: arguments of type {kind} are not taken")
    assert form is not None
    outer, inner = form.groups()
    if outer == "Optional":
        if value is not None:
            check_value(where, inner, value, depth + 1)
    elif outer == "List":
        # A schema takes one number for a list of them.
        items = value if isinstance(value, list) else [value]
        expect(len(items) <= MAX_ITEMS, f"{where}: a list of {len(items)}")
        for item in items:
            check_value(where, inner, item, depth + 1)
    elif kind == "Tensor":
        # A schema takes a number for a tensor without dimensions.
        plain = isinstance(value, (bool, int, float))
        expect(plain or _is_tensor(value), f"{where}: expected a tensor, got {str(value)[:80]}")
    elif kind == "str":
        expect(isinstance(value, str) and value in _WORDS, f"{where}: the word {str(value)[:40]!r}")
    elif isinstance(value, dict):
        _mark(where, kind, value)
    else:
        allowed = (bool, int, float) if kind in ("number", "float", "int", "SymInt", "bool") else ()
        expect(isinstance(value, allowed), f"{where}: expected {kind}, got {str(value)[:80]}")


def _is_tensor(value: Json) -> bool:
    if not isinstance(value, dict) or set(value) != {"tensor"}:
        return False
    row = value["tensor"]
    if not isinstance(row, list) or len(row) != 5 or not isinstance(row[4], str):
        return False
    sizes = [row[2], row[3]]
    if not all(isinstance(item, list) for item in sizes):
        return False
    return all(type(number) is int for number in (row[0], row[1], *sizes[0], *sizes[1]))


def _mark(where: str, kind: str, value: Mapping[str, Json]) -> None:
    ((name, content),) = value.items() if len(value) == 1 else (("", None),)
    if name == "float" and kind in ("number", "float"):
        check_number(where, str(content))
        return
    expect(name in _MARKS and _MARKS[name] == kind, f"{where}: expected {kind}, got {str(dict(value))[:80]}")
    if name == "device":
        expect(content == 0, f"{where}: device {str(content)[:40]}")
    elif name == "dtype":
        dtype_of(where, str(content))
    else:
        expected = torch.layout if name == "layout" else torch.memory_format
        known = re.fullmatch(r"[a-z]\w{0,31}", str(content)) and isinstance(
            getattr(torch, str(content), None), expected
        )
        expect(bool(known), f"{where}: {name} {str(content)[:40]!r}")


def check_number(where: str, text: str) -> None:
    try:
        float(text if len(text) <= 64 else "no")
    except ValueError as error:
        raise PlanError(f"{where}: the number {text[:40]!r}") from error
