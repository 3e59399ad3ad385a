"""Whether the clock can be believed: a kernel against itself, a known delay, and other clocks.

    python -m benchmarks.judge_aa --out FOLDER [--seconds 300] [--layer stopwatch|fake]

Layer `stopwatch` is the product's own path below `Backend.measure`: `Stopwatch._side` opens each side's launch plan in
an executor of its own, `Stopwatch._exchanged` runs the paired blocks, half of them with executors exchanged; sides stay
open for --reopen trials, and baselines are left out. `fake` draws times from a random generator and so shows what the
statistics do, without a GPU.

A/A: candidate and incumbent are one kernel of about 10 µs or 50 µs, which copies, or 1 ms, which also computes. Delay:
the incumbent is a kernel of that time whose arithmetic loop turns more often; what the turns add comes from CUDA events
around rows of 200 launches with and without them, in another process than the executors. Lines go to
FOLDER/judge_aa.jsonl; what is there is not done again.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compose import compose
from benchmarks.worklist import ROOT, BenchmarkError, Lines, machine, say, spread, write_report
from engine.canonical import Json
from engine.judging import timing
from engine.records import Contract, Precision, ScoreKind, Task
from engine.settings import CudaSettings, Settings
from engine.tasks.contracts import make_task
from profilers.ncu import DURATION, parse

if TYPE_CHECKING:
    from engine.judging.measure import Stopwatch

ELEMENTS = {"10us": 4_000_000, "50us": 25_000_000, "1ms": 25_000_000}
"""Of the copying kernel: 8 bytes each at about 4.2 TB/s, and 2 µs of launch."""

TURNS = {"10us": 0, "50us": 0, "1ms": 1072}
"""Of its arithmetic loop: 1 ms of copying alone would spend a trial on filling gigabytes."""

TARGET_US = {"10us": 10.0, "50us": 50.0, "1ms": 1000.0}
DELAYS = (0.05, 0.25)
"""Shares of the kernel's time."""

LOOP_ELEMENTS = 1 << 20
LONG_TURNS = 1 << 17
ROW_LAUNCHES = 200
FASTER = 1.01
CONTAINED = {"a size": 182 / 200, "all": 0.93}
KERNEL = "turning_kernel"
FAKE_NOISE, FAKE_CALLS = 0.01, 40

REFERENCE = """
import torch
import torch.nn as nn

N = {elements}


class Model(nn.Module):
    def forward(self, x):
        return x * 1.0


def get_inputs():
    return [torch.randn(N)]


def get_init_inputs():
    return []
"""

SOURCE = """
import torch
import torch.nn as nn
import triton
import triton.language as tl

TURNS = {turns}


@triton.jit
def turning_kernel(x_ptr, y_ptr, n, turns, one, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    y = tl.load(x_ptr + offsets, mask=mask)
    for _ in range(turns):
        y = y * one
    tl.store(y_ptr + offsets, y, mask=mask)


class ModelNew(nn.Module):
    def forward(self, x):
        y = torch.empty_like(x)
        n = x.numel()
        turning_kernel[(triton.cdiv(n, 1024),)](x, y, n, TURNS, 1.0, BLOCK=1024)
        return y
"""
"""Multiplies by 1.0, which no compiler knows: the result is the input whatever the number of turns."""

Paired = Callable[[], timing.Paired]


@dataclass(frozen=True, slots=True)
class Pairing:
    """What is compared: a task, and the sources of the candidate and of the incumbent."""

    elements: int
    turns: int
    incumbent_turns: int

    @property
    def task(self) -> Task:
        name = f"copy_{self.elements}"
        return make_task(name, name, REFERENCE.format(elements=self.elements), Contract(), "declared", None, None)

    @property
    def sources(self) -> dict[str, str]:
        turns = {"candidate": self.turns, "incumbent": self.incumbent_turns}
        return {who: SOURCE.format(turns=count) for who, count in turns.items()}


