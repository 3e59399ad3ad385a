"""silu(a) * b in bfloat16."""

import torch
import torch.nn as nn
import torch.nn.functional as F

ROWS = 8192
COLUMNS = 8192


class Model(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.silu(a) * b


def get_inputs():
    return [torch.randn(ROWS, COLUMNS, dtype=torch.bfloat16), torch.randn(ROWS, COLUMNS, dtype=torch.bfloat16)]


def get_init_inputs():
    return []
