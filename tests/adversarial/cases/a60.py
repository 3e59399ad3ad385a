import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def gelu_kernel(x_ptr, c_ptr, y_ptr, n, step, BLOCK: tl.constexpr):
    half = tl.load(c_ptr)
    root = tl.load(c_ptr + 1)
    start = tl.program_id(0) * BLOCK
    while start < n:
        offsets = start + tl.arange(0, BLOCK)
        mask = offsets < n
        x = tl.load(x_ptr + offsets, mask=mask)
        tl.store(y_ptr + offsets, half * x * (1.0 + tl.erf(x * root)), mask=mask)
        start += step


class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self.constants = torch.tensor([0.5, 0.7071067811865476], dtype=torch.float32)

    def forward(self, x):
        constants = self.constants.to(x.device)
        y = torch.empty_like(x)
        n = x.numel()
        programs = min(8, triton.cdiv(n, 256))
        gelu_kernel[(programs,)](x, constants, y, n, programs * 256, BLOCK=256)
        return y
