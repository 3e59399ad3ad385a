"""First thing to run on a new GPU machine: judge, measure and profile two small operators, and print how long it took.

    python -m benchmarks.device_smoke [--out FOLDER] [--skip judge|measure|profile ...]

Each step reports on its own, so that one fault does not hide the next. Exit status 1 when any step failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.compose import compose
from engine.backends.cuda import CudaBackend
from engine.canonical import Json
from engine.codec import encode
from engine.records import Contract, Judged, Operator
from engine.tasks.contracts import make_task
from engine.tasks.facts_client import describe

ROOT = Path(__file__).resolve().parents[1]

ROWS_TASK = """
import torch
import torch.nn as nn

ROWS = 8192
COLUMNS = 8192


class Model(nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, x):
        return torch.softmax(x, dim=1)


def get_inputs():
    return [torch.randn(ROWS, COLUMNS)]


def get_init_inputs():
    return []
"""

ROWS_KERNEL = """
import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def row_softmax_kernel(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    mask = offsets < columns
    x = tl.load(x_ptr + row * columns + offsets, mask=mask, other=-float("inf"))
    e = tl.exp(x - tl.max(x, axis=0))
    tl.store(out_ptr + row * columns + offsets, e / tl.sum(e, axis=0), mask=mask)


class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, x):
        out = torch.empty_like(x)
        rows, columns = x.shape
        row_softmax_kernel[(rows,)](x, out, columns, BLOCK=triton.next_power_of_2(columns), num_warps=8)
        return out
"""

MATMUL_TASK = """
import torch
import torch.nn as nn

M = 1024
N = 1024
K = 1024


class Model(nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, a, b):
        return torch.matmul(a, b)


def get_inputs():
    return [torch.rand(M, K), torch.rand(K, N)]


def get_init_inputs():
    return []
"""

MATMUL_KERNEL = """
import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def matmul_kernel(a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        k = start + inner
        a = tl.load(a_ptr + rows[:, None] * K + k[None, :], mask=(rows[:, None] < M) & (k[None, :] < K), other=0.0)
        inside = (k[:, None] < K) & (columns[None, :] < N)
        b = tl.load(b_ptr + k[:, None] * N + columns[None, :], mask=inside, other=0.0)
        total += tl.dot(a, b, input_precision="ieee")
    tl.store(c_ptr + rows[:, None] * N + columns[None, :], total, mask=(rows[:, None] < M) & (columns[None, :] < N))


class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, a, b):
        m, k = a.shape
        n = b.shape[1]
        c = torch.empty((m, n), device=a.device, dtype=a.dtype)
        grid = (triton.cdiv(m, 64), triton.cdiv(n, 64))
        matmul_kernel[grid](a, b, c, m, n, k, BM=64, BN=64, BK=32)
        return c
