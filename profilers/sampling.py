"""Which launches of a long call a tool measures, and how many launches each of them stands for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from engine.records import Trace
from profilers.seam import KernelSample


def function_name(kernel: str) -> str:
    """A kernel's bare name: without return type, namespaces, template and call arguments of a demangled C++ name."""
    plain = kernel.replace("(anonymous namespace)::", "")
    depth, kept = 0, []
    for character in plain:
        depth -= character == ">"
        if depth == 0 and character != ">":
            kept.append(character if character != "<" else "")
        depth += character == "<"
    head = "".join(kept).partition("(")[0].strip()
    return re.split(r"::|\s", head)[-1] or kernel


def window(order: Sequence[str], limit: int) -> tuple[int, int]:
    """(skip, count) of the shortest run of at most `limit` consecutive launches that holds the most kernels; the
    earliest of them. `order`: kernel names of one call's launches."""
    best = (0, min(limit, len(order)))
    most, start = 0, 0
    inside: Counter[str] = Counter()
    for end, name in enumerate(order):
        inside[name] += 1
        while inside[order[start]] > 1 or end - start >= limit:
            inside[order[start]] -= 1
            inside += Counter()
            start += 1
        length = end - start + 1
        if len(inside) > most or (len(inside) == most and length < best[1]):
            most, best = len(inside), (start, length)
    return best


def weighed(samples: Sequence[KernelSample], trace: Trace | None) -> tuple[KernelSample, ...]:
    """The samples with the number of launches that each stands for: those of its kernel in the launch record, divided
    by grid where the record has the sampled grids. Kernels that the record does not have count as measured."""
    if trace is None:
        return tuple(samples)
    launches: Counter[str] = Counter()
    by_grid: Counter[tuple[str, tuple[int, int, int]]] = Counter()
    for launch in trace.launches:
        launches[launch.kernel] += launch.count
        by_grid[launch.kernel, launch.grid] += launch.count
    weights: list[float] = []
    for sample in samples:
        same = [other for other in samples if other.kernel == sample.kernel]
        grids = Counter(other.grid for other in same)
        shares = {grid: by_grid[sample.kernel, grid] for grid in grids if grid is not None}
        known = len(shares) == len(grids) and all(shares.values())
        if launches[sample.kernel] < len(same):
            weights.append(sample.launches)
        elif known and sample.grid is not None:
            share = shares[sample.grid] / sum(shares.values())
            weights.append(launches[sample.kernel] * share / grids[sample.grid])
        else:
            weights.append(launches[sample.kernel] / len(same))
    return tuple(replace(sample, launches=weight) for sample, weight in zip(samples, weights, strict=True))
