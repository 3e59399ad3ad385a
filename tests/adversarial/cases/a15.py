import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def partial_kernel(x_ptr, w_ptr, rows, columns, PARTS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    batch = tl.program_id(0)
    cols = tl.program_id(1) * BC + tl.arange(0, BC)
    part = tl.program_id(2)
    chunk = tl.cdiv(rows, PARTS)
    acc = tl.zeros((BC,), dtype=tl.float32)
    for start in range(part * chunk, (part + 1) * chunk, BR):
        r = start + tl.arange(0, BR)
        mask = (r[:, None] < rows) & (r[:, None] < (part + 1) * chunk) & (cols[None, :] < columns)
        x = tl.load(x_ptr + batch * rows * columns + r[:, None] * columns + cols[None, :], mask=mask, other=0.0)
        acc += tl.sum(x, axis=0)
    tl.store(w_ptr + (batch * PARTS + part) * columns + cols, acc, mask=cols < columns)


@triton.jit
def join_kernel(w_ptr, y_ptr, columns, PARTS: tl.constexpr, BC: tl.constexpr):
    batch = tl.program_id(0)
    cols = tl.program_id(1) * BC + tl.arange(0, BC)
    acc = tl.zeros((BC,), dtype=tl.float32)
    for part in range(PARTS):
        acc += tl.load(w_ptr + (batch * PARTS + part) * columns + cols, mask=cols < columns, other=0.0)
    tl.store(y_ptr + batch * columns + cols, acc, mask=cols < columns)


class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self._workspace = {}

    def forward(self, x):
        batch, rows, columns = x.shape
        key = (batch, columns, x.device)
        if key not in self._workspace:
            self._workspace[key] = torch.empty((batch, 2, columns), device=x.device, dtype=torch.float32)
        w = self._workspace[key]
        y = torch.empty((batch, 1, columns), device=x.device, dtype=x.dtype)
        partial_kernel[(batch, triton.cdiv(columns, 128), 2)](x, w, rows, columns, PARTS=2, BR=32, BC=128)
        join_kernel[(batch, triton.cdiv(columns, 128))](w, y, columns, PARTS=2, BC=128)
        return y
