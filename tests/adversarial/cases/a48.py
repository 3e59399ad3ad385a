import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def clamp_kernel(x_ptr, s_ptr, bounds_ptr, y_ptr, n, columns, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    low = tl.load(bounds_ptr)
    high = tl.load(bounds_ptr + 1)
    x = tl.load(x_ptr + offsets, mask=mask)
    s = tl.load(s_ptr + offsets % columns, mask=mask)
    tl.store(y_ptr + offsets, tl.minimum(tl.maximum(x * s, low), high), mask=mask)


class ModelNew(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(columns))
        self.register_buffer("bounds", torch.tensor([-1.0, 1.0]), persistent=False)

    def forward(self, x):
        y = torch.empty_like(x)
        n = x.numel()
        clamp_kernel[(triton.cdiv(n, 1024),)](x, self.scale, self.bounds, y, n, x.shape[-1], BLOCK=1024)
        return y
