"""C[i] = A[i] B[i] for a batch of square matrices."""

import torch
import torch.nn as nn

BATCH = 64
N = 512


class Model(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.bmm(a, b)


def get_inputs():
    return [torch.randn(BATCH, N, N), torch.randn(BATCH, N, N)]


def get_init_inputs():
    return []
