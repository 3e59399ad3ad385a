import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def rms_kernel(x_ptr, w_ptr, y_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < columns
    x = tl.load(x_ptr + row * columns + offsets, mask=mask, other=0.0)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / columns)
    tl.store(y_ptr + row * columns + offsets, x * scale * tl.load(w_ptr + offsets, mask=mask), mask=mask)


class ModelNew(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x):
        y = torch.empty_like(x)
        columns = x.shape[-1]
        rms_kernel[(x.shape[0],)](x, self.weight, y, columns, BLOCK=triton.next_power_of_2(columns))
        return y
