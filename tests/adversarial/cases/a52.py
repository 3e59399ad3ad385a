from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn as nn
import triton
import triton.language as tl


@dataclass(frozen=True)
class Config:
    block: int
    warps: int = 4


@lru_cache(maxsize=None)
def config_for(columns: int) -> Config:
    return Config(block=triton.next_power_of_2(columns), warps=8 if columns > 4096 else 4)


@triton.jit
def row_softmax(x, DIM: tl.constexpr):
    e = tl.exp(x - tl.max(x, axis=DIM))
    return e / tl.sum(e, axis=DIM)


@triton.jit
def softmax_kernel(x_ptr, y_ptr, rows, columns, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    mask = offsets < columns
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        x = tl.load(x_ptr + row * columns + offsets, mask=mask, other=-float("inf"))
        tl.store(y_ptr + row * columns + offsets, row_softmax(x, 0), mask=mask)


class ModelNew(nn.Module):
    def forward(self, x):
        assert x.is_cuda, "expected a CUDA tensor"
        assert torch.cuda.device_count() >= 1
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
        stream = torch.cuda.current_stream(x.device)
        assert stream is not None
        rows, columns = x.shape
        config = config_for(columns)
        y = torch.empty_like(x)
        grid = (min(rows, 2 * processors),)
        softmax_kernel[grid](x_ptr=x, y_ptr=y, rows=rows, columns=columns, BLOCK=config.block, num_warps=config.warps)
        return y