class StopwatchLayer:
    """The product's stopwatch with its executors, in this process."""

    name = "stopwatch: Stopwatch._side (plan replayed by an executor) and Stopwatch._exchanged, sides kept open"

    def __init__(self, settings: Settings, scratch: Path) -> None:
        from engine.codec import decode
        from engine.judging.client import JudgeClient
        from engine.judging.gpu_state import find_gpu, lock_path
        from engine.judging.service import Opening, Service

        gpu = find_gpu(0)
        client = JudgeClient(settings, "cuda", ROOT, scratch, {"CUDA_VISIBLE_DEVICES": gpu.uuid}, gpu.uuid)
        self._service = Service(decode(Opening, client._opening(scratch), "opening of the judge"))
        if self._service.gpu is None:
            raise BenchmarkError("expected a judge with a GPU, got one without")
        self._stopwatch: Stopwatch = self._service.gpu.stopwatch
        # Comparing outputs afterwards is no part of the clock and would take most of a trial.
        setattr(self._stopwatch, "_compared_with", lambda stints: lambda side: None)  # noqa: B010
        self._lock = lock_path(gpu.uuid)

    @contextlib.contextmanager
    def opened(self, pairing: Pairing) -> Iterator[Paired]:
        """Both sides ready; calling what it yields is one trial."""
        from engine.judging.clocked import Notes, Stints

        said = Notes([])
        with contextlib.ExitStack() as stack:
            seats = self._stopwatch._seats(stack, pairing.task, pairing.sources, said)
            sides = {
                who: self._stopwatch._side(stack, who, seat, pairing.task, Precision.IEEE, pairing.sources[who], said)
                for who, seat in seats.items()
            }
            notes = said.said
            if notes or any(side.kind is not ScoreKind.MEASURED for side in sides.values()):
                raise BenchmarkError(f"expected both sides replayed from their plans: {'; '.join(notes)}")
            yield lambda: self._stopwatch._exchanged(sides, Stints(self._lock))

    def close(self) -> None:
        self._service.close()


class FakeLayer:
    """The product's `run_paired` on log-normal times: drift common to both sides, noise of their own."""

    name = "fake: run_paired on drawn times, no GPU"

    def __init__(self, cuda: CudaSettings, seed: int) -> None:
        self._cuda, self._random = cuda, random.Random(seed)

    @contextlib.contextmanager
    def opened(self, pairing: Pairing) -> Iterator[Paired]:
        cuda = self._cuda
        protocol = timing.Protocol(
            cuda.min_blocks, cuda.max_blocks, cuda.block_ms / 2, cuda.ratio_halfwidth, cuda.timing_budget_s
        )
        sides = {
            who: self._sampler(2 + pairing.elements * 1.9e-6 + turns * US_PER_FAKE_TURN)
            for who, turns in (("candidate", pairing.turns), ("incumbent", pairing.incumbent_turns))
        }
        yield lambda: timing.run_paired(sides, protocol, seed=self._random.randrange(1 << 31), now=lambda: 0.0)

    def _sampler(self, median_us: float) -> timing.Sampler:
        def sample(_: float) -> list[float]:
            shift = self._random.gauss(0, FAKE_NOISE / 2)
            return [median_us * math.exp(shift + self._random.gauss(0, FAKE_NOISE)) for _ in range(FAKE_CALLS)]

        return sample

    def close(self) -> None:
        """Nothing is held."""


US_PER_FAKE_TURN = 0.03
Layer = StopwatchLayer | FakeLayer


def trial_row(kind: str, size: str, number: int, opening: int, paired: timing.Paired, wall_s: float) -> dict[str, Json]:
    ratio, mine, other = paired.ratios["incumbent"], paired.medians["candidate"], paired.medians["incumbent"]
    row: dict[str, Json] = {"id": f"{kind}|{size}|{number}", "kind": kind.partition(":")[0], "size": size}
    row |= {"opening": opening, "ratio": ratio.value, "lo": ratio.lo, "hi": ratio.hi, "blocks": ratio.n}
    row |= {"candidate_us": mine.value, "incumbent_us": other.value, "dropped": paired.dropped}
    return row | {"stopped": paired.stopped, "clock_mhz": paired.clock_mhz, "wall_s": wall_s}


