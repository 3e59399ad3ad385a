"""Triton's interpreter as a judge needs it: bounds checked on every unmasked lane, autotuning without a device,
libdevice functions by numpy. Only for child processes started with TRITON_INTERPRET=1."""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import inspect
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

TF32_BITS = 10


class OutOfBoundsError(Exception):
    """A kernel touched memory outside its tensor arguments; on a GPU an illegal access, or silent corruption."""


class Bounds:
    """Address ranges that the running kernel may touch."""

    def __init__(self) -> None:
        self.low = np.zeros(0, np.int64)
        self.high = np.zeros(0, np.int64)
        self.kernel = ""

    def allow(self, tensors: list[torch.Tensor]) -> None:
        spans = sorted({_span(tensor) for tensor in tensors})
        self.low = np.array([low for low, _ in spans], np.int64)
        self.high = np.array([high for _, high in spans], np.int64)

    def check(self, pointers: Any, mask: Any, size: int, what: str) -> None:
        addresses = np.asarray(pointers).astype(np.int64).reshape(-1)
        if mask is not None:
            addresses = addresses[np.broadcast_to(np.asarray(mask), np.asarray(pointers).shape).reshape(-1) != 0]
        if addresses.size == 0:
            return
        if self.low.size == 0:
            raise OutOfBoundsError(f"kernel {self.kernel}: a {what} without any tensor argument")
        slot = np.searchsorted(self.low, addresses, side="right") - 1
        outside = (slot < 0) | (addresses + size > self.high[np.maximum(slot, 0)])
        if bool(outside.any()):
            raise OutOfBoundsError(
                f"kernel {self.kernel}: {what} out of bounds in {int(outside.sum())} of {addresses.size} unmasked lanes"
            )


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.data_ptr() + storage.nbytes()


class Order:
    """In which order the programs of a grid run; a device promises none. Files with a `while` loop that may wait for
    an earlier program keep the usual one."""

    def __init__(self) -> None:
        self.backwards = False
        self.now = False
        self.grid = (1, 1, 1)


ORDER = Order()


def install(on_launch: Callable[[str], None]) -> None:
    """Patch the interpreter of this process; `on_launch` hears each launched kernel's name."""
    from triton.runtime import autotuner, interpreter

    bounds = Bounds()
    _check_accesses(interpreter, bounds)
    _watch_launches(interpreter, bounds, on_launch)
    _scalars(interpreter)
    _libdevice(interpreter)
    _bfloat16_arithmetic(interpreter)
    _tf32_dots(interpreter)
    _order(interpreter)
    autotuner.Autotuner.run = run_first_config


