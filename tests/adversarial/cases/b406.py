import torch
import torch.nn as nn
import torch.nn.functional as F
import triton
import triton.language as tl


@triton.jit
def stats_kernel(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    mask = j < columns
    x = tl.load(x_ptr + row * columns + j, mask=mask, other=0.0)
    mean = tl.sum(x, 0) / columns
    d = tl.where(mask, x - mean, 0.0)
    tl.store(out_ptr + 2 * row, mean)
    tl.store(out_ptr + 2 * row + 1, tl.sum(d * d, 0) / columns)


class ModelNew(nn.Module):
    """Both outputs are columns of one matrix."""

    def forward(self, x):
        out = torch.empty(x.shape[0], 2, device=x.device, dtype=x.dtype)
        stats_kernel[(x.shape[0],)](x, out, x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))
        return out[:, 0], out[:, 1]
