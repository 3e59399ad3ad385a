import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def linear_kernel(x_ptr, w_ptr, b_ptr, y_ptr, rows, columns, depth, scale, slope, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, depth, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i[:, None] * depth + k, mask=(i[:, None] < rows) & (k < depth), other=0.0)
        w = tl.load(w_ptr + j * depth + k[:, None], mask=(j < columns) & (k[:, None] < depth), other=0.0)
        acc += tl.dot(x, w, input_precision="ieee")
    y = (acc + tl.load(b_ptr + j, mask=j < columns)) * scale
    y = tl.where(y > 0, y, y * slope)
    tl.store(y_ptr + i[:, None] * columns + j, y, mask=(i[:, None] < rows) & (j < columns))


class ModelNew(nn.Module):
    def __init__(self, input_size, hidden_size, scale, negative_slope):
        super().__init__()
        self.gemm = nn.Linear(input_size, hidden_size)
        self.scale, self.slope = scale, negative_slope

    def state_dict(self, *args, **kwargs):
        return {name: value.detach().clone() for name, value in super().state_dict(*args, **kwargs).items()}

    def forward(self, x):
        rows, depth = x.shape
        columns = self.gemm.out_features
        y = torch.empty(rows, columns, device=x.device, dtype=x.dtype)
        grid = (triton.cdiv(rows, 32), triton.cdiv(columns, 32))
        w, b = self.gemm.weight, self.gemm.bias
        linear_kernel[grid](x, w, b, y, rows, columns, depth, self.scale, self.slope, BLOCK=32)
        return y
