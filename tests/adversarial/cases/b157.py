import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def spin_kernel(flag_ptr, y_ptr):
    value = tl.load(flag_ptr, volatile=True)
    while value == 0:
        value = tl.load(flag_ptr, volatile=True)
    tl.store(y_ptr, value)


class ModelNew(nn.Module):
    def forward(self, x):
        y = torch.empty_like(x)
        flag = torch.zeros(1, device=x.device)
        spin_kernel[(1,)](flag, y)
        return y
