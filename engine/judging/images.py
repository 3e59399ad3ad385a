"""Compiled kernels as they travel, and their arguments as a launch needs them; without PyTorch."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import EngineError
from engine.judging.plan import Argument

_INTEGERS: Mapping[str, Any] = {
    "i1": ctypes.c_int8,
    "i8": ctypes.c_int8,
    "i16": ctypes.c_int16,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
}


class ReplayError(EngineError):
    """The plan cannot be replayed here; the candidate is judged in its own process instead."""


@dataclass(frozen=True, slots=True)
class Image:
    """One compiled kernel as it travels: `image` in base64, the rest as `compiler.CompiledKernel` has it."""

    key: str
    image: str
    symbol: str
    parameters: tuple[str, ...]
    threads: int
    shared_bytes: int
    cluster: tuple[int, int, int]
    cooperative: bool
    scratch_bytes: int


def packed(kind: str, argument: Argument, address: Callable[[int], int]) -> Any:
    """The ctypes value of an argument for a parameter of `kind`; `address`: of a buffer. ReplayError if they differ."""
    if kind == "pointer":
        if argument.kind != "pointer":
            raise ReplayError(f"a kernel expects a pointer, the plan gives {argument.kind} {argument.value}")
        return ctypes.c_uint64(address(argument.buffer) + argument.offset)
    if argument.kind == "pointer":
        raise ReplayError(f"a kernel expects {kind}, the plan gives a pointer")
    if kind in _INTEGERS:
        return _INTEGERS[kind](int(argument.value))
    real = float(argument.value)
    if kind in ("f32", "f64"):
        return ctypes.c_float(real) if kind == "f32" else ctypes.c_double(real)
    bits = struct.pack("<e", real) if kind == "f16" else struct.pack("<f", real)[2:]
    return ctypes.c_uint16(int.from_bytes(bits, "little"))
