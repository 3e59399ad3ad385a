"""Sum over the middle dimension, kept as a dimension of size one."""

import torch
import torch.nn as nn

BATCH = 32
ROWS = 2048
COLUMNS = 2048


class Model(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sum(x, dim=1, keepdim=True)


def get_inputs():
    return [torch.randn(BATCH, ROWS, COLUMNS)]


def get_init_inputs():
    return []
