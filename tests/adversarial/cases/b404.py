import enum
import itertools
import warnings
from collections import namedtuple

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.nn.init as init
from torch.autograd import Function
from torch.nn.parameter import Parameter
import triton
import triton.language as tl


class Block(enum.IntEnum):
    SMALL = 256
    LARGE = 1024


Launch = namedtuple("Launch", "block warps")
LAUNCHES = [Launch(block, warps) for block, warps in itertools.product(Block, (4, 8))]
warnings.filterwarnings("ignore", category=DeprecationWarning)


@triton.jit
def gelu_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    tl.store(y_ptr + offsets, 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476)), mask=mask)


class Gelu(Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.empty_like(x)
        n = x.numel()
        at = LAUNCHES[-1]
        gelu_kernel[(triton.cdiv(n, at.block),)](x, y, n, BLOCK=int(at.block), num_warps=at.warps)
        return y


class ModelNew(nn.Module):
    def forward(self, x):
        return Gelu.apply(x)


if __name__ == "__main__":
    import time

    started = time.time()
    ModelNew()(torch.randn(8, 8, device="cuda"))
    print(time.time() - started)
