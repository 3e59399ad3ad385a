"""Torch operations that a forward() runs outside its kernels: recorded by aten name, and which a policy allows."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from engine.canonical import Json
from engine.judging.answers import plain_text
from engine.records import HostOp

PLAIN = frozenset(
    [
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full"),
        *("fill", "fill_", "zero_", "arange", "scalar_tensor", "lift_fresh", "lift_fresh_copy", "detach", "detach_"),
        *("alias", "view", "_unsafe_view", "_reshape_alias", "reshape", "permute", "transpose", "t", "expand"),
        *("slice", "select", "unsqueeze", "squeeze", "as_strided", "clone", "copy_", "_to_copy", "contiguous"),
        *("split", "split_with_sizes", "unbind", "chunk", "narrow", "diagonal", "unfold", "view_as_real"),
        *("view_as_complex", "_local_scalar_dense", "set_", "device", "resize_", "is_same_size", "sym_size"),
        *("sym_stride", "sym_numel", "sym_storage_offset", "movedim", "flatten", "_to_cpu", "to", "unsafe_split"),
        *("unsafe_chunk", "swapaxes", "view_as", "expand_as", "result_type", "_assert_async"),
    ]
)
"""
    `none`: allocation, fill, views, contiguous, clone, copies.
    """

LIBRARY = PLAIN | frozenset(
    [
        "cat",
        "stack",
        "constant_pad_nd",
        "pad",
        "reflection_pad1d",
        "reflection_pad2d",
        "replication_pad1d",
        "replication_pad2d",
        "repeat",
        "repeat_interleave",
        "flip",
        "roll",
        "index",
        "index_select",
        "gather",
        "scatter",
        "scatter_add",
        "index_put",
        "index_put_",
        "masked_fill",
        "masked_fill_",
        "where",
        "tril",
        "triu",
        "eye",
        "linspace",
        "randperm",
        "one_hot",
        "sort",
        "topk",
        "cumsum",
        "embedding",
        "add",
        "add_",
        "sub",
        "sub_",
        "rsub",
        "mul",
        "mul_",
        "div",
        "div_",
        "neg",
        "abs",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "exp",
        "log",
        "pow",
        "square",
        "maximum",
        "minimum",
        "clamp",
        "clamp_min",
        "clamp_max",
        "clamp_",
        "sin",
        "cos",
        "tanh",
        "sigmoid",
        "relu",
        "relu_",
        "gelu",
        "silu",
        "erf",
        "floor",
        "ceil",
        "round",
        "sign",
        "bitwise_and",
        "bitwise_or",
        "bitwise_not",
        "logical_and",
        "logical_or",
        "logical_not",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "remainder",
        "floor_divide",
        "addcmul",
        "addcdiv",
        "sum",
        "mean",
        "amax",
        "amin",
        "max",
        "min",
        "argmax",
        "argmin",
        "any",
        "all",
        "var",
        "std",
        "norm",
        "linalg_vector_norm",
        "prod",
        "count_nonzero",
        "isnan",
        "isinf",
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "matmul",
        "linear",
        "dot",
        "mv",
        "addmv",
        "convolution",
        "_convolution",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose2d",
        "cudnn_convolution",
        "mkldnn_convolution",
        "native_group_norm",
        "native_layer_norm",
        "native_batch_norm",
        "_native_batch_norm_legit_no_training",
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
        "avg_pool2d",
        "avg_pool3d",
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "native_dropout",
        "softmax",
        "_softmax",
        "_log_softmax",
        "leaky_relu",
        "hardtanh",
        "elu",
        "hardswish",
        "hardsigmoid",
        "softplus",
        "mish",
        "logsumexp",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_fused_attention_overrideable",
        "_scaled_dot_product_attention_math",
        # What a CUDA device runs where the trace on fake tensors has a decomposition or another spelling.
        "_scaled_dot_product_cudnn_attention",
        "cudnn_batch_norm",
        "_fused_rms_norm",
        "_cudnn_rnn",
        "_thnn_fused_gru_cell",
        "_thnn_fused_lstm_cell",
    ]
)
"""`library`: these too, as long as kernels keep a share of the operator's work (`policy.kernel_share`)."""


_KINDS = frozenset({torch.Tensor, torch.nn.Parameter, FakeTensor})


def foreign_kind(types: Any) -> Any:
    """The first subclass of Tensor among these with a dispatch of its own; None where there is none."""
    return next((kind for kind in types if kind not in _KINDS), None)


