"""leaky_relu((x W^T + b) * scale)."""

import torch
import torch.nn as nn
import torch.nn.functional as F

BATCH = 1024
INPUT = 4096
HIDDEN = 4096


class Model(nn.Module):
    def __init__(self, input_size: int, hidden_size: int, scale: float, negative_slope: float):
        super().__init__()
        self.gemm = nn.Linear(input_size, hidden_size)
        self.scale = scale
        self.negative_slope = negative_slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.gemm(x) * self.scale, self.negative_slope)


def get_inputs():
    return [torch.randn(BATCH, INPUT)]


def get_init_inputs():
    return [INPUT, HIDDEN, 2.0, 0.1]