class Run:
    """Trials until the deadline; `reopen` of them on one pair of executors."""

    def __init__(self, layer: Layer, lines: Lines, deadline: float, reopen: int) -> None:
        self.layer, self.lines, self.deadline, self.reopen = layer, lines, deadline, reopen

    def over(self) -> bool:
        return time.monotonic() >= self.deadline

    def aa(self, sizes: Sequence[str], trials: int) -> None:
        """Sizes in turn, so that a run that is cut has all of them."""
        for start in range(0, trials, self.reopen):
            for size in sizes:
                numbers = range(start, min(start + self.reopen, trials))
                self._trials("aa", size, numbers, Pairing(ELEMENTS[size], TURNS[size], TURNS[size]), {})

    def delays(self, sizes: Sequence[str], trials: int, us_per_turn: float) -> None:
        """Turns in multiples of 16, which Triton compiles to one kernel; `us_per_turn` chooses how many."""
        for size in sizes:
            turns = 16 * round(TARGET_US[size] / us_per_turn / 16)
            for share in DELAYS:
                more = max(16, 16 * round(share * turns / 16))
                known_us = more * us_per_turn if isinstance(self.layer, FakeLayer) else known_delay(turns, more)
                known = {"share": share, "known_us": known_us, "by_long_launches_us": more * us_per_turn}
                pairing = Pairing(LOOP_ELEMENTS, turns, turns + more)
                for start in range(0, trials, self.reopen):
                    numbers = range(start, min(start + self.reopen, trials))
                    self._trials(f"delay:{share}", size, numbers, pairing, known)

    def _trials(
        self, kind: str, size: str, numbers: Sequence[int], pairing: Pairing, facts: Mapping[str, Json]
    ) -> None:
        left = [number for number in numbers if f"{kind}|{size}|{number}" not in self.lines.done]
        if not left or self.over():
            return
        with self.layer.opened(pairing) as paired:
            for number in left:
                if self.over():
                    return
                started = time.monotonic()
                found = paired()
                row = trial_row(kind, size, number, numbers[0], found, time.monotonic() - started)
                self.lines.add({**row, **facts, "layer": self.layer.name})


def calibrate() -> float:
    """µs of one turn, roughly: from launches of `LONG_TURNS` and twice as many, in turn, by CUDA events."""
    launch, torch = _launcher(LOOP_ELEMENTS)
    differences = [
        _span(torch, lambda: launch(2 * LONG_TURNS)) - _span(torch, lambda: launch(LONG_TURNS)) for _ in range(31)
    ]
    return statistics.median(differences) / LONG_TURNS


def known_delay(turns: int, more: int) -> float:
    """µs that `more` turns add to one launch of `turns`: from graphs of many launches one behind the other, of either
    kind in turn, by CUDA events around the whole graph."""
    launch, torch = _launcher(LOOP_ELEMENTS)
    graphs = []
    for count in (turns, turns + more):
        launch(count)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(ROW_LAUNCHES):
                launch(count)
        graph.replay()
        graphs.append(graph)
    spans = [[_span(torch, graph.replay) for graph in graphs] for _ in range(31)]
    return statistics.median(longer - shorter for shorter, longer in spans) / ROW_LAUNCHES


