import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def relu_bias_kernel(x_ptr, b_ptr, y_ptr, n, plane, channels, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    b = tl.load(b_ptr + (offsets // plane) % channels, mask=mask)
    tl.store(y_ptr + offsets, tl.maximum(x, 0.0) + b, mask=mask)


class ModelNew(nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size)
        self.bias = nn.Parameter(torch.randn(out_channels, 1, 1))

    def forward(self, x):
        z = self.conv(x)
        y = torch.empty_like(z)
        n = z.numel()
        relu_bias_kernel[(triton.cdiv(n, 1024),)](z, self.bias, y, n, z.shape[2] * z.shape[3], z.shape[1], BLOCK=1024)
        return y
