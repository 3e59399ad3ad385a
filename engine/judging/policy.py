"""What forward() may do besides its kernels, decided from the launch record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.canonical import Json
from engine.judging.answers import plain_text
from engine.judging.host_ops import FEW_VALUES, VALUES, allowed, from_json
from engine.judging.messages import Failure
from engine.records import HostOp, Launch, Reason, Status, Trace

_GELU, _NORM, _SOFTMAX, _ATTENTION, _RECURRENT = "gelu", "norm", "softmax", "attention", "rnn"
_FAMILIES: Mapping[str, str] = {
    "gelu": _GELU,
    "silu": "silu",
    "mish": "mish",
    "elu": "elu",
    "softplus": "softplus",
    "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid",
    "softmax": _SOFTMAX,
    "_softmax": _SOFTMAX,
    "_log_softmax": _SOFTMAX,
    "logsumexp": _SOFTMAX,
    "native_layer_norm": _NORM,
    "native_group_norm": _NORM,
    "native_batch_norm": _NORM,
    "_native_batch_norm_legit_no_training": _NORM,
    "cudnn_batch_norm": _NORM,
    "_fused_rms_norm": _NORM,
    "_cudnn_rnn": _RECURRENT,
    "_thnn_fused_gru_cell": _RECURRENT,
    "_thnn_fused_lstm_cell": _RECURRENT,
}
_PRODUCTS = frozenset(
    ["mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "dot", "mv", "addmv", "convolution", "_convolution"]
)
LINEAR = _PRODUCTS - {"addmm", "baddbmm", "addmv"} | {"sum", "cumsum"}
"""What the integer probe is exact for: no scaling, no bias of another magnitude."""

_ELEMENTWISE = frozenset(
    [
        *("add", "sub", "rsub", "mul", "div", "neg", "abs", "pow", "square", "sqrt", "rsqrt", "reciprocal"),
        *("exp", "log", "sin", "cos", "tanh", "sigmoid", "erf", "floor", "ceil", "round", "sign", "floor_divide"),
        *("maximum", "minimum", "clamp", "clamp_min", "clamp_max", "relu", "leaky_relu", "hardtanh"),
        *("addcmul", "addcdiv", "remainder"),
    ]
)
"""Arithmetic whose result is as large as what it reads, unlike a reduction, a product or a data movement."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the reference itself does at one variant. `compulsory`: bytes of inputs, parameters and outputs, once."""

    ops: tuple[HostOp, ...]
    compulsory: float

    @property
    def linear(self) -> bool:
        """Whether it is products and sums and nothing else."""
        names = [_operation(op) for op in self.ops if op.compute]
        return bool(names) and all(name in LINEAR for name in names)


def _operation(op: HostOp) -> str:
    name = op.name.partition(".")[2]
    return name.rstrip("_")


def _family(op: HostOp) -> str | None:
    """Which fused form of the library an operation is, None for a basic one; spellings of one form are one family."""
    name = _operation(op)
    return _ATTENTION if name.startswith("_scaled_dot_product") else _FAMILIES.get(name)


def kernel_share(host: Sequence[HostOp], own: Work) -> float:
    """Share of the operator that host operations leave to kernels.

    By the reference's own FLOPs or bytes, whichever is larger. A reference that is a formula of basic operations counts
    bytes that no fused form needs, so there elementwise host operations are compared with the compulsory bytes as well:
    reading all inputs and writing tensors as large as the outputs leaves nothing. Where the reference only moves data,
    copies count as its work.
    """

    def share(done: float, whole: float) -> float:
        return 1.0 - min(1.0, done / whole) if whole > 0 else 0.0

    mine = [op for op in host if op.compute]
    whole = [op for op in own.ops if op.compute]
    if not whole:
        # A reference that only moves data: what the host moves is not left to kernels.
        return 1.0 - min(1.0, sum(op.bytes for op in host) / own.compulsory) if own.compulsory > 0 else 1.0
    left = max(
        share(sum(op.flops for op in mine), sum(op.flops for op in whole)),
        share(sum(op.bytes for op in mine), sum(op.bytes for op in whole)),
    )
    if all(_operation(op) not in _PRODUCTS and _family(op) is None for op in whole) and own.compulsory > 0:
        elementwise = sum(op.bytes for op in mine if _operation(op) in _ELEMENTWISE)
        left = min(left, share(elementwise, own.compulsory))
    return left