"""

CASES = {
    "rows": (ROWS_TASK, ROWS_KERNEL, {"small": {"ROWS": 64, "COLUMNS": 64}, "odd": {"ROWS": 33, "COLUMNS": 77}}),
    "matmul": (
        MATMUL_TASK,
        MATMUL_KERNEL,
        {"small": {"M": 64, "N": 64, "K": 64}, "odd": {"M": 33, "N": 47, "K": 65}},
    ),
}
BROKEN = {
    "wrong values": ("rows", ROWS_KERNEL.replace("tl.sum(e, axis=0)", "(tl.sum(e, axis=0) * 1.01)"), "rejected"),
    "does not compile": ("rows", ROWS_KERNEL.replace("tl.exp(", "tl.no_such_function("), "failed"),
    "tf32 under ieee": (
        "matmul",
        MATMUL_KERNEL.replace('input_precision="ieee"', 'input_precision="tf32"'),
        "rejected",
    ),
}


class Report:
    """Prints each step with its time and keeps everything for a file."""

    def __init__(self) -> None:
        self.steps: dict[str, Json] = {}
        self.failed = 0

    def step(self, name: str, work: Callable[[], Json]) -> None:
        started = time.monotonic()
        try:
            outcome = work()
        except Exception:  # noqa: BLE001 - a smoke test reports every fault it can reach
            self.failed += 1
            outcome = {"failed": traceback.format_exc()[-3000:]}
        seconds = round(time.monotonic() - started, 2)
        self.steps[name] = {"seconds": seconds, "outcome": outcome}
        sys.stdout.write(f"--- {name} ({seconds} s)\n{_text(outcome)}\n")
        sys.stdout.flush()


def _text(outcome: Json) -> str:
    if isinstance(outcome, dict) and "failed" in outcome:
        return "FAILED\n" + str(outcome["failed"])
    return json.dumps(outcome, indent=1)[:2500]


def _operators(scratch: Path) -> dict[str, Operator]:
    tasks = [
        make_task(name, name, source, Contract(variants=variants), "declared", None, None)
        for name, (source, _, variants) in CASES.items()
    ]
    return {task.name: Operator(task, facts) for task, facts in zip(tasks, describe(tasks, scratch), strict=True)}


def run(report: Report, scratch: Path, skip: frozenset[str]) -> None:
    settings = compose("cuda", {"judge.sandbox": "best_effort"})
    operators = _operators(scratch)
    wanted = sorted(settings.metrics)
    with CudaBackend(settings, ROOT, scratch) as backend:
        report.step("device", lambda: encode(backend.device))
        for name, (_, kernel, _) in CASES.items():
            operator = operators[name]
            if "judge" not in skip:
                report.step(f"judge {name}", partial(_judged, backend, operator, kernel, "correct"))
            if "measure" not in skip:
                report.step(f"measure {name}", partial(_measured, backend, operator, kernel, None))
                report.step(f"measure {name} A/A", partial(_measured, backend, operator, kernel, Judged(kernel, None)))
            if "profile" not in skip:
                report.step(f"profile {name}", partial(_metrics, backend, operator, kernel, wanted))
                report.step(f"profile {name} eager", partial(_metrics, backend, operator, None, wanted))
        if "judge" not in skip:
            for label, (name, kernel, status) in BROKEN.items():
                report.step(label, partial(_judged, backend, operators[name], kernel, status))


def _judged(backend: CudaBackend, operator: Operator, kernel: str, status: str) -> Json:
    return _expect(backend.judge(operator, kernel), status)


def _measured(backend: CudaBackend, operator: Operator, kernel: str, incumbent: Judged | None) -> Json:
    return encode(backend.measure(operator, Judged(kernel, None), incumbent))


def _expect(verdict: Json, status: str) -> Json:
    found = encode(verdict)
    found["checks"] = found["checks"][-2:]
    if found["status"] != status:
        raise AssertionError(f"expected {status}, got {json.dumps(found, indent=1)}")
    return found


def _metrics(backend: CudaBackend, operator: Operator, source: str | None, wanted: list[str]) -> Json:
    candidate = None if source is None else Judged(source, backend.judge(operator, source).trace)
    values = backend.profile(operator, candidate, wanted)
    return {v.metric: f"{v.value} {v.unit} [{v.source} {v.confidence:g}] {v.note[:160]}" for v in values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--skip", nargs="*", default=[], choices=["judge", "measure", "profile"])
    arguments = parser.parse_args()
    report = Report()
    scratch = Path(tempfile.mkdtemp(prefix="device-smoke-"))
    report.step("everything", lambda: run(report, scratch, frozenset(arguments.skip)))
    for log in sorted(scratch.rglob("*.log")) + sorted(scratch.rglob("log.txt")):
        text = log.read_text(errors="replace")[-1500:]
        if text.strip():
            sys.stdout.write(f"--- {log.relative_to(scratch)}\n{text}\n")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "device_smoke.json").write_text(json.dumps(report.steps, indent=1))
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
