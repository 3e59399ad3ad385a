"""What forward() may do besides its kernels, decided from the launch record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.canonical import Json
from engine.judging.host_ops import MIN_KERNEL_SHARE, allowed, from_json, kernel_share
from engine.judging.messages import Failure
from engine.records import HostOp, Launch, Reason, Status, Trace


def trace_from(answer: Mapping[str, Json]) -> tuple[Trace, tuple[str, ...]]:
    """The record in a child's answer, and its kernels that the interpreter cannot judge. KeyError, TypeError or
    ValueError for another form: the process belongs to the candidate."""
    launches = tuple(
        Launch(
            kernel=str(row["kernel"]),
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
    foreign = tuple(HostOp(f"triton.{name}", int(count), True, 0.0, 0.0) for name, count in answer["foreign"].items())
    remarks = tuple(str(remark)[:300] for remark in answer["remarks"])
    trace = Trace(launches, from_json(answer["host_ops"]) + foreign, remarks)
    return trace, tuple(str(name) for name in answer["interpreter_limit"])


def _optional(value: Json) -> int | None:
    return None if value is None else int(value)


def policy_problem(
    launches: int, host_ops: Sequence[HostOp], policy: str, reference_ops: Sequence[HostOp]
) -> Failure | None:
    """Why a record is refused under none, library or any; None when it is not.

    Under `library`, kernels must keep a share of the operator: what host operations do is compared with what the
    reference's own operations do, by FLOPs and by bytes, so a kernel that only copies a library's result is refused.
    """
    if launches == 0:
        text = "forward() launches no Triton kernel of this file"
        return Failure(Status.REJECTED, Reason.NOT_LAUNCHED, text)
    refused = sorted({op.name for op in host_ops if not allowed(op.name, policy)})
    if refused:
        text = (
            f"forward() runs torch operations that host_ops={policy} does not allow: {', '.join(refused)}. "
            "Compute them inside a Triton kernel."
        )
        return Failure(Status.REJECTED, Reason.HOST_OP, text)
    if policy != "library" or not reference_ops:
        return None
    share = kernel_share(host_ops, reference_ops)
    if share < MIN_KERNEL_SHARE:
        done = ", ".join(sorted({op.name for op in host_ops if op.compute}))
        text = (
            f"torch does the operator's work ({done}); kernels keep {100 * share:.0f} % of it, at least "
            f"{100 * MIN_KERNEL_SHARE:.0f} % is required. Compute it inside a Triton kernel."
        )
        return Failure(Status.REJECTED, Reason.HOST_OP, text)
    return None