def _span(torch: Any, work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def _launcher(elements: int) -> tuple[Callable[[int], None], Any]:
    """The kernel as a plain Triton launch in this process, on inputs of its own."""
    import torch
    import triton

    from engine.judging.gpu_side import load_module

    with tempfile.TemporaryDirectory() as folder:
        kernel = load_module(SOURCE.format(turns=0), "judge_aa_kernel", folder).turning_kernel
        x = torch.randn(elements, device="cuda")
        y = torch.empty_like(x)

        def launch(turns: int) -> None:
            kernel[(triton.cdiv(elements, 1024),)](x, y, elements, turns, 1.0, BLOCK=1024)

        launch(0)
        torch.cuda.synchronize()
    return launch, torch


def other_clocks(size: str) -> dict[str, Json]:
    """The copying kernel by triton.testing.do_bench and by ncu, where it may count; cold L2 in both."""
    from triton.testing import do_bench

    launch, _ = _launcher(ELEMENTS[size])
    found: dict[str, Json] = {"id": f"clocks|{size}", "kind": "clocks", "size": size}
    found["do_bench_us"] = float(do_bench(lambda: launch(TURNS[size]), warmup=25, rep=200, return_mode="median")) * 1e3
    return found | ncu_times(size)


def ncu_times(size: str) -> dict[str, Json]:
    tool = shutil.which("ncu")
    if tool is None:
        return {"ncu_us": None, "ncu_n": 0, "note": "no ncu on PATH"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "ncu.csv")
        options = ["--csv", "--page", "raw", "--print-units", "base", "--metrics", DURATION, "--log-file", str(log)]
        options += ["--clock-control", "none", "--cache-control", "all", "--kernel-name-base", "function"]
        options += ["--kernel-name", f"regex:^{KERNEL}$", "--launch-skip", "3", "--launch-count", "15"]
        command = [tool, *options, sys.executable, "-m", "benchmarks.judge_aa", "--call", size, "--out", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        text = log.read_text(errors="replace") if log.exists() else ""
    times = [sample.duration_us for sample in parse(text) if sample.duration_us is not None]
    if not times:
        return {"ncu_us": None, "ncu_n": 0, "note": f"ncu ended with {done.returncode}: {(text + done.stdout)[-200:]}"}
    return {"ncu_us": statistics.median(times), "ncu_n": len(times), "note": ""}


def aa_rows(rows: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    """What the intervals did: one row a size and one over all."""
    sizes = [size for size in ELEMENTS if any(row["size"] == size for row in rows)]
    groups = [(size, [row for row in rows if row["size"] == size]) for size in sizes]
    return [aa_row(name, group) for name, group in [*groups, ("all", rows)] if group]


def aa_row(name: str, rows: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    contained = sum(row["lo"] <= 1.0 <= row["hi"] for row in rows)
    faster = sum(row["lo"] > FASTER for row in rows)
    widths = spread((row["hi"] - row["lo"]) / row["ratio"] for row in rows)
    times, walls = spread(row["candidate_us"] for row in rows), spread(row["wall_s"] for row in rows)
    if widths is None or times is None or walls is None:
        raise BenchmarkError(f"no trials of {name}")
    target = CONTAINED["all" if name == "all" else "a size"]
    cells: dict[str, Json] = {"size": name, "trials": len(rows), "openings": len({_opening(row) for row in rows})}
    cells |= {"contains 1.00": contained, "share": contained / len(rows), "target": target, "false faster": faster}
    cells |= {"false slower": sum(row["hi"] < 1 / FASTER for row in rows)}
    cells |= {"width median": widths.median, "width p90": widths.p90, "width max": widths.largest}
    cells |= {"blocks median": statistics.median(row["blocks"] for row in rows)}
    cells |= {"kernel us": times.median if name != "all" else None, "s a trial": walls.median}
    return cells | {"ratio min-max": f"{min(r['ratio'] for r in rows):.4f} - {max(r['ratio'] for r in rows):.4f}"}


def _opening(row: Mapping[str, Json]) -> tuple[str, int]:
    return str(row["size"]), int(row["opening"])


def delay_rows(rows: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    """Recovered delay, its error in per cent of the kernel's time, for each size and delay."""
    found = []
    for size, share in dict.fromkeys((row["size"], row["share"]) for row in rows):
        mine = [row for row in rows if (row["size"], row["share"]) == (size, share)]
        recovered = [(row["ratio"] - 1) * row["candidate_us"] for row in mine]
        errors = [
            100 * (value - row["known_us"]) / row["candidate_us"] for value, row in zip(recovered, mine, strict=True)
        ]
        delays = spread(recovered)
        cells = {"size": size, "kernel us": statistics.median(row["candidate_us"] for row in mine)}
        cells |= {"inserted us": mine[0]["known_us"], **({} if delays is None else delays.cells("recovered us"))}
        cells |= {"error % median": statistics.median(errors), "error % largest": max(errors, key=abs)}
        found.append(cells | {"within 1 %": sum(abs(error) <= 1 for error in errors)})
    return found


def clock_rows(clocks: Sequence[Mapping[str, Json]], rows: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    found = []
    for row in clocks:
        mine = spread(other["candidate_us"] for other in rows if other["size"] == row["size"])
        cells = {"size": row["size"], "do_bench us": row["do_bench_us"], "ncu us": row["ncu_us"], "ncu n": row["ncu_n"]}
        if mine is not None:
            cells |= {"ours us": mine.median, "ours n": mine.n, "ours / do_bench": mine.median / row["do_bench_us"]}
            cells |= {} if row["ncu_us"] is None else {"ours / ncu": mine.median / row["ncu_us"]}
        found.append(cells | {"note": row["note"]})
    return found


def tables(lines: Lines) -> dict[str, list[dict[str, Json]]]:
    layers = dict.fromkeys(row["layer"] for row in lines.rows if "layer" in row)
    return {
        "Layer": [{"layer": name} for name in layers],
        "A/A": aa_rows(lines.of("aa")),
        "Inserted delay": delay_rows(lines.of("delay")),
        "Other clocks": clock_rows(lines.of("clocks"), lines.of("aa")),
        "Calibration": [{"us of a turn": row["us_per_turn"]} for row in lines.of("calibration")],
    }


def run(arguments: argparse.Namespace) -> Lines:
    lines = Lines(arguments.out / "judge_aa.jsonl")
    for old in arguments.resume:
        lines.add(*(row for row in Lines(old).rows if row["id"] not in lines.done))
    deadline = time.monotonic() + arguments.seconds
    fake = arguments.layer == "fake"
    settings = compose("cuda", {})
    cuda = settings.backends["cuda"].cuda
    if cuda is None:
        raise BenchmarkError("conf/backend/cuda.yaml has no timing settings")
    if not fake:
        for size in arguments.sizes:
            if f"clocks|{size}" not in lines.done:
                lines.add(other_clocks(size))
    scratch = Path(tempfile.mkdtemp(prefix="judge-aa-"))
    layer: Layer = FakeLayer(cuda, arguments.seed) if fake else StopwatchLayer(settings, scratch)
    try:
        us_per_turn = US_PER_FAKE_TURN if fake else calibrate()
        row: dict[str, Json] = {"id": f"calibration|{time.time()}", "kind": "calibration", "us_per_turn": us_per_turn}
        lines.add(row)
        trials = Run(layer, lines, deadline, arguments.reopen)
        trials.delays(arguments.sizes, arguments.delay_trials, us_per_turn)
        trials.aa(arguments.sizes, arguments.trials)
    finally:
        layer.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return lines


def call(size: str) -> None:
    """For ncu: the copying kernel, again and again."""
    launch, torch = _launcher(ELEMENTS[size])
    for _ in range(20):
        launch(TURNS[size])
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, action="append", default=[])
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--layer", choices=["stopwatch", "fake"], default="stopwatch")
    parser.add_argument("--sizes", nargs="+", choices=list(ELEMENTS), default=list(ELEMENTS))
    parser.add_argument("--trials", type=int, default=200, help="A/A trials of each size")
    parser.add_argument("--delay-trials", type=int, default=10, help="of each size and delay")
    parser.add_argument("--reopen", type=int, default=10, help="trials on one pair of executors")
    parser.add_argument("--seed", type=int, default=1, help="of the fake layer")
    parser.add_argument("--call", choices=list(ELEMENTS), help="launch the kernel of one size and end, for a profiler")
    arguments = parser.parse_args()
    if arguments.call is not None:
        call(arguments.call)
        return
    lines = run(arguments)
    write_report(arguments.out, "judge_aa", machine("cuda"), tables(lines))
    say((arguments.out / "judge_aa.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
