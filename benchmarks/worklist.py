"""The work list of the judge's benchmarks, and the form that their results share: lines, spreads, tables.

    python -m benchmarks.worklist --kernelbench K.parquet --recorded R.parquet --out work.json [--verdicts V.csv]

Needs no GPU. From kernels that language models wrote for KernelBench it chooses one a task that the judge accepted
earlier (`cost`, 16 and 8 of them for other evaluators), drafts that end before they run (`drafts`), and each task's
best by the recorded score, whatever the judge thinks of it (`speedups`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from engine.canonical import Json, digest_text
from engine.codec import decode, encode
from engine.errors import EngineError
from engine.records import Facts, Operator, Precision, Task
from engine.settings import TaskSettings

ROOT = Path(__file__).resolve().parents[1]
VERDICTS = ROOT / "docs" / "measurements" / "judge_recorded.csv"
LEVELS = ("level1", "level2")
BEFORE_RUNNING = frozenset(
    {
        "rejected: forbidden",
        "rejected: host_op",
        "failed: compile",
        "failed: resources",
        "failed: state_mismatch",
        "failed: syntax",
    }
)
"""Outcomes that the screen, the tracer or the compiler decides."""

PEERS, OF_THEM_SLOW = 16, 8


class BenchmarkError(EngineError):
    """A benchmark cannot state its figure; the message says what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the data set says of a kernel: verdict and times of its author's evaluator, on another GPU, n = 5.

    `score` is `baseline_ms` (a cached reference) or, without one, `ref_ms` of the same process over `test_ms`."""

    phase: str
    runnable: bool | None
    error_class: str | None
    score: float | None
    ref_ms: float | None
    test_ms: float | None
    baseline_ms: float | None
    tolerance: float | None
    max_abs_err: float | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One recorded kernel. `precision`: under which the judge accepted it earlier; None where it was not asked."""

    key: str
    task_id: str
    source: str
    precision: Precision | None
    recorded: Recorded


@dataclass(frozen=True, slots=True)
class WorkList:
    """Kernels, their tasks with facts, and the keys that each benchmark takes, in order."""

    entries: tuple[Entry, ...]
    tasks: tuple[Task, ...]
    facts: tuple[Facts, ...]
    cost: tuple[str, ...]
    peers: tuple[str, ...]
    slow_peers: tuple[str, ...]
    drafts: tuple[str, ...]
    speedups: tuple[str, ...]

    def chosen(self, keys: Sequence[str]) -> list[Entry]:
        by_key = {entry.key: entry for entry in self.entries}
        return [by_key[key] for key in keys]

    def operator(self, task_id: str, precision: Precision) -> Operator:
        """The task under a declared precision; a hash of its own keeps what is cached under another one apart."""
        task, facts = next((t, f) for t, f in zip(self.tasks, self.facts, strict=True) if t.task_id == task_id)
        contract = replace(task.contract, precision=precision)
        return Operator(replace(task, contract=contract, task_hash=f"{task.task_hash}-{precision.value}"), facts)


def read_work(path: Path) -> WorkList:
    return decode(WorkList, json.loads(path.read_text(encoding="utf-8")), str(path))


def choose(entries: Sequence[Entry], outcomes: Mapping[str, Mapping[str, str]], seed: int) -> WorkList:
    """The lists of keys, without tasks and facts. `outcomes`: rows of judge_recorded.csv by key."""
    order = random.Random(seed)
    by_task: dict[str, list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry.key):
        by_task[entry.task_id].append(entry)
    names = sorted(by_task)
    order.shuffle(names)
    accepted = [_accepted(by_task[name], outcomes) for name in names]
    correct = _alternating([entry for entry in accepted if entry is not None])
    strict = [entry for entry in correct if entry.precision is Precision.IEEE]
    peers = (*strict, *(entry for entry in correct if entry not in strict))[:PEERS]
    cost = (*peers, *(entry for entry in correct if entry not in peers))
    drafts = [entry for entry in entries if entry.key in outcomes and _ends_early(outcomes[entry.key])]
    scored = [_best(by_task[name]) for name in names]
    best = _alternating([entry for entry in scored if entry is not None])
    kept = {entry.key: entry for entry in (*best, *drafts, *cost)}
    return WorkList(
        tuple(kept.values()),
        (),
        (),
        tuple(entry.key for entry in cost),
        tuple(entry.key for entry in peers),
        tuple(entry.key for entry in peers[:OF_THEM_SLOW]),
        tuple(entry.key for entry in drafts),
        tuple(entry.key for entry in best),
    )


