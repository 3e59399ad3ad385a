"""Twenty small operators with scripted replies, three speeds of kernel each, for benchmarks of whole sweeps.

Four kinds of operator in five sizes; every reply is a correct kernel and differs in the passes that it makes over
memory before the real one, so that stages gain, lose and tie, and every swept rule is met on both sides of its
threshold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SIZES = (512, 1024, 2048, 3072, 4096)

FLAT = """import torch
import torch.nn as nn

N = {size}


class Model(nn.Module):
    def forward(self, x):
        return {expression}


def get_inputs():
    return [torch.randn(N, N)]


def get_init_inputs():
    return []
"""

PRODUCT = """import torch
import torch.nn as nn

N = {size}


class Model(nn.Module):
    def forward(self, a, b):
        return {expression}


def get_inputs():
    return [torch.randn(N, N), torch.randn(N, N)]


def get_init_inputs():
    return []
"""

CONTRACT = """dtype: float32
tolerance: default
suites: [nominal, signed]
variants:
  small: {N: 32}
  odd: {N: 37}
"""

HEAD = """```python
import torch
import torch.nn as nn
import triton
import triton.language as tl

# fake: us={us}


@triton.jit
def copy_kernel(x_ptr, out_ptr, total, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=at < total, other=0.0), mask=at < total)

"""

FLAT_KERNEL = (
    HEAD
    + """
@triton.jit
def flat_kernel(x_ptr, out_ptr, total, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < total, other=0.0)
    tl.store(out_ptr + at, {body}, mask=at < total)


class ModelNew(nn.Module):
    def forward(self, x):
        x = x.contiguous()
        out = torch.empty_like(x)
        total = x.numel()
        grid = (triton.cdiv(total, {block}),)
        for _ in range({passes}):
            copy_kernel[grid](x, out, total, BLOCK={block})
        flat_kernel[grid](x, out, total, BLOCK={block})
        return out
```
"""
)

PRODUCT_KERNEL = (
    HEAD
    + """
@triton.jit
def product_kernel(a_ptr, b_ptr, out_ptr, n, BLOCK: tl.constexpr):
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for k in range(0, n, BLOCK):
        ks = k + tl.arange(0, BLOCK)
        a = tl.load(a_ptr + rows[:, None] * n + ks[None, :], mask=(rows[:, None] < n) & (ks[None, :] < n), other=0.0)
        b = tl.load(b_ptr + ks[:, None] * n + cols[None, :], mask=(ks[:, None] < n) & (cols[None, :] < n), other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    inside = (rows[:, None] < n) & (cols[None, :] < n)
    tl.store(out_ptr + rows[:, None] * n + cols[None, :], {body}, mask=inside)


class ModelNew(nn.Module):
    def forward(self, a, b):
        a, b = a.contiguous(), b.contiguous()
        n = a.shape[0]
        out = torch.empty_like(a)
        for _ in range({passes}):
            copy_kernel[(triton.cdiv(n * n, 1024),)](a, out, n * n, BLOCK=1024)
        product_kernel[(triton.cdiv(n, {block}), triton.cdiv(n, {block}))](a, b, out, n, BLOCK={block})
        return out
```
"""
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of operator: its file, its kernel, and for each slot (a glob below the task) block and extra passes."""

    name: str
    task: str
    expression: str
    kernel: str
    body: str
    replies: tuple[tuple[str, int, int], ...]


KINDS = (
    # memory_intensive: fast_enough leaves staging out above thresholds.staging_speedup.
    Kind("chain", FLAT, "torch.sigmoid(x) * 2.0 + x", FLAT_KERNEL, "2.0 / (1.0 + tl.exp(-x)) + x",
         (("seed/seed.*", 256, 3), ("vectorise/optimise.*", 512, 1), ("staging/optimise.*", 1024, 0),
          ("single_pass/optimise.*", 2048, 0))),
    # compute_intensive: fast_enough leaves swizzle out above thresholds.swizzle_speedup.
    Kind("product", PRODUCT, "torch.matmul(a, b)", PRODUCT_KERNEL, "acc",
         (("seed/seed.*", 16, 40), ("tiling/optimise.*", 16, 12), ("block_sizes/optimise.*", 32, 3),
          ("swizzle/optimise.*", 32, 0))),
    # fusion_compute: poor_matmul ends the plan below thresholds.poor_matmul_speedup.
    Kind("fused", PRODUCT, "torch.relu(torch.matmul(a, b)) * 0.5", PRODUCT_KERNEL, "tl.maximum(acc, 0.0) * 0.5",
         (("seed/seed.*", 16, 60), ("primary_matmul/optimise.*", 16, 20), ("fuse_elementwise/optimise.*", 32, 2))),
    # memory_intensive, element-wise alone: staging is left out by facts whatever the thresholds.
    Kind("single", FLAT, "torch.relu(x)", FLAT_KERNEL, "tl.maximum(x, 0.0)",
         (("seed/seed.*", 256, 2), ("vectorise/optimise.*", 1024, 0))),
)  # fmt: skip


def write_tasks(folder: Path, count: int = 20, sizes: Sequence[int] = SIZES) -> None:
    """`count` tasks with contracts below `folder`/tasks, every kind in the first size before the second, and
    `folder`/script.json with their replies."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    script: list[dict[str, object]] = [{"slot": "*/strategy.*", "text": "{}"}]
    for number in range(count):
        kind, size = KINDS[number % len(KINDS)], sizes[number // len(KINDS) % len(sizes)]
        name = f"{kind.name}_{size}"
        tasks.joinpath(f"{name}.py").write_text(kind.task.format(size=size, expression=kind.expression))
        tasks.joinpath(f"{name}.yaml").write_text(CONTRACT)
        script += [_reply(name, kind, slot, block, passes) for slot, block, passes in kind.replies]
    folder.joinpath("script.json").write_text(json.dumps(script, indent=1))


def _reply(name: str, kind: Kind, slot: str, block: int, passes: int) -> dict[str, object]:
    # The comment with a time is for the fake device of the tests; a judge never reads it.
    text = kind.kernel.format(body=kind.body, block=block, passes=passes, us=60 * (1 + passes))
    usage = {"input_tokens": 5000, "output_tokens": 700, "cost_usd": 0.01}
    return {"slot": f"{name}/*/{slot}", "text": text, "usage": usage}


def overrides(folder: Path, results: Path, *, replay: bool, backend: str = "cpu") -> Sequence[str]:
    """What an engine's command line needs to run the tasks of `folder`: with the script, whose replies are recorded, or
    with those recordings, which are found by slot."""
    recordings = folder / "recordings"
    scripted = ("llm=scripted", f"llm.script={folder / 'script.json'}", f"llm.record={recordings}")
    return (
        f"backend={backend}",
        *(("llm=replay", f"llm.recordings={recordings}") if replay else scripted),
        "task=path",
        f"task.path={folder / 'tasks'}",
        f"paths.results={results}",
        "search.seeds=1",
        "search.seed_repairs=0",
        "search.audit.share=0",
        "display.mode=none",
    )
