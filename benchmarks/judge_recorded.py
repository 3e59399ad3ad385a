"""Judges kernels that language models wrote for KernelBench, on a GPU, and compares with what was recorded of them.

    python -m benchmarks.judge_recorded prepare --kernelbench K.parquet --recorded R.parquet --out work.json
    python -m benchmarks.judge_recorded judge --work work.json --out FOLDER --lanes 6 --seconds 540 [--resume OLD.jsonl]
    python -m benchmarks.judge_recorded summary --work work.json --out FOLDER

`prepare` needs no GPU. `judge` appends one line per kernel to FOLDER/verdicts.jsonl, skips kernels that are in it or in
--resume, and may be given again until none is left. Each kernel is judged under `ieee`; one whose numbers are refused
is judged again under `tf32`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import csv
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine.canonical import Json, digest_text, short
from engine.codec import decode, encode
from engine.errors import EngineError
from engine.records import Facts, Operator, Precision, Reason, Status, Task, Verdict
from engine.settings import TaskSettings

ROOT = Path(__file__).resolve().parents[1]
NUMERIC = frozenset({Reason.PRECISION, Reason.WRONG_RESULT, Reason.NON_FINITE})
LEVELS = ("level1", "level2")
LIMITS = {"judge.limits.trace_s": 60.0, "judge.limits.run_s": 150.0, "judge.seed": 20261121}
CSV_RECORDED = ("key", "task", "recorded_runnable", "recorded_error")
CSV_VERDICT = ("outcome", "class", "variant", "suite", "error_ratio")
GPU_GIB = 125.0
"""Device memory that the kernels judged at one time may need together, by estimate."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One recorded kernel: its address in the data set, its source, and what its author's evaluator said."""

    key: str
    task_id: str
    source: str
    branch: str
    phase: str
    runnable: bool | None
    error_class: str | None
    score: float | None
    max_abs_err: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """What the judge said of one kernel under each policy; `error` when the engine itself failed on it."""

    key: str
    task_id: str
    ieee: Verdict | None
    tf32: Verdict | None
    error: str
    wall_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that judging needs, so that a machine without the data sets' readers can do it."""

    kernels: tuple[Kernel, ...]
    tasks: tuple[Task, ...]
    facts: tuple[Facts, ...]


def prepare(arguments: argparse.Namespace) -> None:
    """Choose kernels (distinct tasks first, a mix of recorded successes and failures) and trace their tasks."""
    from engine.tasks import load_tasks
    from engine.tasks.facts_client import describe

    kernels = _choose(_recorded(arguments.recorded), arguments.count, arguments.seed)
    names = tuple(dict.fromkeys(kernel.task_id for kernel in kernels))
    settings = TaskSettings("kernelbench", str(arguments.kernelbench), False, names, (), (), None, None, None, 0)
    tasks = load_tasks(settings, (), ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        facts = describe(tasks, Path(scratch))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(encode(Work(tuple(kernels), tasks, facts))))
    _say(f"{len(kernels)} kernels of {len(tasks)} tasks -> {arguments.out}")


def _recorded(path: Path) -> list[Kernel]:
    import pandas

    table = pandas.read_parquet(path)
    table = table[~table["also_on_main"].fillna(False).astype(bool) & table["level"].isin(LEVELS)]
    rows = json.loads(table.drop(columns="timestamp").to_json(orient="records"))
    return [_kernel(row) for row in rows if row["kernel_code"]]


def _kernel(row: Json) -> Kernel:
    address = [row["branch"], row["level"], row["task"], row["run_tag"] or "", str(row["order"])]
    task_id = f"{row['level']}/{row['task']}"
    return Kernel(
        "|".join(address), task_id, row["kernel_code"], row["branch"], row["phase"],
        row["runnable"], row["error_class"], row["recorded_score"], row["max_abs_err"],
    )  # fmt: skip