@functools.cache
def is_composite(func: Any) -> bool:
    """Whether an operation is nothing but others (`matmul`, `conv2d`): under torch.inference_mode() it arrives whole,
    and nobody counts what it is worth."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return func.namespace == "aten" and bool(has_kernel(func.name(), "CompositeImplicitAutograd"))


_EACH: Mapping[str, int] = defaultdict(
    lambda: 1,
    {
        **dict.fromkeys(("mv", "addmv", "dot", "vdot", "addr", "ger", "norm", "linalg_vector_norm", "cdist"), 2),
        **dict.fromkeys(("addcmul", "addcdiv", "lerp", "var", "std"), 3),
    },
)
"""Floating-point operations for each element, where it is not one."""

MOVES = frozenset({"aten.clone", "aten.copy_", "aten._to_copy", "aten.contiguous", "aten.lift_fresh_copy"})
"""Allowed everywhere; their bytes are counted for references that do nothing else."""

_GATHERS = frozenset(
    [
        *("aten.nll_loss_forward", "aten.nll_loss2d_forward", "aten.gather", "aten.embedding", "aten.index"),
        *("aten.index_select", "aten.take"),
    ]
)
"""They read of their first argument only what they return: it counts for nothing, and the result twice."""

VALUES = "python.values"
"""A row of the record for elements of tensors that Python was given: what it computes of them nobody sees."""
FEW_VALUES = 64
"""So many a call may decide what is launched, as lengths of sequences do."""


def values_read(count: int) -> HostOp:
    """`count` elements that one call gave to Python, as a host operation."""
    return HostOp(VALUES, count, count > FEW_VALUES, float(count), 8.0 * count)


def short_name(func: Any) -> str:
    """`aten.add`: the operator without its overload; other libraries keep their own prefix."""
    return f"{func.namespace}.{func._schema.name.split('::')[-1]}"


def is_plain(name: str) -> bool:
    return allowed(name, "none")


def allowed(name: str, policy: str) -> bool:
    """Whether a policy (none, library or any) lets forward() run this operation."""
    if policy == "any":
        return True
    if name == VALUES:
        return False
    library, _, operation = name.partition(".")
    known = PLAIN if policy == "none" else LIBRARY
    return library in ("aten", "prim") and (operation in known or operation.removesuffix("_") in known)


class OpRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the aten operations that reach the dispatcher, with their FLOPs and bytes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The default wraps the mode so that its first use imports torch._dynamo: two seconds in every child.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = foreign_kind(types)
        if own is not None:
            # Below a mode the dispatcher would call it with the mode off, and nothing that it runs would count.
            with self:
                return own.__torch_dispatch__(func, types, args, kwargs or {})
        if is_composite(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self.note(func, args, kwargs or {}, result)
        return result

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Count one operation that has been run."""
        name = short_name(func)
        self.count[name] += 1
        if name in MOVES or not is_plain(name):
            self.bytes[name] += _bytes(_read(name, args, kwargs, result)) + _bytes([result])
        if not is_plain(name):
            self.flops[name] += _flops(func, args, kwargs, result)

    def ops(self) -> tuple[HostOp, ...]:
        return tuple(
            HostOp(name, count, not is_plain(name), float(self.flops[name]), float(self.bytes[name]))
            for name, count in self.count.items()
        )

    def as_json(self) -> Json:
        return [row_of(op) for op in self.ops()]


def row_of(op: HostOp) -> Json:
    """An operation as it travels."""
    return [op.name, op.count, op.compute, op.flops, op.bytes]


def from_json(rows: Json) -> tuple[HostOp, ...]:
    """Host operations from a child's answer; TypeError or ValueError for another form. Which of them compute is ours to
    say."""
    return tuple(
        _op(plain_text(str(name)[:200]), int(count), float(flops), float(size)) for name, count, _, flops, size in rows
    )


def _op(name: str, count: int, flops: float, size: float) -> HostOp:
    return values_read(count) if name == VALUES else HostOp(name, count, not is_plain(name), flops, size)


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    formula = flop_registry.get(func._overloadpacket)
    if formula is not None:
        return int(formula(*args, **kwargs, out_val=result))
    name = short_name(func)
    sizes = [tensor.numel() for tensor in _tensors([*_read(name, args, kwargs, result), result])]
    return _EACH[name.removeprefix("aten.").rstrip("_")] * max(sizes, default=0)


def _read(name: str, args: Any, kwargs: Any, result: Any) -> list[Any]:
    """Arguments as far as an operation reads them."""
    given = [*args, *kwargs.values()]
    return [result, *given[1:]] if name in _GATHERS else given


def _bytes(values: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(values))


def _tensors(values: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(_tensors(value))
    return found


def span_bytes(tensor: torch.Tensor) -> int:
    """Bytes between a tensor's first and last element: a broadcast costs what it reads, a view what it covers."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return min(int(last + 1), math.prod(tensor.shape)) * tensor.element_size()
