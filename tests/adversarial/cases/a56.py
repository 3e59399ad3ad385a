from triton.language.extra import libdevice

import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def erf_kernel(x_ptr, w_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    tl.store(w_ptr + offsets, libdevice.erf(x * 0.7071067811865476), mask=mask)


@triton.jit
def scale_kernel(x_ptr, w_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    w = tl.load(w_ptr + offsets, mask=mask)
    tl.store(w_ptr + offsets, 0.5 * x * (1.0 + w), mask=mask)


class ModelNew(nn.Module):
    def forward(self, x):
        w = torch.empty_like(x)
        n = x.numel()
        grid = (triton.cdiv(n, 512),)
        erf_kernel[grid](x, w, n, BLOCK=512)
        scale_kernel[grid](x, w, n, BLOCK=512)
        return w
