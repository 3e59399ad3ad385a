import torch
import torch.nn as nn
import triton
import triton.language as tl
import functools


@triton.jit
def gemm_kernel(x_ptr, w_ptr, b_ptr, y_ptr, M, N, K, scale, slope, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for k in range(0, K, BK):
        rk = k + tl.arange(0, BK)
        x = tl.load(x_ptr + rm[:, None] * K + rk[None, :], mask=(rm[:, None] < M) & (rk[None, :] < K), other=0.0)
        w = tl.load(w_ptr + rn[None, :] * K + rk[:, None], mask=(rn[None, :] < N) & (rk[:, None] < K), other=0.0)
        acc += tl.dot(x, w, input_precision="ieee")
    acc = (acc + tl.load(b_ptr + rn, mask=rn < N, other=0.0)[None, :]) * scale
    acc = tl.where(acc > 0, acc, acc * slope)
    tl.store(y_ptr + rm[:, None] * N + rn[None, :], acc, mask=(rm[:, None] < M) & (rn[None, :] < N))


@functools.lru_cache(maxsize=8)
def packed(weight):
    return weight.detach().clone()


class ModelNew(nn.Module):
    def __init__(self, input_size, hidden_size, scale, negative_slope):
        super().__init__()
        self.gemm = nn.Linear(input_size, hidden_size)
        self.scale = scale
        self.negative_slope = negative_slope

    def forward(self, x):
        M, K = x.shape
        N = self.gemm.weight.shape[0]
        y = torch.empty((M, N), device=x.device, dtype=x.dtype)
        grid = (triton.cdiv(M, 32), triton.cdiv(N, 32))
        gemm_kernel[grid](x, packed(self.gemm.weight), self.gemm.bias, y, M, N, K, self.scale, self.negative_slope, BM=32, BN=32, BK=32)
        return y
