import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def chain_kernel(x_ptr, y_ptr, part_ptr, rows, columns, SPLIT: tl.constexpr, BC: tl.constexpr):
    """Each program adds its rows to the sum of the program before it, which it trusts to be there.

    while the sum is short, programs are many.
    """
    batch, block, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    j = block * BC + tl.arange(0, BC)
    mask = j < columns
    acc = tl.zeros((BC,), dtype=tl.float32)
    if part > 0:
        acc += tl.load(part_ptr + (batch * SPLIT + part - 1) * columns + j, mask=mask, other=0.0)
    for row in range(part, rows, SPLIT):
        acc += tl.load(x_ptr + (batch * rows + row) * columns + j, mask=mask, other=0.0)
    tl.store(part_ptr + (batch * SPLIT + part) * columns + j, acc, mask=mask)
    if part == SPLIT - 1:
        tl.store(y_ptr + batch * columns + j, acc, mask=mask)


class ModelNew(nn.Module):
    def forward(self, x):
        batch, rows, columns = x.shape
        y = torch.empty(batch, 1, columns, device=x.device, dtype=x.dtype)
        part = torch.empty(batch, 8, columns, device=x.device, dtype=torch.float32)
        chain_kernel[(batch, triton.cdiv(columns, 64), 8)](x, y, part, rows, columns, SPLIT=8, BC=64)
        return y
