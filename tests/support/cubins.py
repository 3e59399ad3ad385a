"""Kernels compiled ahead of time for chips that need not be there."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets))


@triton.jit
def strided_kernel(x_ptr, y_ptr, stride, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.exp(tl.load(x_ptr + offsets * stride)))


@triton.jit
def product_kernel(a_ptr, b_ptr, c_ptr, K, stride, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr):
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, STEP)
    total = tl.zeros((M, N), tl.float32)
    for k in range(0, K, STEP):
        a = tl.load(a_ptr + rows[:, None] * stride + (k + inner)[None, :])
        b = tl.load(b_ptr + (k + inner)[:, None] * stride + columns[None, :])
        total = tl.dot(a, b, total)
    tl.store(c_ptr + rows[:, None] * stride + columns[None, :], total)


@triton.jit
def described_kernel(x_ptr, n, BLOCK: tl.constexpr):
    described = tl.make_tensor_descriptor(x_ptr, [n, BLOCK], [BLOCK, 1], [16, BLOCK])
    described.store([0, 0], described.load([16, 0]) + 1.0)


_ELEMENTWISE = ({"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32"}, {"BLOCK": 1024})
_PRODUCT = {"a_ptr": "*fp16", "b_ptr": "*fp16", "c_ptr": "*fp32", "K": "i32", "stride": "i32"}

KERNELS: Mapping[str, tuple] = {
    "copy": (copy_kernel, *_ELEMENTWISE, {}),
    "strided": (strided_kernel, {"x_ptr": "*fp32", "y_ptr": "*fp32", "stride": "i32"}, {"BLOCK": 1024}, {}),
    "product": (product_kernel, _PRODUCT, {"M": 64, "N": 64, "STEP": 32}, {}),
    "big_tile": (product_kernel, _PRODUCT, {"M": 128, "N": 256, "STEP": 32}, {"num_warps": 4, "num_stages": 2}),
    "described": (described_kernel, {"x_ptr": "*fp32", "n": "i32"}, {"BLOCK": 64}, {}),
}
"""Function, signature, constants, options. `big_tile` has 256 sums for each thread, which has 255 registers."""


@functools.cache
def cubin(name: str, capability: int) -> bytes:
    """Machine code for sm_<capability>; the calling test is skipped where Triton's interpreter is on."""
    function, signature, constants, options = KERNELS[name]
    if not isinstance(function, triton.runtime.jit.JITFunction):
        pytest.skip("Triton's interpreter is on in this process")
    kinds = {**signature, **dict.fromkeys(constants, "constexpr")}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] in "*i"}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": folder}):
        source = ASTSource(function, kinds, constants, aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        return compiled.asm["cubin"]


def written(folder: Path, name: str, capability: int) -> str:
    """The path of a file with that machine code in `folder`."""
    path = folder / f"{name}_{capability}.cubin"
    path.write_bytes(cubin(name, capability))
    return str(path)
