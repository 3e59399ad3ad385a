"""Candidates in a row, several at once, hangs, crashes and memory hogs among honest and wrong ones.

    python -m benchmarks.judge_soak --out FOLDER [--candidates 500] [--slice N] [--backend auto|cpu|cuda] [--lanes 4]

Holds when every candidate got a verdict, every one the verdict of its kind, no process is left, and the GPU's memory is
back where it was; exit status 1 otherwise. Kinds come from the corpus of tests/adversarial, whose index names what is
expected, and from here, for what only a device does. `--slice N` takes the first N; 16 have every kind of the CPU's.
Lines go to FOLDER/judge_soak.jsonl; candidates that are in it are not judged again.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compose import compose
from benchmarks.judge_cost import clone, outcome
from benchmarks.worklist import (
    ROOT,
    BenchmarkError,
    Lines,
    gpu_memory_mib,
    gpu_processes,
    machine,
    say,
    spread,
    write_report,
)
from engine.backends import open_backend
from engine.backends.detect import resolve
from engine.backends.seam import Backend
from engine.canonical import Json
from engine.errors import EngineError
from engine.records import Facts, Operator, Task
from engine.settings import TaskSettings
from engine.tasks import load_tasks

CORPUS = ROOT / "tests" / "adversarial"
HARMLESS = ("a01.py", "a04.py", "a05.py", "a06.py", "b11.py", "b12.py", "b14.py", "b16.py", "b19.py", "b21.py")
HARMFUL = {"b23.py": "hang", "b35.py": "host memory hog", "b15.py": "out-of-bounds writer", "b24.py": "exits"}
ROUND = {"honest": 8, "wrong": 6}
"""Of one round, besides one of every harmful kind."""

TOLERANCE_MIB = 64.0
"""Of the GPU's memory before and after."""

SETTLE_S = 20.0
"""For ended processes to leave the tables of kernel and driver."""

FACTS = Facts(0, 0, 0, 0, 0, 0, 0, 0, 0, None, None, 0.0, 0.0, 0.0, "float32", "none")

DEVICE = """
import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def gelu_kernel(x_ptr, y_ptr, n, far, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask)
{spoil}
    y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    tl.store(y_ptr + offsets, y, mask=mask)


class ModelNew(nn.Module):
    def forward(self, x):
        y = torch.empty_like(x)
        n = x.numel()
{before}
        gelu_kernel[(triton.cdiv(n, 1024),)](x, y, n, 1 << 44, BLOCK=1024)
        return y
"""
SPIN = """    turn = far
    while turn > 0:
        x += tl.load(x_ptr + offsets, mask=mask) * 0.0
        turn = turn - 1"""
FAR = "    tl.store(y_ptr + offsets.to(tl.int64) + far, x, mask=mask)"
HOG = "        y = torch.empty(1 << 43, device=x.device, dtype=x.dtype)[:n].view(x.shape)"
CRASH = "        torch.UntypedStorage._free_weak_ref(16)"
EVERYWHERE = {
    "segmentation fault": (DEVICE.format(spoil="", before=CRASH), ("failed: crash",)),
    "exception": (DEVICE.format(spoil="", before="        raise ValueError(n)"), ("failed: exception",)),
}
"""What the corpus has only in forms that the screen may refuse."""

ON_DEVICE = {
    "kernel that never ends": (DEVICE.format(spoil=SPIN, before=""), ("failed: timeout",)),
    "illegal address": (DEVICE.format(spoil=FAR, before=""), ("failed: crash",)),
    "device memory hog": (
        DEVICE.format(spoil="", before=HOG),
        ("failed: out_of_memory", "undecided: out_of_memory", "failed: resources", "failed: crash"),
    ),
}
"""What the interpreter cannot be given: the sources, and which outcomes are right."""

ALSO_ON_DEVICE = {"b35.py": ("correct",)}
"""Its hoard is no part of its launch plan, and its Python is not run."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One candidate of the mix. `expected`: outcomes that are right; `group`: honest, wrong or harmful."""

    name: str
    group: str
    task: str
    source: str
    expected: tuple[str, ...]


def kinds(backend: str) -> list[Kind]:
    """The corpus cases of the mix, and on a GPU those that only a device decides."""
    text = (CORPUS / "index.csv").read_text(encoding="utf-8")
    index = {row["file"]: row for row in csv.DictReader(text.splitlines())}
    missing = [file for file in (*HARMLESS, *HARMFUL) if file not in index]
    if missing:
        raise BenchmarkError(f"{CORPUS / 'index.csv'}: expected {', '.join(missing)}, found no such file")
    found = [_from_corpus(index[file], backend) for file in (*HARMLESS, *HARMFUL)]
    own = EVERYWHERE | (ON_DEVICE if backend == "cuda" else {})
    return found + [Kind(name, "harmful", "gelu", *what) for name, what in own.items()]


