import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def attention_kernel(q_ptr, k_ptr, v_ptr, y_ptr, length, scale, DIM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    head = tl.program_id(1)
    dims = tl.arange(0, DIM)
    keys = tl.arange(0, BLOCK)
    base = head * length * DIM
    q = tl.load(q_ptr + base + row * DIM + dims)
    near = (keys < length) & (keys > row - 50) & (keys < row + 50)
    k = tl.load(k_ptr + base + keys[:, None] * DIM + dims, mask=near[:, None], other=0.0)
    scores = tl.where(near, tl.sum(k * q[None, :], axis=1) * scale, -float("inf"))
    p = tl.exp(scores - tl.max(scores, axis=0))
    v = tl.load(v_ptr + base + keys[:, None] * DIM + dims, mask=near[:, None], other=0.0)
    tl.store(y_ptr + base + row * DIM + dims, tl.sum(p[:, None] * v, axis=0) / tl.sum(p, axis=0))


class ModelNew(nn.Module):
    def forward(self, q, k, v):
        batch, heads, length, dim = q.shape
        y = torch.empty_like(q)
        block = triton.next_power_of_2(length)
        attention_kernel[(length, batch * heads)](q, k, v, y, length, dim**-0.5, DIM=dim, BLOCK=block)
        return y
