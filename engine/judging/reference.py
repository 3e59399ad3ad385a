"""The reference operator at one variant: parameters redrawn, results in fp64 and in the task's own dtype."""

from __future__ import annotations

import linecache
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from engine.canonical import Json
from engine.judging.inputs import (
    ParamSpec,
    Program,
    UnsupportedTask,
    flatten,
    map_tensors,
    parameter_specs,
    parameter_value,
    record,
    replay,
)
from engine.judging.narrow_sums import NarrowSums
from engine.records import Precision
from engine.tasks.form import split_init

WIDE = torch.float64
_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_TO_NARROW = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)
_PRODUCTS = frozenset(
    {
        torch.matmul,
        torch.mm,
        torch.bmm,
        torch.addmm,
        torch.baddbmm,
        torch.einsum,
        torch.conv1d,
        torch.conv2d,
        torch.conv3d,
        torch.conv_transpose1d,
        torch.conv_transpose2d,
        torch.conv_transpose3d,
        torch.bilinear,
        torch.gru,
        torch.lstm,
        torch.rnn_tanh,
        torch.nn.functional.linear,
        torch.nn.functional.bilinear,
        torch.nn.functional.scaled_dot_product_attention,
        torch.Tensor.matmul,
        torch.Tensor.mm,
        torch.Tensor.bmm,
        torch.Tensor.__matmul__,
        torch.Tensor.__rmatmul__,
        torch.Tensor.addmm,
    }
)
MANTISSA = {Precision.TF32: 10, Precision.REDUCED: 7}
"""Explicit mantissa bits of product operands: TF32, and bf16 for `reduced`. TF32 cuts the rest off, as the tensor cores
do with fp32 registers that nobody rounded before (Triton's tl.dot); bf16 operands are rounded by the conversion."""


class _Widen(TorchFunctionMode):
    """Explicit narrow dtypes in the reference's own code become fp64, so that the fp64 run is fp64 throughout."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TO_NARROW:
            return args[0].double()
        args = tuple(WIDE if _is_narrow(value) else value for value in args)
        kwargs = {name: WIDE if _is_narrow(value) else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _is_narrow(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in _NARROW


class RoundedProducts(TorchFunctionMode):
    """Operands of products rounded to fewer mantissa bits: what TF32 or bf16 operands do to a result, on any device."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            args = tuple(self.rounded(value) for value in args)
            kwargs = {name: self.rounded(value) for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))

    def rounded(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
            return round_mantissa(value, self.bits, cut=self.bits == MANTISSA[Precision.TF32])
        if isinstance(value, (list, tuple)):
            return type(value)(self.rounded(item) for item in value)
        return value


def round_mantissa(value: torch.Tensor, bits: int, *, cut: bool = False) -> torch.Tensor:
    """fp32 values with `bits` explicit mantissa bits, rounded to nearest even or cut off; NaN and infinities stay."""
    drop = 23 - bits
    raw = value.detach().contiguous().view(torch.int32)
    if cut:
        rounded = raw & -(1 << drop)
    else:
        odd = (raw >> drop) & 1
        rounded = (raw + odd + ((1 << (drop - 1)) - 1)) & -(1 << drop)
    return torch.where(torch.isfinite(value), rounded.view(torch.float32), value)


@dataclass(frozen=True, slots=True)
class Answers:
    """One set of inputs through the reference: result trees on the device. `exact` is in fp64; `narrow` is `plain` with
    sums kept in fp32, None where that is the same."""

    plain: Any
    exact: Any
    narrow: Any


class Reference:
    """The task's module at one variant, on `device`. Raises UnsupportedTask when it cannot be judged."""

    def __init__(self, source: str, device: str, seed: int) -> None:
        self.device = device
        namespace = load_namespace(source)
        self.inputs, self.init_inputs = record_inputs(namespace)
        arguments, keywords = split_init(self.init_inputs)
        torch.manual_seed(seed)
        self.model: torch.nn.Module = namespace["Model"](*arguments, **keywords).to(device).eval()
        state = _state(self.model)
        self.params: tuple[ParamSpec, ...] = parameter_specs(state)
        self.kept = {spec.name: state[spec.name].clone() for spec in self.params if spec.kind == "keep"}

    def run(self, seed: int, suite: str, precision: Precision) -> Answers:
        """Results for one draw of inputs under the current parameters, in the task's dtype and in fp64."""
        inputs = replay(self.inputs, self.device, seed, suite)
        # Before the other call, which may change what the module holds.
        wide_model = _copy_wide(self.model)
        plain = self.plain(inputs, precision)
        return Answers(plain, _exact(wide_model, map_tensors(inputs, _widen)), self._narrow(inputs, precision))

    def exact(self, seed: int, suite: str) -> Any:
        """The result of one draw in fp64 alone."""
        # The narrow inputs are gone before the call: both may take gigabytes.
        wide = map_tensors(replay(self.inputs, self.device, seed, suite), _widen)
        return _exact(_copy_wide(self.model), wide)

    def plain(self, inputs: Any, precision: Precision) -> Any:
        """The result in the task's own dtype; TF32 and reduced operands are emulated alike on every device."""
        inputs = map_tensors(inputs, torch.clone)
        with torch.no_grad():
            if precision in MANTISSA:
                with RoundedProducts(MANTISSA[precision]):
                    return self.model(*inputs)
            return self.model(*inputs)

    def _narrow(self, inputs: Any, precision: Precision) -> Any:
        if self.device != "cpu":
            return None
        mode = NarrowSums()
        with mode:
            result = self.plain(inputs, precision)
        return result if mode.used else None


def _exact(model: torch.nn.Module, inputs: Any) -> Any:
    with torch.no_grad(), _Widen(), _default_dtype(WIDE):
        return model(*inputs)


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(WIDE) if tensor.dtype in _NARROW else tensor.clone()


def _copy_wide(model: torch.nn.Module) -> torch.nn.Module:
    import copy

    return copy.deepcopy(model).to(WIDE)


class _default_dtype:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)


