import torch
import torch.nn as nn
import triton
import triton.language as tl


def clear(args):
    args["c_ptr"].zero_()


@triton.autotune(
    configs=[triton.Config({"BLOCK": 32, "SPLIT": 2}, num_warps=4, pre_hook=clear)], key=["n"], reset_to_zero=["c_ptr"]
)
@triton.jit
def matmul_kernel(a_ptr, b_ptr, c_ptr, n, BLOCK: tl.constexpr, SPLIT: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(tl.program_id(2) * BLOCK, n, BLOCK * SPLIT):
        inner = start + tl.arange(0, BLOCK)
        a = tl.load(a_ptr + rows[:, None] * n + inner, mask=(rows[:, None] < n) & (inner < n), other=0.0)
        b = tl.load(b_ptr + inner[:, None] * n + columns, mask=(inner[:, None] < n) & (columns < n), other=0.0)
        acc += tl.dot(a, b, input_precision="ieee")
    tl.atomic_add(c_ptr + rows[:, None] * n + columns, acc, mask=(rows[:, None] < n) & (columns < n))


class ModelNew(nn.Module):
    def forward(self, a, b):
        n = a.shape[0]
        c = torch.empty_like(a)
        matmul_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]), triton.cdiv(n, meta["BLOCK"]), meta["SPLIT"])](a, b, c, n)
        return c
