import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def gelu_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
    tl.store(y_ptr + offsets, 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476)), mask=mask)


class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self.graphs = {}

    def run(self, x, y):
        n = x.numel()
        gelu_kernel[(triton.cdiv(n, 1024),)](x, y, n, BLOCK=1024)

    def forward(self, x):
        key = tuple(x.shape)
        if key not in self.graphs:
            x_static = torch.empty_like(x)
            y_static = torch.empty_like(x)
            x_static.copy_(x)
            self.run(x_static, y_static)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.run(x_static, y_static)
            self.graphs[key] = (graph, x_static, y_static)
        graph, x_static, y_static = self.graphs[key]
        x_static.copy_(x)
        graph.replay()
        return y_static.clone()