def _choose(kernels: Iterable[Kernel], count: int, seed: int) -> list[Kernel]:
    """Round-robin over tasks; within a task recorded successes and failures alternate, equal sources count once."""
    by_task: dict[str, list[Kernel]] = defaultdict(list)
    seen: set[str] = set()
    for kernel in kernels:
        mark = digest_text(kernel.task_id + kernel.source)
        if mark not in seen:
            seen.add(mark)
            by_task[kernel.task_id].append(kernel)
    order = random.Random(seed)
    queues = []
    for task_id in sorted(by_task):
        found = by_task[task_id]
        order.shuffle(found)
        good = [kernel for kernel in found if kernel.runnable]
        bad = [kernel for kernel in found if not kernel.runnable]
        queues.append([kernel for pair in _alternate(good, bad) for kernel in pair])
    longest = max(map(len, queues))
    chosen = [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
    return chosen[:count]


def _alternate(good: Sequence[Kernel], bad: Sequence[Kernel]) -> list[Sequence[Kernel]]:
    longest = max(len(good), len(bad))
    return [[*good[turn : turn + 1], *bad[turn : turn + 1]] for turn in range(longest)]


class Memory:
    """Device memory shared by estimate, so that large kernels wait for each other."""

    def __init__(self, gib: float) -> None:
        self._whole, self._left = gib, gib
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, gib: float) -> Iterator[None]:
        share = min(gib, self._whole)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= share)
            self._left -= share
        try:
            yield
        finally:
            with self._changed:
                self._left += share
                self._changed.notify_all()


def _need_gib(facts: Facts) -> float:
    """The reference in fp64 and its inputs in both widths, or the candidate's buffers beside the fp64 result; 3 GiB
    for two contexts and small variants."""
    moved = max(facts.bytes or 0.0, 0.6 * sum(cost.bytes or 0.0 for cost in facts.costs))
    return 3.0 + 3.2 * moved / 2**30


class Lanes:
    """Judges kernels in parallel, one back-end per thread; nothing is timed, so they may share the GPU."""

    def __init__(self, work: Work, log: Path, scratch: Path) -> None:
        self._operators = {
            task.task_id: Operator(task, facts) for task, facts in zip(work.tasks, work.facts, strict=True)
        }
        self._need = {task.task_id: _need_gib(facts) for task, facts in zip(work.tasks, work.facts, strict=True)}
        self._memory = Memory(GPU_GIB)
        self._log, self._scratch = log, scratch
        self._lock = threading.Lock()
        self._local = threading.local()
        self._opened: list[Json] = []

    def judge(self, kernel: Kernel) -> None:
        """Judge one kernel and write its line; never raises for a kernel or for an engine error."""
        ieee = tf32 = None
        error = ""
        backend = self._backend()
        with self._memory.take(self._need[kernel.task_id]):
            started = time.monotonic()
            try:
                ieee = self._verdict(backend, kernel, Precision.IEEE)
                if ieee.reason in NUMERIC:
                    tf32 = self._verdict(backend, kernel, Precision.TF32)
            except EngineError as failure:
                error = f"{type(failure).__name__}: {failure}"[:500]
        wall_s = round(time.monotonic() - started, 3)
        slim = [None if verdict is None else _slim(verdict) for verdict in (ieee, tf32)]
        self._write(Result(kernel.key, kernel.task_id, slim[0], slim[1], error, wall_s))

    def need(self, task_id: str) -> float:
        """Estimated device memory of one judgement, GiB."""
        return self._need[task_id]

    def _verdict(self, backend: Json, kernel: Kernel, precision: Precision) -> Verdict:
        operator = self._operators[kernel.task_id]
        contract = replace(operator.task.contract, precision=precision)
        task = replace(operator.task, contract=contract, task_hash=f"{operator.task.task_hash}-{precision.value}")
        verdict: Verdict = backend.judge(replace(operator, task=task), kernel.source)
        return verdict

    def _backend(self) -> Json:
        if not hasattr(self._local, "backend"):
            from benchmarks.compose import compose
            from engine.backends.cuda import CudaBackend

            scratch = Path(tempfile.mkdtemp(prefix="lane-", dir=self._scratch))
            backend = CudaBackend(compose("cuda", LIMITS), ROOT, scratch)
            with self._lock:
                self._opened.append(backend)
            self._local.backend = backend
        return self._local.backend

    def _write(self, result: Result) -> None:
        line = json.dumps(encode(result)) + "\n"
        with self._lock, self._log.open("a") as stream:
            stream.write(line)

    def close(self) -> None:
        for backend in self._opened:
            backend.__exit__(None, None, None)