def _alternating(entries: Sequence[Entry]) -> list[Entry]:
    """Levels in turn, so that a run that is cut has both."""
    queues = [[entry for entry in entries if entry.task_id.startswith(level)] for level in LEVELS]
    longest = max((len(queue) for queue in queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def _accepted(entries: Sequence[Entry], outcomes: Mapping[str, Mapping[str, str]]) -> Entry | None:
    """The first that was correct under ieee, else the first that was under tf32."""
    for column, precision in (("ieee_outcome", Precision.IEEE), ("tf32", Precision.TF32)):
        good = [entry for entry in entries if entry.key in outcomes and outcomes[entry.key][column] == "correct"]
        if good:
            return replace(good[0], precision=precision)
    return None


def _ends_early(row: Mapping[str, str]) -> bool:
    return row["ieee_outcome"] in BEFORE_RUNNING


def _best(entries: Sequence[Entry]) -> Entry | None:
    scored = [entry for entry in entries if entry.recorded.runnable and entry.recorded.score is not None]
    return max(scored, key=lambda entry: entry.recorded.score or 0.0, default=None)


def read_recorded(path: Path) -> list[Entry]:
    """Kernels of levels 1 and 2, each once; equal sources of one task count once."""
    import pandas

    table = pandas.read_parquet(path)
    table = table[~table["also_on_main"].fillna(False).astype(bool) & table["level"].isin(LEVELS)]
    rows = json.loads(table.drop(columns="timestamp").to_json(orient="records"))
    entries: dict[str, Entry] = {}
    for row in rows:
        if row["kernel_code"]:
            entry = _entry(row)
            entries.setdefault(digest_text(entry.task_id + entry.source), entry)
    return list(entries.values())


def _entry(row: Json) -> Entry:
    address = [row["branch"], row["level"], row["task"], row["run_tag"] or "", str(row["order"])]
    recorded = Recorded(
        row["phase"], row["runnable"], row["error_class"], row["recorded_score"], row["ref_ms"], row["test_ms"],
        row["baseline_ms"], row["tolerance"], row["max_abs_err"],
    )  # fmt: skip
    return Entry("|".join(address), f"{row['level']}/{row['task']}", row["kernel_code"], None, recorded)


def read_outcomes(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return {row["key"]: row for row in csv.DictReader(stream)}


class Lines:
    """Results of one benchmark, one JSON object a line with an `id`: what is there is not done again.

    A torn last line, as a killed run leaves one, does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, Json]] = []
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                self.rows.append(json.loads(line))
            except ValueError:
                continue
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n")

    @property
    def done(self) -> set[str]:
        return {str(row["id"]) for row in self.rows}

    def add(self, *rows: dict[str, Json]) -> None:
        """Rows that belong together are written at once, so that a resumed run finds all or none."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(row) + "\n" for row in rows))
        self.rows.extend(rows)

    def of(self, kind: str) -> list[dict[str, Json]]:
        return [row for row in self.rows if row["kind"] == kind]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, tenth and ninetieth percentile, least and largest of n values."""

    n: int
    median: float
    p10: float
    p90: float
    least: float
    largest: float

    def cells(self, prefix: str) -> dict[str, Json]:
        """Columns of a table."""
        values = {"median": self.median, "p10": self.p10, "p90": self.p90, "min": self.least, "max": self.largest}
        return {"n": self.n, **{f"{prefix} {name}": value for name, value in values.items()}}


def spread(values: Iterable[float]) -> Spread | None:
    """None for no values; percentiles between the two nearest values."""
    found = sorted(values)
    if not found:
        return None
    return Spread(len(found), statistics.median(found), _at(found, 0.1), _at(found, 0.9), found[0], found[-1])


def _at(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def markdown(title: str, rows: Sequence[Mapping[str, Json]], note: str = "") -> str:
    """A section with one table: the columns of all rows, in order of first appearance; absent cells are empty."""
    if not rows:
        return f"## {title}\n\nnothing measured\n"
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"## {title}", "", *([note, ""] if note else [])]
    lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row[c]) if c in row else "" for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Json) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/").replace("\n", " ")[:400]


def write_report(folder: Path, name: str, machine: Json, tables: Mapping[str, Sequence[Mapping[str, Json]]]) -> str:
    """Write NAME.json and NAME.md into `folder`; the text."""
    text = "\n".join(markdown(title, rows) for title, rows in tables.items())
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine, "tables": tables}, indent=1), encoding="utf-8")
    (folder / f"{name}.md").write_text(f"# {name}\n\nmachine: {json.dumps(machine)}\n\n{text}", encoding="utf-8")
    return text


def gpu_processes() -> list[tuple[int, str, str]]:
    """pid, name and memory of each process that holds a GPU, as nvidia-smi prints them; empty without the tool."""
    command = ["nvidia-smi", "--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits"]
    return [(int(pid), name.strip(), mib.strip()) for pid, name, mib in _smi(command, 3)]


def gpu_memory_mib() -> float | None:
    """Memory in use on the first visible GPU; None without nvidia-smi."""
    rows = _smi(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], 1)
    return float(rows[0][0]) if rows else None


def _smi(command: Sequence[str], columns: int) -> list[list[str]]:
    if shutil.which(command[0]) is None:
        return []
    # The tool itself shows every GPU, whatever CUDA shows.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    command = [*command, f"--id={visible}"] if visible else command
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [cells for line in done.stdout.splitlines() if len(cells := line.split(",")) == columns]


def machine(backend: str) -> Json:
    """What the figures were seen on."""
    facts: dict[str, Json] = {"backend": backend, "cores": os.cpu_count(), "python": platform.python_version()}
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    for cells in _smi(query, 2):
        facts |= {"gpu": cells[0].strip(), "driver": cells[1].strip()}
    return facts | {name: version(name) for name in ("torch", "triton")} | {"date": time.strftime("%Y-%m-%d")}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernelbench", type=Path, required=True)
    parser.add_argument("--recorded", type=Path, required=True)
    parser.add_argument("--verdicts", type=Path, default=VERDICTS, help="CSV of benchmarks.judge_recorded")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    from engine.tasks import load_tasks
    from engine.tasks.facts_client import describe

    work = choose(read_recorded(arguments.recorded), read_outcomes(arguments.verdicts), arguments.seed)
    names = tuple(sorted({entry.task_id for entry in work.entries}))
    settings = TaskSettings("kernelbench", str(arguments.kernelbench), False, names, (), (), None, None, None, 0)
    tasks = load_tasks(settings, (), ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        facts = describe(tasks, Path(scratch))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(encode(replace(work, tasks=tasks, facts=facts))), encoding="utf-8")
    lists = {name: len(getattr(work, name)) for name in ("cost", "peers", "slow_peers", "drafts", "speedups")}
    say(f"{len(work.entries)} kernels of {len(tasks)} tasks -> {arguments.out}: {lists}")


if __name__ == "__main__":
    main()