def goes_beyond(real: Sequence[HostOp], traced: Sequence[HostOp], *, same_size: bool) -> bool:
    """Whether a run computed outside its kernels what its trace does not have: another operation, or, at the traced
    size, more of one."""
    known = {op.name: op.bytes for op in traced}
    return any(op.compute and (op.name not in known or (same_size and op.bytes > 1.01 * known[op.name])) for op in real)


def trace_from(answer: Mapping[str, Json]) -> tuple[Trace, tuple[str, ...]]:
    """The record in a child's answer, and its kernels that the interpreter cannot judge. KeyError, TypeError or
    ValueError for another form: the process belongs to the candidate."""
    launches = tuple(
        Launch(
            kernel=plain_text(str(row["kernel"])[:200]),
            grid=(int(row["grid"][0]), int(row["grid"][1]), int(row["grid"][2])),
            count=int(row["count"]),
            bytes=float(row["bytes"]),
            num_warps=int(row["num_warps"]),
            num_stages=int(row["num_stages"]),
            has_dot=bool(row["has_dot"]),
            registers=_optional(row["registers"]),
            spill_bytes=_optional(row["spill_bytes"]),
            shared_bytes=_optional(row["shared_bytes"]),
        )
        for row in answer["launches"]
    )
    foreign = tuple(
        HostOp(plain_text(f"triton.{name}"[:200]), int(count), True, 0.0, 0.0)
        for name, count in answer["foreign"].items()
    )
    remarks = tuple(str(remark)[:300] for remark in answer["remarks"])
    trace = Trace(launches, from_json(answer["host_ops"]) + foreign, remarks)
    return trace, tuple(str(name) for name in answer["interpreter_limit"])


def _optional(value: Json) -> int | None:
    return None if value is None else int(value)


def policy_problem(
    launches: int, host_ops: Sequence[HostOp], policy: str, own: Work, min_share: float
) -> Failure | None:
    """Why a record is refused under none, library or any; None when it is not.

    Under `library`, fused forms (GELU, norms, softmax, attention) are allowed only where the reference uses them, and
    kernels must keep `min_share` of the operator, so a kernel that only copies a library's result is refused. A
    reference whose operations are unknown bounds neither.
    """
    if launches == 0:
        text = "forward() launches no Triton kernel of this file"
        return Failure(Status.REJECTED, Reason.NOT_LAUNCHED, text)
    read = sum(op.count for op in host_ops if op.name == VALUES and op.compute)
    if read and policy != "any":
        text = (
            f"forward() reads {read} values of tensors into Python, which can compute what no record shows; at most "
            f"{FEW_VALUES} may decide what is launched. Compute inside a Triton kernel."
        )
        return Failure(Status.REJECTED, Reason.HOST_OP, text)
    refused = sorted({op.name for op in host_ops if op.name != VALUES and not allowed(op.name, policy)})
    if refused:
        text = (
            f"forward() runs torch operations that host_ops={policy} does not allow: {', '.join(refused)}. "
            "Compute them inside a Triton kernel."
        )
        return Failure(Status.REJECTED, Reason.HOST_OP, text)
    if policy != "library" or not own.ops:
        return None
    known = {_family(op) for op in own.ops}
    fused = sorted({op.name for op in host_ops if _family(op) not in known | {None}})
    if fused:
        text = (
            f"forward() runs fused torch operations that the reference does not use: {', '.join(fused)}. "
            "Compute them inside a Triton kernel."
        )
        return Failure(Status.REJECTED, Reason.HOST_OP, text)
    share = kernel_share(host_ops, own)
    if share < min_share:
        done = ", ".join(sorted({op.name for op in host_ops if op.compute}))
        text = (
            f"torch does the operator's work ({done}); kernels keep {100 * share:.0f} % of it, at least "
            f"{100 * min_share:.0f} % is required. Compute it inside a Triton kernel."
        )
        return Failure(Status.REJECTED, Reason.HOST_OP, text)
    return None
