import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def rms_norm_kernel(x_ptr, w_ptr, y_ptr, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < columns
    x = tl.load(x_ptr + row * columns + offsets, mask=mask, other=0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / columns + eps)
    w = tl.load(w_ptr + offsets, mask=mask)
    tl.store(y_ptr + row * columns + offsets, x * scale * w, mask=mask)


torch.backends.cuda.matmul.allow_tf32 = False


class ModelNew(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.eps = 1e-6

    @torch.no_grad()
    def forward(self, x):
        weight = getattr(self, "weight")
        y = torch.empty_like(x)
        columns = x.shape[-1]

        def launch(rows):
            rms_norm_kernel[(rows,)](x, weight, y, columns, self.eps, BLOCK=triton.next_power_of_2(columns))

        launch(x.shape[0])
        return y