def _slim(verdict: Verdict) -> Verdict:
    """Without the launch record, which is large and not needed in the tables."""
    return replace(verdict, trace=None, message=verdict.message[:400], checks=verdict.checks[-3:])


def judge(arguments: argparse.Namespace) -> None:
    """Judge what is left, until nothing is or the time is over; a second pass takes what memory refused in parallel."""
    work = decode(Work, json.loads(arguments.work.read_text()), str(arguments.work))
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "verdicts.jsonl"
    for old in arguments.resume:
        if old.exists() and old.resolve() != log.resolve():
            with log.open("a") as stream:
                stream.write(old.read_text())
    done = {key for key, result in read_results(log).items() if not result.error}
    left = [kernel for kernel in work.kernels if kernel.key not in done]
    deadline = time.monotonic() + arguments.seconds
    scratch = Path(tempfile.mkdtemp(prefix="judge-recorded-"))
    lanes = Lanes(work, log, scratch)
    try:
        _run(lanes, left, arguments.lanes, deadline)
        found = read_results(log)
        crowded = [kernel for kernel in left if kernel.key in found and _out_of_memory(found[kernel.key])]
        _run(lanes, crowded, 1, deadline)
    finally:
        lanes.close()
    finished = read_results(log)
    _say(f"{len(finished)} of {len(work.kernels)} kernels have a verdict; {len(crowded)} were judged again alone")
    summarise(work, finished, arguments.out)


def _run(lanes: Lanes, kernels: Sequence[Kernel], count: int, deadline: float) -> None:
    """A task's kernels stay together in one lane, because its references are made once there; large and small tasks
    alternate, so that lanes do not all wait for memory."""
    groups: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel.task_id].append(kernel)

    def one(group: Sequence[Kernel]) -> None:
        for kernel in group:
            if time.monotonic() < deadline:
                lanes.judge(kernel)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        by_size = sorted(groups, key=lanes.need)
        order = [name for pair in zip(by_size[::-1], by_size, strict=True) for name in pair]
        for future in [pool.submit(one, groups[name]) for name in dict.fromkeys(order)]:
            future.result()


def _out_of_memory(result: Result) -> bool:
    return any(v is not None and v.reason is Reason.OUT_OF_MEMORY for v in (result.ieee, result.tf32))


def read_results(log: Path) -> dict[str, Result]:
    """Results by kernel; the last line of a kernel counts, a torn last line does not."""
    found: dict[str, Result] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            tree = json.loads(line)
        except ValueError:
            continue
        result = decode(Result, tree, "line of verdicts.jsonl")
        found[result.key] = result
    return found


def summary(arguments: argparse.Namespace) -> None:
    work = decode(Work, json.loads(arguments.work.read_text()), str(arguments.work))
    summarise(work, read_results(arguments.out / "verdicts.jsonl"), arguments.out)


