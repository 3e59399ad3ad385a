"""Verdicts on errors a little above PyTorch's own, and results that travel in parts."""

from __future__ import annotations

import pytest

from engine.judging import wire
from engine.judging.messages import is_memory
from engine.records import Contract, Precision, Reason, Task
from tests.support.judge import judged

TASK = """import torch
import torch.nn as nn

ROWS = 64
COLUMNS = 64


class Model(nn.Module):
    def forward(self, x, y):
        return x + y


def get_inputs():
    return [torch.rand(ROWS, COLUMNS), torch.rand(ROWS, COLUMNS)]


def get_init_inputs():
    return []
"""
BIASED = """import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def add_kernel(x_ptr, y_ptr, z_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    z = tl.load(x_ptr + offsets, mask=mask) + tl.load(y_ptr + offsets, mask=mask)
    tl.store(z_ptr + offsets, z * FACTOR, mask=mask)


class ModelNew(nn.Module):
    def forward(self, x, y):
        z = torch.empty_like(x)
        n = x.numel()
        add_kernel[(triton.cdiv(n, 256),)](x, y, z, n, BLOCK=256)
        return z
"""
ULP = 2.0**-23


@pytest.mark.parametrize(
    ("precision", "factor", "reason", "seen"),
    [
        (Precision.IEEE, 1 + ULP, None, "ieee"),
        (Precision.TF32, 1 + ULP, None, "tf32"),
        (Precision.IEEE, 1 + 5 * ULP, Reason.PRECISION, "loose"),
        (Precision.TF32, 1 + 5 * ULP, Reason.PRECISION, "loose"),
        (Precision.IEEE, 1.001, Reason.WRONG_RESULT, None),
    ],
    ids=["ieee", "tf32-forbids-nothing-more", "loose", "loose-under-tf32", "wrong"],
)
def test_errors_above_pytorchs_own(precision, factor, reason, seen):
    contract = Contract(dtype="float32", variants={"odd": {"ROWS": 7, "COLUMNS": 33}}, precision=precision)
    task = Task("add", "add", TASK, contract, "declared", f"biased{precision.value}")
    verdict = judged(task, BIASED.replace("FACTOR", repr(factor)))
    assert verdict.reason is reason, verdict.message
    assert verdict.precision_class == seen


def test_a_file_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "PART_BYTES", 4)
    path = tmp_path / "result.bin"
    path.write_bytes(b"0123456789")
    assert [(start, bytes(part)) for start, part in wire.read_parts(path, 10)] == [
        (0, b"0123"),
        (4, b"4567"),
        (8, b"89"),
    ]
    assert wire.read_raw(path, 10) == b"0123456789"
    with pytest.raises(wire.ChannelClosed, match="expected a file of 11 bytes"):
        list(wire.read_parts(path, 11))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("CUDA out of memory. Tried", True), ("CUBLAS_STATUS_ALLOC_FAILED when calling", True), ("shapes differ", False)],
)
def test_is_memory(text, expected):
    assert is_memory(RuntimeError(text)) is expected
