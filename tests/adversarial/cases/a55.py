import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def gelu_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    tl.store(y_ptr + offsets, 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476)), mask=mask)


def gelu(x, y):
    n = x.numel()
    gelu_kernel[(triton.cdiv(n, 1024),)](x, y, n, BLOCK=1024)
    return y


class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self.label = ""

    def extra_repr(self):
        return f"label={self.label!r}"

    def forward(self, x):
        match x.dtype:
            case torch.float32:
                block = 1024
            case _:
                block = 2048
        self.label = f"{x.numel()}x{block}"
        y = torch.empty_like(x)
        n = x.numel()
        gelu_kernel.warmup(x, y, n, BLOCK=block, grid=(1,))
        gelu_kernel[(triton.cdiv(n, block),)](x, y, n, BLOCK=block)
        return y
