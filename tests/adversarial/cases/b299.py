import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def sum_kernel(x_ptr, w_ptr, y_ptr, rows, columns, BLOCK: tl.constexpr):
    batch, row = tl.program_id(1), tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < columns
    x = tl.load(x_ptr + (batch * rows + row) * columns + offsets, mask=mask, other=0.0)
    before = tl.load(w_ptr + (batch * rows + row - 1) * columns + offsets, mask=mask & (row > 0), other=0.0)
    tl.store(w_ptr + (batch * rows + row) * columns + offsets, before + x, mask=mask)
    tl.store(y_ptr + batch * columns + offsets, before + x, mask=mask & (row == rows - 1))


class ModelNew(nn.Module):
    def forward(self, x):
        batch, rows, columns = x.shape
        w = torch.empty_like(x)
        y = torch.empty((batch, 1, columns), device=x.device, dtype=x.dtype)
        sum_kernel[(rows, batch)](x, w, y, rows, columns, BLOCK=triton.next_power_of_2(columns))
        return y