def summarise(work: Work, results: Mapping[str, Result], folder: Path) -> None:
    """Write summary.json and summary.md: verdicts by reason and class, and disagreements with the record by cause."""
    rows = [(kernel, results[kernel.key]) for kernel in work.kernels if kernel.key in results]
    tables = {
        "kernels": _totals(rows),
        "verdicts under ieee": Counter(_outcome(result.ieee, result.error) for _, result in rows),
        "verdicts under tf32, of those refused for numbers": Counter(
            _outcome(result.tf32, "") for _, result in rows if result.tf32 is not None
        ),
        "precision class": Counter(
            str(result.ieee.precision_class) for _, result in rows if result.ieee and result.ieee.precision_class
        ),
        "recorded runnable, not correct under ieee": Counter(
            _why_not(result) for kernel, result in rows if kernel.runnable and not _correct(result.ieee)
        ),
        "recorded failure, correct": Counter(
            f"{kernel.error_class}" for kernel, result in rows if not kernel.runnable and _accepted(result)
        ),
        "recorded failure class against our reason": Counter(
            f"{kernel.error_class} -> {_outcome(result.ieee, result.error)}"
            for kernel, result in rows
            if not kernel.runnable
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    details = [
        {"key": kernel.key, "id": short(digest_text(kernel.source)), "recorded": asdict(kernel) | {"source": ""}}
        | {"ieee": _outcome(result.ieee, result.error), "tf32": _outcome(result.tf32, ""), "wall_s": result.wall_s}
        for kernel, result in rows
    ]
    _write_csv(rows, folder / "verdicts.csv")
    (folder / "summary.json").write_text(json.dumps({"tables": tables, "kernels": details}, indent=1))
    text = "\n\n".join(_markdown(name, table) for name, table in tables.items()) + "\n"
    (folder / "summary.md").write_text(text)
    _say(text)


def _write_csv(rows: Sequence[tuple[Kernel, Result]], path: Path) -> None:
    with path.open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow([*CSV_RECORDED, *(f"ieee_{name}" for name in CSV_VERDICT), "tf32", "wall_s"])
        for kernel, result in rows:
            verdict = result.ieee
            ratio = "" if verdict is None or verdict.error_ratio is None else f"{verdict.error_ratio:.4g}"
            said = [] if verdict is None else [verdict.precision_class, verdict.variant, verdict.suite, ratio]
            recorded = [kernel.key, kernel.task_id, kernel.runnable, kernel.error_class]
            outcomes = [_outcome(verdict, result.error), *said, _outcome(result.tf32, "") if result.tf32 else ""]
            table.writerow([*recorded, *outcomes, f"{result.wall_s:.2f}"])


def _totals(rows: Sequence[tuple[Kernel, Result]]) -> dict[str, int]:
    return {
        "judged": len(rows),
        "tasks": len({kernel.task_id for kernel, _ in rows}),
        "recorded runnable": sum(bool(kernel.runnable) for kernel, _ in rows),
        "correct under ieee": sum(_correct(result.ieee) for _, result in rows),
        "correct only under tf32": sum(not _correct(r.ieee) and _correct(r.tf32) for _, r in rows),
        "engine errors": sum(bool(result.error) for _, result in rows),
        "wall seconds per kernel, median": round(sorted(r.wall_s for _, r in rows)[len(rows) // 2]) if rows else 0,
    }


def _correct(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.status is Status.CORRECT


def _accepted(result: Result) -> bool:
    return _correct(result.ieee) or _correct(result.tf32)


def _outcome(verdict: Verdict | None, error: str) -> str:
    if verdict is None:
        return "engine error" if error else "not run"
    return verdict.status.value if verdict.reason is None else f"{verdict.status.value}: {verdict.reason.value}"


def _why_not(result: Result) -> str:
    return "tf32 arithmetic" if _correct(result.tf32) else _outcome(result.ieee, result.error)


def _markdown(name: str, table: Mapping[str, int]) -> str:
    rows = sorted(table.items(), key=lambda item: -item[1]) if isinstance(table, Counter) else table.items()
    return f"### {name}\n\n| | n |\n| --- | --- |\n" + "\n".join(f"| {label} | {n} |" for label, n in rows)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("prepare")
    first.add_argument("--kernelbench", type=Path, required=True)
    first.add_argument("--recorded", type=Path, required=True)
    first.add_argument("--count", type=int, default=240)
    first.add_argument("--seed", type=int, default=1)
    first.set_defaults(run=prepare)
    second = commands.add_parser("judge")
    second.add_argument("--lanes", type=int, default=6)
    second.add_argument("--seconds", type=float, default=480.0)
    second.add_argument("--resume", type=Path, action="append", default=[])
    second.set_defaults(run=judge)
    third = commands.add_parser("summary")
    third.set_defaults(run=summary)
    for command in (second, third):
        command.add_argument("--work", type=Path, required=True)
    for command in (first, second, third):
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
