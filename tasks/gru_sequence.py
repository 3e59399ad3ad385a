"""A one-layer GRU that returns the hidden state of every timestep, batch first."""

import torch
import torch.nn as nn

BATCH = 32
SEQ = 512
INPUT = 128
HIDDEN = 256


class Model(nn.Module):
    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.gru = nn.GRU(input_size, hidden_size, batch_first=True)

    def forward(self, x: torch.Tensor, h0: torch.Tensor) -> torch.Tensor:
        output, _ = self.gru(x, h0)
        return output


def get_inputs():
    return [torch.randn(BATCH, SEQ, INPUT), torch.randn(1, BATCH, HIDDEN)]


def get_init_inputs():
    return [INPUT, HIDDEN]
