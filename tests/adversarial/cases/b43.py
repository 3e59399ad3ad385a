import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def product_kernel(x_ptr, e_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    e = tl.load(e_ptr + offsets, mask=mask)
    tl.store(y_ptr + offsets, 0.5 * x * (1.0 + e), mask=mask)


class ModelNew(nn.Module):
    def forward(self, x):
        e = torch.erf(x * 0.7071067811865476)
        y = torch.empty_like(x)
        n = x.numel()
        product_kernel[(triton.cdiv(n, 1024),)](x, e, y, n, BLOCK=1024)
        return y
