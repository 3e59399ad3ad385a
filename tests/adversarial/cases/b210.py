import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def sum_kernel(x_ptr, w_ptr, y_ptr, rows, columns, parts, BR: tl.constexpr, BC: tl.constexpr):
    batch = tl.program_id(0)
    part = tl.program_id(2)
    cols = tl.program_id(1) * BC + tl.arange(0, BC)
    r = part * BR + tl.arange(0, BR)
    mask = (r[:, None] < rows) & (cols[None, :] < columns)
    x = tl.load(x_ptr + batch * rows * columns + r[:, None] * columns + cols[None, :], mask=mask, other=0.0)
    tl.store(w_ptr + (batch * parts + part) * columns + cols, tl.sum(x, axis=0), mask=cols < columns)
    if part == parts - 1:
        acc = tl.zeros((BC,), dtype=tl.float32)
        for other in range(0, parts):
            acc += tl.load(w_ptr + (batch * parts + other) * columns + cols, mask=cols < columns, other=0.0)
        tl.store(y_ptr + batch * columns + cols, acc, mask=cols < columns)


class ModelNew(nn.Module):
    def forward(self, x):
        batch, rows, columns = x.shape
        parts = triton.cdiv(rows, 32)
        w = torch.empty((batch, parts, columns), device=x.device, dtype=x.dtype)
        y = torch.empty((batch, 1, columns), device=x.device, dtype=x.dtype)
        sum_kernel[(batch, triton.cdiv(columns, 128), parts)](x, w, y, rows, columns, parts, BR=32, BC=128)
        return y