def fill_parameters(
    model: torch.nn.Module,
    specs: tuple[ParamSpec, ...],
    kept: Mapping[str, torch.Tensor],
    device: str,
    seed: int,
    suite: str,
) -> None:
    """Write new values into the storage that the module has, so that a copy made earlier goes stale."""
    fill_entries(_state(model), specs, kept, device, seed, suite)


def fill_entries(
    state: Mapping[str, torch.Tensor],
    specs: tuple[ParamSpec, ...],
    kept: Mapping[str, torch.Tensor],
    device: str,
    seed: int,
    suite: str,
) -> None:
    """The same for entries of a state_dict that somebody else has read; no method of their own is called."""
    with torch.no_grad():
        for spec in specs:
            value = kept[spec.name] if spec.kind == "keep" else parameter_value(spec, device, seed, suite)
            torch.Tensor.copy_(state[spec.name], value)


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict(keep_vars=True))


def load_namespace(source: str) -> dict[str, Any]:
    """The task module's names. Tasks are trusted: they are the user's own files."""
    module = types.ModuleType("reference_task")
    linecache.cache["<task>"] = (len(source), None, source.splitlines(True), "<task>")
    try:
        exec(compile(source, "<task>", "exec"), module.__dict__)
    except SystemExit as error:
        raise UnsupportedTask(f"the task file ends its process: SystemExit: {error}") from error
    except (ImportError, SyntaxError, NameError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UnsupportedTask(f"the task file cannot be imported: {type(error).__name__}: {error}") from error
    missing = [name for name in ("Model", "get_inputs", "get_init_inputs") if name not in module.__dict__]
    if missing:
        raise UnsupportedTask(f"the task file defines no {', '.join(missing)}")
    return module.__dict__


def record_inputs(namespace: Mapping[str, Any]) -> tuple[Program, Any]:
    """The recorded get_inputs, and what get_init_inputs returns."""
    return record(namespace["get_inputs"]), namespace["get_init_inputs"]()


def tree_of(value: Any) -> Any:
    """The structure of a result, read as `flatten` reads it: `t` for a tensor, nested lists, `map` with keys, None, or
    a type's name."""
    kind = type(value)
    if issubclass(kind, torch.Tensor):
        return "t"
    if issubclass(kind, dict):
        return {"map": {str(name): tree_of(item) for name, item in dict.items(value)}}
    if issubclass(kind, list):
        return {"list": [tree_of(item) for item in list.__iter__(value)]}
    if issubclass(kind, tuple):
        return {"tuple": [tree_of(item) for item in tuple.__iter__(value)]}
    return None if value is None else str(kind.__name__)


def tree_text(tree: Json) -> str:
    """What `tree_of` returned, in words."""
    if tree == "t":
        return "a tensor"
    if isinstance(tree, dict):
        ((kind, items),) = tree.items()
        if kind == "map":
            return "a dict of " + ", ".join(items)
        return f"a {kind} of {len(items)}: " + ", ".join(tree_text(item) for item in items)
    return str(tree)


def leaves(value: Any) -> list[torch.Tensor]:
    """The tensors of a result, in order."""
    return flatten(value)
