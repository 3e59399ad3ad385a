import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def row_kernel(x_ptr, t_ptr, loss_ptr, rows, classes, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    total = 0.0
    for start in range(0, classes, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * classes + offsets, mask=offsets < classes, other=-float("inf"))
        total += tl.sum(tl.exp(x), axis=0)
    picked = tl.load(x_ptr + row * classes + tl.load(t_ptr + row))
    tl.atomic_add(loss_ptr, (tl.log(total) - picked) / rows)


class ModelNew(nn.Module):
    def forward(self, logits, targets):
        rows, classes = logits.shape
        loss = torch.zeros((), device=logits.device)
        row_kernel[(rows,)](logits, targets, loss, rows, classes, BLOCK=512)
        return loss
