"""What a stage's counters cost, and whether two ways of reading them agree: in process by CUPTI, by ncu of the replayed
call, and by ncu of a whole script as the field does it.

    python -m benchmarks.profile_cost --work work.json --out FOLDER [--seconds 300] [--kernels 16] [--naive 6]

Recorded kernels of KernelBench at shipped sizes; each is judged first, which is not part of the cost, and then counted:
REPEATS times in process, once by ncu, and the first --naive of them once more by ncu of a script that imports PyTorch
and the candidate. Lines go to FOLDER/profile_cost.jsonl, and what is in it is not done again.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.compose import compose
from benchmarks.worklist import ROOT, Entry, Lines, WorkList, machine, read_work, say, spread, write_report
from engine.backends.cuda import CudaBackend
from engine.canonical import Json
from engine.errors import EngineError, ProfilerError
from engine.judging.client import NotCounted
from engine.records import Operator, Precision, Status
from engine.settings import ProfilerSettings
from profilers.cupti import DURATION, Counted
from profilers.seam import KernelSample

COUNTERS = (
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sector_hit_rate.pct",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
)
REPEATS = 3
LIMIT = 16
AGREE = 0.03
TARGETS: Mapping[str, float | None] = {"cupti": 0.5, "ncu": 5.0, "naive": None}


class Run:
    def __init__(self, work: WorkList, lines: Lines, seconds: float, naive: int) -> None:
        self._work, self._lines, self._naive = work, lines, naive
        self._deadline = time.monotonic() + seconds
        self._scratch = Path(tempfile.mkdtemp(prefix="profile-cost-"))
        self._settings = compose("cuda", {})
        self._ncu: ProfilerSettings = self._settings.backends["cuda"].profilers["ncu"]
        self._backend = CudaBackend(self._settings, ROOT, self._scratch)

    def all(self, entries: Sequence[Entry], wanted: int) -> None:
        for entry in entries:
            done = len(self._lines.of("kernel"))
            if done >= wanted or time.monotonic() > self._deadline:
                return
            if f"kernel|{entry.key}" not in self._lines.done:
                try:
                    self._one(entry, naive=done < self._naive)
                except EngineError as error:
                    say(f"{entry.key}: {type(error).__name__}: {error}")
                    row: dict[str, Json] = {"id": f"error|{entry.key}", "kind": "error", "key": entry.key}
                    self._lines.add({**row, "text": str(error)[:400]})

    def _one(self, entry: Entry, *, naive: bool) -> None:
        operator = self._work.operator(entry.task_id, entry.precision or Precision.IEEE)
        verdict = self._backend.judge(operator, entry.source)
        if verdict.status is not Status.CORRECT:
            return
        row: dict[str, Json] = {"id": f"kernel|{entry.key}", "kind": "kernel", "key": entry.key, "task": entry.task_id}
        walls, counted = [], None
        for _ in range(REPEATS):
            started = time.monotonic()
            counted = self._count(operator, entry.source, None)
            walls.append(time.monotonic() - started)
        assert counted is not None
        row |= {"cupti_s": walls, "launches": counted.launches, "passes": counted.passes}
        row |= {"kernels": [sample.kernel for sample in counted.samples], "unknown": list(counted.unknown)}
        row |= {"cupti": _values(counted.samples)}
        started = time.monotonic()
        try:
            by_ncu: Counted | None = self._count(operator, entry.source, self._ncu)
            row["ncu_note"] = ""
        except (NotCounted, ProfilerError) as error:
            by_ncu, row["ncu_note"] = None, f"{type(error).__name__}: {error}"[:400]
        row |= {"ncu_s": time.monotonic() - started, "ncu": None if by_ncu is None else _values(by_ncu.samples)}
        row["ncu_kernels"] = [] if by_ncu is None else [sample.kernel for sample in by_ncu.samples]
        row |= {"naive_s": None, "naive": None, "naive_note": ""}
        if naive:
            started = time.monotonic()
            answer = self._backend._ncu_script(self._ncu, operator, entry.source, verdict.trace, COUNTERS)
            row |= {"naive_s": time.monotonic() - started, "naive": _values(answer.samples), "naive_note": answer.note}
            row |= {"naive_kernels": [sample.kernel for sample in answer.samples]}
        self._lines.add(row)

    def _count(self, operator: Operator, source: str, ncu: ProfilerSettings | None) -> Counted:
        precision = operator.task.contract.precision or Precision.IEEE
        return self._backend._judge.count(operator.task, precision, source, COUNTERS, LIMIT, ncu)

    def close(self) -> None:
        self._backend.__exit__(None, None, None)
        shutil.rmtree(self._scratch, ignore_errors=True)


def _values(samples: Sequence[KernelSample]) -> list[Json]:
    return [
        {name: sample.counters[name] for name in (*COUNTERS, DURATION) if name in sample.counters} for sample in samples
    ]


def differences(rows: Sequence[Mapping[str, Json]], other: str) -> list[dict[str, Json]]:
    """Per counter: cupti against `other`, launch by launch, relative; absolute points for percentages and hit rates."""
    found = []
    for counter in (*COUNTERS, DURATION):
        points = counter.endswith("_elapsed") or counter.endswith("_active") or counter.endswith(".pct")
        apart = []
        for row in rows:
            pairs = [(a[counter], b[counter]) for a, b in paired(row, other) if counter in a and counter in b]
            apart += [abs(a - b) if points else abs(a - b) / max(abs(b), 1e-9) * 100 for a, b in pairs]
        values = spread(apart)
        if values is not None:
            within = sum(value <= 100 * AGREE for value in apart)
            cells = values.cells("points" if points else "%")
            found.append({"counter": counter, "unit": "points" if points else "%", **cells, "within 3": within})
    return found


def paired(row: Mapping[str, Json], other: str) -> list[tuple[Json, Json]]:
    """The same launches by either way. ncu watches the candidate's own kernels alone: those are paired, the n-th launch
    of a name with the n-th, where both saw the same number."""
    mine, theirs, names = row["cupti"], row[other] or [], row.get(f"{other}_kernels", [])
    found: list[tuple[Json, Json]] = []
    for name in dict.fromkeys(names):
        left = [values for values, kernel in zip(mine, row["kernels"], strict=True) if kernel == name]
        right = [values for values, kernel in zip(theirs, names, strict=True) if kernel == name]
        if len(left) == len(right):
            found.extend(zip(left, right, strict=True))
    return found


def tables(lines: Lines) -> dict[str, list[dict[str, Json]]]:
    rows = lines.of("kernel")
    costs: list[dict[str, Json]] = []
    ways: Mapping[str, list[float]] = {
        "cupti": [statistics.median(row["cupti_s"]) for row in rows],
        "ncu": [row["ncu_s"] for row in rows if row["ncu"] is not None],
        "naive": [row["naive_s"] for row in rows if row["naive_s"] is not None],
    }
    for way, seconds in ways.items():
        found = spread(seconds)
        if found is not None:
            costs.append({"way": way, "target s": TARGETS[way], **found.cells("s")})
    kernels = [
        {
            "task": row["task"],
            "launches": row["launches"],
            "kernels": ", ".join(dict.fromkeys(row["kernels"]))[:80],
            "passes": row["passes"],
            "cupti s": statistics.median(row["cupti_s"]),
            "ncu s": row["ncu_s"] if row["ncu"] is not None else None,
            "naive s": row["naive_s"],
            "note": row["ncu_note"][:80],
        }
        for row in rows
    ]
    return {
        "Cost": costs,
        "CUPTI against ncu of the replayed call": differences(rows, "ncu"),
        "CUPTI against ncu of the whole script": differences(rows, "naive"),
        "Kernels": kernels,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--kernels", type=int, default=16)
    parser.add_argument("--naive", type=int, default=6)
    arguments = parser.parse_args()
    lines = Lines(arguments.out / "profile_cost.jsonl")
    work = read_work(arguments.work)
    run = Run(work, lines, arguments.seconds, arguments.naive)
    try:
        run.all(work.chosen(work.cost), arguments.kernels)
    finally:
        run.close()
    write_report(arguments.out, "profile_cost", machine("cuda"), tables(lines))
    say((arguments.out / "profile_cost.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
