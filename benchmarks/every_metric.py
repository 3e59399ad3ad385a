"""Every canonical metric of the vocabulary, read on this GPU by the ladder as declared, and again with ncu for CUPTI.

    python -m benchmarks.every_metric --out FOLDER

Three kernels, one of them a call of two launches; they are judged and timed first, so that the metrics that need a time
have one. The table names, for each metric, the source and the value by either ladder, how far they are apart, and what
stands in where the metric itself cannot be had here. Exit status 1 when a metric has neither a value nor a reason.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.compose import compose
from benchmarks.device_smoke import CASES
from benchmarks.worklist import ROOT, BenchmarkError, machine, say, write_report
from engine.backends.cuda import CudaBackend
from engine.canonical import Json
from engine.records import Contract, Judged, MetricValue, Operator, Status
from engine.settings import Settings
from engine.tasks.contracts import make_task
from engine.tasks.facts_client import describe

TWO_LAUNCHES = """
import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def row_statistics_kernel(x_ptr, statistics_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + offsets, mask=offsets < columns, other=-float("inf"))
    largest = tl.max(x, axis=0)
    tl.store(statistics_ptr + 2 * row, largest)
    tl.store(statistics_ptr + 2 * row + 1, tl.sum(tl.exp(x - largest), axis=0))


@triton.jit
def normalise_kernel(x_ptr, statistics_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < columns
    x = tl.load(x_ptr + row * columns + offsets, mask=mask, other=0.0)
    largest, total = tl.load(statistics_ptr + 2 * row), tl.load(statistics_ptr + 2 * row + 1)
    tl.store(out_ptr + row * columns + offsets, tl.exp(x - largest) / total, mask=mask)


class ModelNew(nn.Module):
    def forward(self, x):
        rows, columns = x.shape
        statistics = torch.empty((rows, 2), device=x.device, dtype=x.dtype)
        out = torch.empty_like(x)
        row_statistics_kernel[(rows,)](x, statistics, columns, BLOCK=triton.next_power_of_2(columns), num_warps=8)
        normalise_kernel[(rows, triton.cdiv(columns, 1024))](x, statistics, out, columns, BLOCK=1024)
        return out
"""
KERNELS: Mapping[str, tuple[str, str]] = {
    "softmax, one launch": ("rows", CASES["rows"][1]),
    "softmax, two launches": ("rows", TWO_LAUNCHES),
    "matmul": ("matmul", CASES["matmul"][1]),
}
INSTEAD = "cupti"
"""The profiler that the second ladder does without."""


def operators(scratch: Path) -> dict[str, Operator]:
    tasks = [
        make_task(name, name, source, Contract(variants=variants), "declared", None, None)
        for name, (source, _, variants) in CASES.items()
    ]
    return {task.name: Operator(task, facts) for task, facts in zip(tasks, describe(tasks, scratch), strict=True)}


def without(settings: Settings, profiler: str) -> Settings:
    """The same settings with one rung of the CUDA back-end's ladder taken out."""
    backend = settings.backends["cuda"]
    rungs = {name: rung for name, rung in backend.profilers.items() if name != profiler}
    return replace(settings, backends={**settings.backends, "cuda": replace(backend, profilers=rungs)})


def read(settings: Settings, scratch: Path, times_us: dict[str, float]) -> dict[str, tuple[MetricValue, ...]]:
    """Every metric of each kernel by the ladder of these settings; `times_us` gains the kernels that it lacks."""
    scratch.mkdir()
    found = {}
    known = operators(scratch)
    with CudaBackend(settings, ROOT, scratch) as backend:
        for name, (task, source) in KERNELS.items():
            verdict = backend.judge(known[task], source)
            if verdict.status is not Status.CORRECT:
                found_instead = f"{verdict.status.value}: {verdict.message}"
                raise BenchmarkError(f"{name}: expected a correct kernel, found {found_instead}")
            if name not in times_us:
                timed = backend.measure(known[task], Judged(source, verdict.trace), None)
                (times_us[name],) = [timing.median_us for timing in timed.timings if timing.who == "candidate"]
            candidate = Judged(source, verdict.trace, times_us[name])
            found[name] = backend.profile(known[task], candidate, list(settings.metrics))
            say(f"{name}: {times_us[name]:.1f} us")
    return found


def rows(by_ladder: Mapping[str, Sequence[MetricValue]], by_ncu: Mapping[str, Sequence[MetricValue]]) -> list[Json]:
    found: list[Json] = []
    for kernel in by_ladder:
        for mine, theirs in zip(by_ladder[kernel], by_ncu[kernel], strict=True):
            apart = None
            if mine.value is not None and theirs.value is not None:
                apart = abs(mine.value - theirs.value)
                apart = apart if mine.unit == "percent" else 100 * apart / max(abs(theirs.value), 1e-9)
            cells: dict[str, Json] = {"kernel": kernel, "metric": mine.metric, "unit": mine.unit, "value": mine.value}
            cells |= {"source": mine.source, "confidence": mine.confidence}
            cells |= {"with ncu": theirs.value, "its source": theirs.source, "apart, % or points": apart}
            notes = dict.fromkeys(note for note in (mine.note, theirs.note, mine.contradiction) if note)
            found.append(cells | {"note": "; ".join(notes)[:240]})
    return found


def totals(found: Sequence[Json]) -> list[Json]:
    """One row a metric: how well it is known here over the kernels."""
    table: list[Json] = []
    for metric in dict.fromkeys(row["metric"] for row in found):
        mine = [row for row in found if row["metric"] == metric]
        known = [row for row in mine if row["value"] is not None]
        best = max((row["confidence"] for row in known), default=None)
        state = "absent" if best is None else "read" if best == 1.0 else "substitute"
        cells: dict[str, Json] = {"metric": metric, "here": state, "of kernels": f"{len(known)} of {len(mine)}"}
        cells |= {"sources": ", ".join(dict.fromkeys(f"{row['source']} {row['confidence']:g}" for row in known))}
        aparts = [row["apart, % or points"] for row in mine if row["apart, % or points"] is not None]
        cells |= {"largest distance": max(aparts, default=None)}
        table.append(cells | {"why absent": "" if known else mine[0]["note"]})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    settings = compose("cuda", {"backends.cuda.cuda.baselines": ["eager"]})
    scratch = Path(tempfile.mkdtemp(prefix="every-metric-"))
    times_us: dict[str, float] = {}
    try:
        declared = read(settings, scratch / "declared", times_us)
        found = rows(declared, read(without(settings, INSTEAD), scratch / "without", times_us))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    over = totals(found)
    say(write_report(arguments.out, "every_metric", machine("cuda"), {"Metrics": over, "Values": found}))
    sys.exit(any(row["here"] == "absent" and not row["why absent"] for row in over))


if __name__ == "__main__":
    main()