def _from_corpus(row: Mapping[str, str], backend: str) -> Kind:
    source = (CORPUS / "cases" / row["file"]).read_text(encoding="utf-8")
    if row["file"] in HARMFUL:
        name, group = f"{HARMFUL[row['file']]} ({row['file']})", "harmful"
    else:
        name, group = row["file"], "honest" if row["label"] == "honest" else "wrong"
    also = ALSO_ON_DEVICE[row["file"]] if backend == "cuda" and row["file"] in ALSO_ON_DEVICE else ()
    return Kind(name, group, row["task"], source, (*_expected(row["reason"]), *also))


def _expected(reason: str) -> tuple[str, ...]:
    """A reason decides its outcome: what did not run to its end failed, what ran and is not acceptable is rejected."""
    if not reason:
        return ("correct",)
    return (f"failed: {reason}", f"rejected: {reason}")


def deal(found: Sequence[Kind], count: int, seed: int) -> list[Kind]:
    """`count` candidates in rounds: every harmful kind once, honest and wrong ones in turn, shuffled in the round."""
    order = random.Random(seed)
    by_group = {group: [kind for kind in found if kind.group == group] for group in ("honest", "wrong", "harmful")}
    dealt: list[Kind] = []
    turns = Counter[str]()
    while len(dealt) < count:
        here = list(by_group["harmful"])
        for group, number in ROUND.items():
            for _ in range(number):
                here.append(by_group[group][turns[group] % len(by_group[group])])
                turns[group] += 1
        order.shuffle(here)
        dealt += here
    return dealt[:count]


def slice_of(found: Sequence[Kind], count: int, seed: int) -> list[Kind]:
    """Every kind once, then as `deal` has it: a short run that leaves no kind out."""
    first = list(found)
    random.Random(seed).shuffle(first)
    return [*first, *deal(found, count, seed)][:count]


@dataclass(frozen=True, slots=True)
class Process:
    """One entry of the process table."""

    pid: int
    command: str
    state: str


def processes(marks: Sequence[str]) -> list[Process]:
    """Processes whose command, environment or working folder holds one of `marks`; this one and its parents aside."""
    mine = set(_line(os.getpid()))
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) not in mine:
            process = _process(folder, marks)
            if process is not None:
                found.append(process)
    return found


def _process(folder: Path, marks: Sequence[str]) -> Process | None:
    """None for one that is not marked, or has ended meanwhile."""
    try:
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        environment = (folder / "environ").read_bytes().decode(errors="replace")
        working = str((folder / "cwd").readlink())
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None
    if any(mark in text for mark in marks for text in (command, environment, working)):
        return Process(int(folder.name), command[:160], state)
    return None


def _line(pid: int) -> Iterator[int]:
    """A process and those above it."""
    while pid > 0:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def zombies() -> int:
    """Ended children of this process that nobody has waited for."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        count += fields[0] == "Z" and int(fields[1]) == os.getpid()
    return count


class Soak:
    """One run: candidates by number, and what was seen before and after."""

    def __init__(self, arguments: argparse.Namespace, lines: Lines) -> None:
        self.lines, self.backend = lines, resolve(arguments.backend)
        self.deadline = time.monotonic() + arguments.seconds
        self.lanes = arguments.lanes
        limits = {"judge.limits.run_s": arguments.limit_s, "judge.limits.trace_s": arguments.limit_s}
        self._settings = compose(self.backend, {**limits, "judge.limits.memory_gib": 4.0, "judge.seed": 20261121})
        everything = TaskSettings("bundled", None, False, (), (), (), None, None, None, 0)
        self._tasks: dict[str, Task] = {task.name: task for task in load_tasks(everything, (), ROOT)}
        self._lock = threading.Lock()

    def run(self, candidates: Sequence[Kind]) -> dict[str, Json]:
        """Judge what is left; what the machine looked like before and after."""
        scratch = Path(tempfile.mkdtemp(prefix="judge-soak-"))
        before = gpu_memory_mib()
        left = [number for number in range(len(candidates)) if f"candidate|{number}" not in self.lines.done]
        started = time.monotonic()
        with open_backend(self.backend, self._settings, ROOT, scratch) as backend:
            with ThreadPoolExecutor(self.lanes) as pool:
                list(pool.map(lambda number: self._one(backend, number, candidates[number]), left))
            within, seen = gpu_memory_mib(), len(processes([str(scratch)]))
        row: dict[str, Json] = {"id": f"machine|{time.time()}", "kind": "machine", "judged": len(left)}
        row |= {"wall_s": time.monotonic() - started, "gpu_mib_before": before, "gpu_mib_open": within}
        row["processes_open"] = seen
        row |= self._after(scratch, before)
        shutil.rmtree(scratch, ignore_errors=True)
        self.lines.add(row)
        return row

    def _one(self, backend: Backend, number: int, kind: Kind) -> None:
        if time.monotonic() >= self.deadline:
            return
        row: dict[str, Json] = {"id": f"candidate|{number}", "kind": "candidate", "name": kind.name}
        row |= {"group": kind.group, "expected": list(kind.expected)}
        started = time.monotonic()
        try:
            source = clone(kind.source, f"s{number}")
            verdict = backend.judge(Operator(self._tasks[kind.task], FACTS), source)
            row |= {"outcome": outcome(verdict), "mode": verdict.mode.value, "error_ratio": verdict.error_ratio}
            row |= {"variant": verdict.variant, "suite": verdict.suite, "class": verdict.precision_class}
            row |= {"message": verdict.message[:300]}
        except EngineError as error:
            row |= {"outcome": "lost", "mode": "", "error_ratio": None}
            row |= {"message": f"{type(error).__name__}: {error}"[:300]}
        row["wall_s"] = time.monotonic() - started
        with self._lock:
            self.lines.add(row)

    def _after(self, scratch: Path, before_mib: float | None) -> dict[str, Json]:
        """Waits until nothing of ours is left, or gives up and says what is."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            left = processes([str(scratch)])
            after = gpu_memory_mib()
            memory_back = before_mib is None or after is None or after - before_mib <= TOLERANCE_MIB
            if (not left and not zombies() and memory_back) or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        row: dict[str, Json] = {"gpu_mib_after": after, "memory_back": memory_back, "zombies": zombies()}
        row["left"] = [f"{process.pid} {process.state} {process.command}" for process in left]
        return row | {"on_gpu_after": [" ".join(map(str, found)) for found in gpu_processes()]}


