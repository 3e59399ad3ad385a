import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def cumsum_kernel(x_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < columns
    x = tl.load(x_ptr + row * columns + offsets, mask=mask, other=0)
    tl.store(y_ptr + row * columns + offsets, tl.cumsum(x, axis=0).to(tl.int64), mask=mask)


class ModelNew(nn.Module):
    def forward(self, x):
        rows, columns = x.shape
        y = torch.empty((rows, columns), device=x.device, dtype=torch.int64)
        cumsum_kernel[(rows,)](x, y, columns, BLOCK=triton.next_power_of_2(columns))
        return y
