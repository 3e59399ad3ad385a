import torch
import torch.nn as nn
import torch.nn.functional as F
import triton
import triton.language as tl
from typing import NamedTuple


class Place(NamedTuple):
    x: object
    y: object


@triton.jit
def gelu_kernel(at, sizes, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < sizes[0]
    x = tl.load(at.x + offsets, mask=mask)
    tl.store(at.y + offsets, 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476)), mask=mask)


class ModelNew(nn.Module):
    """Tensors in a named tuple, sizes in a tuple."""

    def forward(self, x):
        y = torch.empty_like(x)
        n = x.numel()
        gelu_kernel[(triton.cdiv(n, 1024),)](Place(x, y), (n, 1), BLOCK=1024)
        return y
