"""Measures what a GPU's memory and matrix units reach: copies, reads, and products of each dtype. Needs a device.

Each figure is the median of `REPEATS` samples between two CUDA events, less an empty pair, after warm-up, at the best
of several sizes; operands are drawn at random, because zeros draw less power and run at a higher clock.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.backends.ceilings import COPY, READ, VERSION, Ceilings, Rate, best, rate_of
from engine.judging.gpu_state import Gpu, SmClock, lease, lock_path

REPEATS = 25
WARM_UP = 3
SAMPLE_US = 1000.0
"""A sample repeats the work until it takes this long, so that events and launches do not count."""

COPY_MIB = (512, 1024, 2048, 4096)
"""All of them many times the L2."""

SQUARES = (4096, 8192, 12288)
SQUARES_FP64 = (2048, 4096, 8192)
Work = Callable[[], object]


@dataclass(slots=True)
class Bench:
    """Repeats pieces of work on one device and notes the SM clock meanwhile."""

    clock: SmClock
    clocks: list[float] = field(default_factory=list)
    empty_us: float = 0.0

    def calibrate(self) -> None:
        self.empty_us = statistics.median(self._sample(lambda: None, 0) for _ in range(100))

    def times(self, work: Work) -> list[float]:
        """µs of one piece of work, `REPEATS` samples."""
        for _ in range(WARM_UP):
            work()
        torch.cuda.synchronize()
        once = max(self._sample(work, 1), 1.0)
        count = max(1, round(SAMPLE_US / once))
        self._sample(work, count)
        found = []
        for _ in range(REPEATS):
            found.append((self._sample(work, count) - self.empty_us) / count)
            clock = self.clock()
            self.clocks += [] if clock is None else [clock]
        return found

    @staticmethod
    def _sample(work: Work, count: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(count):
            work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3


def measure_ceilings(gpu: Gpu) -> Ceilings:
    """Every rate that this device and torch have, under the GPU's lease."""
    device = torch.device("cuda", gpu.ordinal)
    bench = Bench(SmClock(gpu.uuid))
    rates: dict[str, Rate] = {}
    absent: dict[str, str] = {}
    with lease(lock_path(gpu.uuid)), torch.cuda.device(device), torch.inference_mode(), _arithmetic():
        torch.manual_seed(0)
        bench.calibrate()
        for name, measured in (*_memory(bench), *_products(bench)):
            if isinstance(measured, str):
                absent[name] = measured
            else:
                rates[name] = measured
    torch.cuda.empty_cache()
    return Ceilings(
        v=VERSION,
        gpu=gpu.name,
        uuid=gpu.uuid,
        driver=gpu.driver,
        torch=str(torch.__version__),
        triton=importlib.metadata.version("triton"),
        cuda=str(torch.version.cuda),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        clock_mhz=(min(bench.clocks), max(bench.clocks)) if bench.clocks else (),
        throttle=bench.clock.throttle(),
        rates=rates,
        absent=absent,
    )


@contextmanager
def _arithmetic() -> Iterator[None]:
    """Put back which arithmetic fp32 products may use."""
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _memory(bench: Bench) -> Iterator[tuple[str, Rate | str]]:
    yield COPY, _best_of(bench, COPY_MIB, _copy)
    yield READ, _best_of(bench, COPY_MIB, _read)


Prepared = tuple[Work, float, str]
"""What to repeat, its bytes over 1e3 or operations over 1e6 (GB/s and TFLOP/s are these over µs), and its size."""


def _best_of(bench: Bench, sizes: tuple[int, ...], prepare: Callable[[int], Prepared]) -> Rate | str:
    """The best size's rate, or why this device has none."""
    tried: list[Rate] = []
    refused = ""
    for size in sizes:
        try:
            work, amount, told = prepare(size)
            tried.append(rate_of(amount, bench.times(work), told))
        except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
            # A dtype, a shape or an amount of memory that this torch or device does not have; others may.
            refused = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"
            torch.cuda.empty_cache()
    return best(tried) or refused


def _copy(mib: int) -> Prepared:
    source = torch.empty(mib << 18, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    return (lambda: target.copy_(source)), 2 * source.nbytes / 1e3, f"{mib} MiB to {mib} MiB"


def _read(mib: int) -> Prepared:
    source = torch.empty(mib << 18, dtype=torch.float32, device="cuda").normal_()
    return (lambda: source.sum()), source.nbytes / 1e3, f"sum of {mib} MiB"


def _products(bench: Bench) -> Iterator[tuple[str, Rate | str]]:
    yield "fp64_tflops", _best_of(bench, SQUARES_FP64, lambda size: _matmul(size, torch.float64, tf32=False))
    yield "fp32_tflops", _best_of(bench, SQUARES, lambda size: _matmul(size, torch.float32, tf32=False))
    yield "tf32_tflops", _best_of(bench, SQUARES, lambda size: _matmul(size, torch.float32, tf32=True))
    yield "fp16_tflops", _best_of(bench, SQUARES, lambda size: _matmul(size, torch.float16, tf32=False))
    yield "bf16_tflops", _best_of(bench, SQUARES, lambda size: _matmul(size, torch.bfloat16, tf32=False))
    yield "fp8_tflops", _best_of(bench, SQUARES, _scaled_fp8)
    yield "int8_tflops", _best_of(bench, SQUARES, _int8)


def _matmul(size: int, dtype: torch.dtype, *, tf32: bool) -> Prepared:
    torch.backends.cuda.matmul.allow_tf32 = tf32
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.float32).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device="cuda", dtype=dtype)
    return (lambda: torch.mm(left, right, out=out)), _operations(size), f"{size} cubed"


def _scaled_fp8(size: int) -> Prepared:
    """torch._scaled_mm takes its second operand by columns and scales in fp32."""
    functions: Any = torch
    left, right = (torch.randn(size, size, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda")

    def work() -> object:
        return functions._scaled_mm(left, right.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    work()
    return work, _operations(size), f"{size} cubed"


def _int8(size: int) -> Prepared:
    functions: Any = torch
    left, right = (torch.randint(-127, 128, (size, size), device="cuda", dtype=torch.int8) for _ in range(2))
    columns = right.t().contiguous().t()
    functions._int_mm(left, columns)
    return (lambda: functions._int_mm(left, columns)), _operations(size), f"{size} cubed"


def _operations(size: int) -> float:
    return 2.0 * size**3 / 1e6
