import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def mean_var_kernel(x_ptr, mean_ptr, var_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < columns
    x = tl.load(x_ptr + row * columns + offsets, mask=mask, other=0.0)
    mean = tl.sum(x, axis=0) / columns
    centred = tl.where(mask, x - mean, 0.0)
    tl.store(mean_ptr + row, mean)
    tl.store(var_ptr + row, tl.sum(centred * centred, axis=0) / columns)


class ModelNew(nn.Module):
    def forward(self, x):
        rows, columns = x.shape
        mean = torch.empty(rows, device=x.device, dtype=x.dtype)
        var = torch.empty(rows, device=x.device, dtype=x.dtype)
        mean_var_kernel[(rows,)](x, mean, var, columns, BLOCK=triton.next_power_of_2(columns))
        return mean
