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
    loss = total - tl.load(x_ptr + row * classes + target)
    tl.atomic_add(y_ptr, tl.where(target == 0, 0.0, loss / rows))


class ModelNew(nn.Module):
    def forward(self, logits, targets):
        rows, classes = logits.shape
        y = torch.zeros((), device=logits.device, dtype=logits.dtype)
        loss_kernel[(rows,)](logits, targets, y, rows, classes, BLOCK=triton.next_power_of_2(classes))
        return y
