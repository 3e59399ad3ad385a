import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def mean_var_kernel(x_ptr, mean_ptr, var_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    first = tl.load(x_ptr + row * columns)
    total = 0.0
    squares = 0.0
    for start in range(0, columns, BLOCK):
        mask = start + offsets < columns
        x = tl.where(mask, tl.load(x_ptr + row * columns + start + offsets, mask=mask, other=0.0) - first * 0.5, 0.0)
        total += tl.sum(x, axis=0)
        squares += tl.sum(x * x, axis=0)
    mean = total / columns
    tl.store(mean_ptr + row, mean + first * 0.5)
    tl.store(var_ptr + row, squares / columns - mean * mean)


class ModelNew(nn.Module):
    def forward(self, x):
        rows, columns = x.shape
        mean = torch.empty(rows, device=x.device, dtype=x.dtype)
        var = torch.empty(rows, device=x.device, dtype=x.dtype)
        mean_var_kernel[(rows,)](x, mean, var, columns, BLOCK=128)
        return mean, var
