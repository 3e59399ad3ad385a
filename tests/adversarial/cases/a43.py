import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def epilogue_kernel(z_ptr, y_ptr, n, scale, slope, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    z = tl.load(z_ptr + offsets, mask=mask) * scale
    tl.store(y_ptr + offsets, tl.where(z > 0, z, z * slope), mask=mask)


class ModelNew(nn.Module):
    def __init__(self, input_size, hidden_size, scale, negative_slope):
        super().__init__()
        self.gemm = nn.Linear(input_size, hidden_size)
        self.scale = scale
        self.negative_slope = negative_slope

    def forward(self, x):
        z = self.gemm(x)
        y = torch.empty_like(z)
        n = z.numel()
        epilogue_kernel[(triton.cdiv(n, 1024),)](z, y, n, self.scale, self.negative_slope, BLOCK=1024)
        return y
