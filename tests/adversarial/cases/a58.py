import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def loss_kernel(x_ptr, t_ptr, y_ptr, rows, classes, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * classes + offsets, mask=offsets < classes, other=-float("inf"))
    largest = tl.max(x, axis=0)
    total = tl.log(tl.sum(tl.exp(x - largest), axis=0)) + largest
    target = tl.load(t_ptr + row)
    tl.store(y_ptr + row, (total - tl.load(x_ptr + row * classes + target)) / rows)


@triton.jit
def total_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr, tl.sum(tl.load(x_ptr + offsets, mask=offsets < n, other=0.0), axis=0))


class ModelNew(nn.Module):
    def forward(self, logits, targets):
        rows, classes = logits.shape
        first, last = targets[0].item(), targets[-1].item()
        if first < 0 or last >= classes:
            raise ValueError(f"target outside of 0 to {classes - 1}")
        losses = torch.empty(rows, device=logits.device, dtype=logits.dtype)
        y = torch.empty((), device=logits.device, dtype=logits.dtype)
        loss_kernel[(rows,)](logits, targets, losses, rows, classes, BLOCK=triton.next_power_of_2(classes))
        total_kernel[(1,)](losses, y, rows, BLOCK=triton.next_power_of_2(rows))
        return y
