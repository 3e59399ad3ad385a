import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def narrow_kernel(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + offsets, mask=offsets < columns, other=-float("inf"))
    tl.store(y_ptr + row, tl.max(x, axis=0))


@triton.jit
def wide_kernel(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    largest = tl.full((BLOCK,), -float("inf"), dtype=tl.float32)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * columns + offsets, mask=offsets < columns, other=-float("inf"))
        largest = tl.maximum(largest, x)
    tl.store(y_ptr + row, tl.max(largest, axis=0))


KERNELS = {"narrow": narrow_kernel, "wide": wide_kernel}


class ModelNew(nn.Module):
    def forward(self, x):
        rows, columns = x.shape
        y = torch.empty(rows, device=x.device, dtype=x.dtype)
        half = rows // 2
        KERNELS["narrow"][(half,)](x, y, columns, BLOCK=triton.next_power_of_2(columns))
        KERNELS["wide"][(rows - half,)](x[half:], y[half:], columns, BLOCK=128)
        return y