def _check_accesses(interpreter: Any, bounds: Bounds) -> None:
    builder = interpreter.InterpreterBuilder

    def element_bytes(pointer: Any) -> int:
        return max(1, int(pointer.get_element_ty().primitive_bitwidth) // 8)

    load, store = builder.create_masked_load, builder.create_masked_store
    rmw, cas = builder.create_atomic_rmw, builder.create_atomic_cas

    def masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        bounds.check(ptrs.data, mask.data, element_bytes(ptrs), "load")
        return load(self, ptrs, mask, *rest, **named)

    def masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        bounds.check(ptrs.data, mask.data, element_bytes(ptrs), "store")
        return store(self, ptrs, value, mask, *rest, **named)

    def atomic_rmw(self: Any, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        bounds.check(ptr.data, mask.data, element_bytes(ptr), "atomic")
        return rmw(self, op, ptr, val, mask, *rest, **named)

    def atomic_cas(self: Any, ptr: Any, *rest: Any, **named: Any) -> Any:
        bounds.check(ptr.data, None, element_bytes(ptr), "atomic")
        return cas(self, ptr, *rest, **named)

    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    builder.create_atomic_rmw, builder.create_atomic_cas = atomic_rmw, atomic_cas


def _watch_launches(interpreter: Any, bounds: Bounds, on_launch: Callable[[str], None]) -> None:
    executor, function = interpreter.GridExecutor, interpreter.InterpretedFunction
    to_host, to_device, run = executor._init_args_hst, executor._restore_args_dev, function.run

    watching: list[tuple[list[Any], contextlib.ExitStack]] = []
    """Of each launch that runs: the modes around it, and those that are on again within it."""

    def init_args(self: Any, args_dev: Any, kwargs: Any) -> Any:
        args, named = to_host(self, args_dev, kwargs)
        bounds.allow(_tensors_in([*args, *named.values()]))
        # What follows is the candidate's: hooks, the grid's function, the kernel's body, where nothing needs torch.
        modes, again = watching[-1]
        again.enter_context(torch._C._EnableTorchFunction())
        for mode in modes:
            again.enter_context(mode)
        return args, named

    def restore_args(self: Any, *args: Any) -> Any:
        watching[-1][1].close()
        return to_device(self, *args)

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if warmup:
            return None
        bounds.kernel = self.fn.__name__
        on_launch(self.fn.__name__)
        ORDER.now = ORDER.backwards and not _waits(self.fn)
        # Numpy warns of overflow and invalid operations that a GPU does silently.
        # What the interpreter itself does in torch is not the candidate's.
        modes = list(_get_current_dispatch_mode_stack())
        quiet = np.errstate(all="ignore")
        with _disable_current_modes(), torch._C.DisableTorchFunction(), quiet, contextlib.ExitStack() as again:
            watching.append((modes, again))
            try:
                return run(self, *args, grid=grid, warmup=False, **kwargs)
            finally:
                watching.pop()

    executor._init_args_hst, executor._restore_args_dev, function.run = init_args, restore_args, launch


@functools.cache
def _waits(function: Any) -> bool:
    """Whether any kernel of the function's file waits for what another program writes: it may be called from this
    one."""
    path = inspect.getsourcefile(function)
    text = textwrap.dedent(inspect.getsource(function)) if path is None else Path(path).read_text(encoding="utf-8-sig")
    return any(isinstance(node, ast.While) and _looks_again(node) for node in ast.walk(ast.parse(text)))


def _looks_again(loop: ast.While) -> bool:
    """Whether the condition of a loop depends on memory: by a load, an atomic or a helper of the file's own in it, or
    in what the loop makes of the names in it."""
    asked = [loop.test]
    names: set[str] = set()
    made = [(_stored(node), node.value) for node in ast.walk(loop) if isinstance(node, (ast.Assign, ast.AugAssign))]
    while asked:
        expression = asked.pop()
        if any(_touches_memory(node.func) for node in ast.walk(expression) if isinstance(node, ast.Call)):
            return True
        new = {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)} - names
        names |= new
        asked += [value for stored, value in made if stored & new]
    return False


def _stored(node: ast.AST) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}


def _touches_memory(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return not hasattr(builtins, function.id)
    return isinstance(function, ast.Attribute) and function.attr.startswith(("load", "atomic_"))


def _order(interpreter: Any) -> None:
    builder = interpreter.InterpreterBuilder
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def set_grid_dim(self: Any, *sizes: int) -> None:
        ORDER.grid = (sizes[0], sizes[1], sizes[2])
        set_dim(self, *sizes)

    def set_grid_idx(self: Any, *place: int) -> None:
        if ORDER.now:
            place = tuple(size - 1 - index for size, index in zip(ORDER.grid, place, strict=True))
        set_idx(self, *place)

    builder.set_grid_dim, builder.set_grid_idx = set_grid_dim, set_grid_idx


def _scalars(interpreter: Any) -> None:
    """A scalar as a Python integer: Triton converts its array of one element, which NumPy 2.4 and later refuse."""
    patch = interpreter._patch_lang_tensor

    def with_index(tensor: Any, *scope: Any) -> Any:
        result = patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())
        return result

    interpreter._patch_lang_tensor = with_index


def _tensors_in(values: Any) -> list[torch.Tensor]:
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found.extend(_tensors_in(value))
        elif isinstance(getattr(value, "base", None), torch.Tensor):
            found.append(value.base)
    return found


