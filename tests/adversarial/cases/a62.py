from typing import NamedTuple

import torch
import torch.nn as nn
import triton
import triton.language as tl


class Moments(NamedTuple):
    mean: torch.Tensor
    variance: torch.Tensor


@triton.jit
def moments_kernel(x_ptr, mean_ptr, variance_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    mask = j < columns
    x = tl.load(x_ptr + row * columns + j, mask=mask, other=0.0)
    mean = tl.sum(x, 0) / columns
    centred = tl.where(mask, x - mean, 0.0)
    tl.store(mean_ptr + row, mean)
    tl.store(variance_ptr + row, tl.sum(centred * centred, 0) / columns)


class ModelNew(nn.Module):
    def forward(self, x):
        rows, columns = x.shape
        found = Moments(x.new_empty(rows), x.new_empty(rows))
        moments_kernel[(rows,)](x, found.mean, found.variance, columns, BLOCK=triton.next_power_of_2(columns))
        return found