def faults(candidates: Sequence[Kind], lines: Lines) -> list[str]:
    """What does not hold, in words; empty when all does."""
    rows = {row["id"]: row for row in lines.of("candidate")}
    missing = [n for n in range(len(candidates)) if f"candidate|{n}" not in rows]
    found = [f"{len(missing)} of {len(candidates)} candidates have no verdict, {missing[:5]} first"] if missing else []
    for row in rows.values():
        if row["outcome"] not in row["expected"]:
            wanted = " or ".join(row["expected"])
            found.append(
                f"{row['id']} ({row['name']}): expected {wanted}, got {row['outcome']}: {row['message'][:120]}"
            )
    for row in lines.of("machine"):
        found += [f"still running: {process}" for process in row["left"]]
        if row["judged"] and not row["processes_open"]:
            found.append("no process was seen while the back-end was open: the search for leaked ones finds nothing")
        if row["zombies"]:
            found.append(f"{row['zombies']} ended processes that nobody waited for")
        if not row["memory_back"]:
            found.append(f"GPU memory: {row['gpu_mib_before']} MiB before, {row['gpu_mib_after']} MiB after")
    return found


def tables(candidates: Sequence[Kind], lines: Lines) -> dict[str, list[dict[str, Json]]]:
    rows = lines.of("candidate")
    problems = faults(candidates, lines)
    lost = len(candidates) - sum(row["outcome"] != "lost" for row in rows)
    total = {"candidates": len(candidates), "verdicts": len(rows), "lost": lost, "faults": len(problems)}
    return {
        "Soak": [total],
        "Kinds": [kind_row(name, rows) for name in dict.fromkeys(row["name"] for row in rows)],
        "Machine": [{k: v for k, v in row.items() if k not in ("id", "kind")} for row in lines.of("machine")],
        "Faults": [{"fault": text} for text in problems],
    }


def kind_row(name: str, rows: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """`ratios`: how many different error ratios equal programs got on equal draws; more than 1 is not a fault."""
    mine = [row for row in rows if row["name"] == name]
    walls = spread(row["wall_s"] for row in mine)
    cells = {"kind": name, "group": mine[0]["group"], "outcomes": dict(Counter(row["outcome"] for row in mine))}
    cells |= {"as expected": sum(row["outcome"] in row["expected"] for row in mine)}
    cells |= {"ratios": len({row["error_ratio"] for row in mine})}
    return cells | ({} if walls is None else walls.cells("wall s"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, action="append", default=[])
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--slice", type=int, help="so many candidates, every kind among the first")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--lanes", type=int, default=4, help="candidates judged at once")
    parser.add_argument("--limit-s", type=float, default=20.0, help="for tracing and for running one candidate")
    parser.add_argument("--seconds", type=float, default=7200.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    lines = Lines(arguments.out / "judge_soak.jsonl")
    for old in arguments.resume:
        lines.add(*(row for row in Lines(old).rows if row["id"] not in lines.done))
    soak = Soak(arguments, lines)
    found = kinds(soak.backend)
    cut = arguments.slice is not None
    mix = slice_of(found, arguments.slice, arguments.seed) if cut else deal(found, arguments.candidates, arguments.seed)
    soak.run(mix)
    write_report(arguments.out, "judge_soak", machine(soak.backend), tables(mix, lines))
    say((arguments.out / "judge_soak.md").read_text(encoding="utf-8"))
    sys.exit(1 if faults(mix, lines) else 0)


if __name__ == "__main__":
    main()