def run_first_config(self: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of Autotuner.run: the first config that pruning leaves, no timing."""
    self.nargs = dict(zip(self.arg_names, args, strict=False))
    config = self.prune_configs(kwargs)[0]
    if config.pre_hook is not None:
        config.pre_hook({**self.nargs, **kwargs, **config.all_kwargs()})
    self.best_config = config
    return self.fn.run(*args, **kwargs, **config.all_kwargs())


def _bfloat16_arithmetic(interpreter: Any) -> None:
    """The interpreter keeps bf16 as 16-bit integers and computes on those; compute on the numbers instead."""
    import triton.language as tl

    builder = interpreter.InterpreterBuilder
    binary, unary = builder.binary_op, builder.unary_op

    def widened(handle: Any) -> Any:
        return (np.asarray(handle.data).astype(np.uint32) << 16).view(np.float32)

    def narrowed(values: Any) -> Any:
        if values.dtype != np.float32:
            return values
        raw = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
        rounded = ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)

    def get_bf16(self: Any, value: float) -> Any:
        return interpreter.TensorHandle(narrowed(np.array([value], np.float32)), tl.bfloat16)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.dtype.scalar != tl.bfloat16 or rhs.dtype.scalar != tl.bfloat16:
            return binary(self, lhs, rhs, op)
        return interpreter.TensorHandle(narrowed(op(widened(lhs), widened(rhs))), tl.bfloat16)

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        if arg.dtype.scalar != tl.bfloat16:
            return unary(self, arg, op)
        return interpreter.TensorHandle(narrowed(op(widened(arg))), tl.bfloat16)

    builder.binary_op, builder.unary_op, builder.get_bf16 = binary_op, unary_op, get_bf16


def _tf32_dots(interpreter: Any) -> None:
    """`tl.dot` on fp32 rounds its operands to TF32 unless told otherwise; the interpreter multiplies in full fp32."""
    builder = interpreter.InterpreterBuilder
    exact = builder.create_dot

    def rounded(handle: Any) -> Any:
        return interpreter.TensorHandle(_round_mantissa(handle.data), handle.dtype)

    def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *rest: Any) -> Any:
        is_tf32 = "TF32" in str(input_precision) and "x3" not in str(input_precision).lower()
        if is_tf32 and a.data.dtype == np.float32 and b.data.dtype == np.float32:
            a, b = rounded(a), rounded(b)
        return exact(self, a, b, d, input_precision, *rest)

    builder.create_dot = dot


def _round_mantissa(values: Any) -> Any:
    """fp32 rounded to nearest even at TF32's 10 mantissa bits, by numpy: torch operations here would be recorded."""
    drop = 23 - TF32_BITS
    raw = np.ascontiguousarray(values).view(np.int32).astype(np.int64)
    kept = ((raw + ((1 << (drop - 1)) - 1) + ((raw >> drop) & 1)) >> drop) << drop
    return np.where(np.isfinite(values), kept.astype(np.int32).view(np.float32), values)


_LIBDEVICE: dict[str, Callable[..., Any]] = {
    "tanh": np.tanh,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "pow": np.power,
    "fabs": np.abs,
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "rint": np.rint,
    "round": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),
    "fmod": np.fmod,
    "fmax": np.fmax,
    "fmin": np.fmin,
    "fast_expf": np.exp,
    "fast_logf": np.log,
    "fast_tanhf": np.tanh,
    "fast_dividef": np.divide,
    "fast_powf": np.power,
    "div_rn": np.divide,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "erfc": np.vectorize(math.erfc, otypes=[np.float64]),
}


def _libdevice(interpreter: Any) -> None:
    """libdevice calls compile to external functions, which the interpreter lacks: numpy's, correctly typed, instead."""
    import triton.language as tl
    from triton.language.extra import libdevice
    from triton.language.extra.cuda import libdevice as cuda_libdevice

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*operands: Any, **_: Any) -> Any:
            tensors = [value for value in operands if isinstance(value, tl.tensor)]
            kind = tensors[0].dtype.scalar
            arrays = [value.handle.data if isinstance(value, tl.tensor) else value for value in operands]
            wide = [np.asarray(array).astype(np.float64) for array in arrays]
            narrow = np.asarray(function(*wide)).astype(tensors[0].handle.data.dtype)
            shape = tensors[0].shape
            result_type = tl.block_type(kind, list(shape)) if len(shape) else kind
            return tl.tensor(interpreter.TensorHandle(narrow, kind), result_type)

        return call

    def lacking(name: str) -> Callable[..., Any]:
        def call(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"libdevice.{name}")

        return call

    for module in (libdevice, cuda_libdevice):
        for name, own in list(vars(module).items()):
            if inspect.isfunction(own) and own.__module__ == module.__name__:
                setattr(module, name, wrap(_LIBDEVICE[name]) if name in _LIBDEVICE else lacking(name))
