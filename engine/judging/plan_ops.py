"""The host operations of a checked plan with their FLOPs and bytes: what a policy should judge, since the tracer that
counts them too belongs to the candidate."""

from __future__ import annotations

from typing import Any

import torch

from engine.canonical import Json
from engine.judging.host_ops import OpRecorder, is_composite
from engine.judging.plan import Call, HostCall, tensors_of
from engine.judging.plan_arguments import PlanError, operation_of
from engine.records import HostOp

ATTENTION = "aten.scaled_dot_product_attention.default"
"""The one composite operation of plans: its parts depend on the device."""


def host_ops(call: Call) -> tuple[HostOp, ...]:
    """One row an operation, as `OpRecorder` counts a run. PlanError for arguments that no such operation takes."""
    counted = OpRecorder()
    for step in call.steps:
        if step.call is not None:
            _count(counted, step.call)
    return counted.ops()


def _count(counted: OpRecorder, call: HostCall) -> None:
    results = [_meta(ref.shape, ref.stride, ref.dtype) for ref in call.layouts if ref is not None]
    arguments, keywords = _decoded(call.arguments), _decoded(call.keywords)
    operation = operation_of("", call.op)
    try:
        if is_composite(operation) and call.op != ATTENTION:
            # No honest tracer emits one; its parts are what it is worth.
            with counted:
                operation(*arguments, **keywords)
            return
        counted.note(operation, arguments, keywords, results[0] if len(results) == 1 else results)
    except (AssertionError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise PlanError(f"{call.op} takes no such arguments: {error}") from error


def _decoded(tree: Json) -> Any:
    if isinstance(tree, list):
        return [_decoded(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        (ref,) = tensors_of(tree)
        return _meta(ref.shape, ref.stride, ref.dtype)
    # Marks of dtypes and devices say nothing of work.
    return {name: _decoded(item) for name, item in tree.items()}


def _meta(shape: tuple[int, ...], stride: tuple[int, ...], dtype: str) -> torch.Tensor:
    return torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device="meta")
