import torch
import torch.nn as nn
import torch.nn.functional as F
import triton
import triton.language as tl

@triton.jit
def gelu_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    tl.store(y_ptr + offsets, 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476)), mask=mask)


KERNELS: dict = {}
KERNELS["gelu"] = gelu_kernel


class ModelNew(nn.Module):
    kernel = None

    def forward(self, x):
        y = torch.empty_like(x)
        n = x.numel()
        KERNELS["gelu"][(triton.cdiv(n, 1024),)](x, y, n, BLOCK=1024)
        return y


ModelNew.kernel = gelu_kernel
