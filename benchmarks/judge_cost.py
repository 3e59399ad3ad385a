"""What a verdict costs: recorded KernelBench kernels at shipped sizes through judge and clock, drafts that end early.

    python -m benchmarks.judge_cost --work work.json --out FOLDER [--seconds 540] [--backend cuda|cpu]

Per kernel: `cold`, the first judgement of its task (references, baselines and torch.compile included); `warm`, others
of the task alone, baselines cached; `piped`, several at once in lanes. Each judgement is of a clone with other kernel
names, so that no compiled kernel is found again. Then drafts from as many threads as cores, which must hold no GPU.
Lines go to FOLDER/judge_cost.jsonl, and what is in it is not done again; `--resume OLD` adds lines of an earlier run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import secrets
import shutil
import tempfile
import threading
import time
import tokenize
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.compose import compose
from benchmarks.worklist import (
    ROOT,
    BenchmarkError,
    Entry,
    Lines,
    Spread,
    WorkList,
    gpu_memory_mib,
    gpu_processes,
    machine,
    read_work,
    say,
    spread,
    write_report,
)
from engine.backends import open_backend
from engine.backends.cuda import kernel_names
from engine.backends.detect import resolve
from engine.backends.seam import Backend
from engine.canonical import Json
from engine.errors import EngineError
from engine.records import Judged, Measurement, Operator, Precision, Status, Verdict

SUITES, HALFWIDTH = 5, 0.01
"""What a judgement must have to count for the target: suites checked, and half the interval of the speed-up."""

TARGETS = {"gpu_s": None, "alone_s": 0.6, "wall_s": 1.0, "drafts_per_s": 10.0}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One candidate through judge and, where correct, clock. Seconds of wall and of the GPU held."""

    verdict: Verdict
    measurement: Measurement | None
    judge_s: float
    measure_s: float

    def row(self, kind: str, entry: Entry, backend: str) -> dict[str, Json]:
        """`gpu_s`: with the GPU, beside others (checks, preparing the clock) or alone; None where a part that ran on
        one does not state it. `alone_s`: of these, with the lease that lets nobody else in."""
        parts = [held(record, backend) for record in (self.verdict, self.measurement) if record is not None]
        ratios = () if self.measurement is None else self.measurement.ratios
        halfwidths = [(ratio.hi - ratio.lo) / 2 / ratio.value for ratio in ratios if ratio.n > 0]
        return {
            "kind": kind,
            "key": entry.key,
            "task": entry.task_id,
            "precision": None if entry.precision is None else entry.precision.value,
            "outcome": outcome(self.verdict),
            "mode": self.verdict.mode.value,
            "wall_s": self.judge_s + self.measure_s,
            "judge_s": self.judge_s,
            "measure_s": self.measure_s,
            "gpu_s": None
            if None in parts
            else sum(part for part in parts if part is not None) + beside(self.measurement),
            "alone_s": 0.0 if self.measurement is None else self.measurement.gpu_s,
            "stages": dict(self.verdict.stages),
            "suites": sorted({check.suite for check in self.verdict.checks if check.passed}),
            "checks": len(self.verdict.checks),
            "halfwidth": max(halfwidths, default=None),
            "blocks": max((ratio.n for ratio in ratios), default=None),
            "note": self.verdict.message[:200] if self.measurement is None else self.measurement.note[:200],
        }


def require_costs() -> None:
    """Raises BenchmarkError when this version of the engine does not state what a judgement costs."""
    for kind, wanted in ((Verdict, ("gpu_s", "stages")), (Measurement, ("gpu_s",))):
        missing = sorted(set(wanted) - {field.name for field in fields(kind)})
        if missing:
            raise BenchmarkError(
                f"engine.records.{kind.__name__} has no {', '.join(missing)}; expected a judge that states its cost"
            )


def held(record: Verdict | Measurement, backend: str) -> float | None:
    """Seconds for which it held a GPU: 0 on a back-end without one; None when it ran on one and does not say."""
    if backend != "cuda":
        return 0.0
    ran = "check" in record.stages if isinstance(record, Verdict) else bool(record.timings)
    return None if ran and record.gpu_s <= 0 else record.gpu_s


def beside(measurement: Measurement | None) -> float:
    """Seconds in which a timing used the GPU beside others, to make buffers and to compare results."""
    said = {} if measurement is None else measurement.settings
    return float(said["beside_others_s"]) if "beside_others_s" in said else 0.0


def outcome(verdict: Verdict) -> str:
    return verdict.status.value if verdict.reason is None else f"{verdict.status.value}: {verdict.reason.value}"


def clone(source: str, tag: str) -> str:
    """The same program with other kernel names; of a text that is no Python, the text with a comment."""
    try:
        names = set(kernel_names(source, None))
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError):
        return f"{source}\n# {tag}\n"
    lines = source.splitlines(keepends=True)
    for token in reversed(tokens):
        if token.type == tokenize.NAME and token.string in names:
            row, column = token.start[0] - 1, token.end[1]
            lines[row] = f"{lines[row][:column]}_{tag}{lines[row][column:]}"
    return "".join(lines)


def judged(backend: Backend, operator: Operator, source: str) -> Judgement:
    """Judge, and time where correct."""
    started = time.monotonic()
    verdict = backend.judge(operator, source)
    between = time.monotonic()
    if verdict.status is not Status.CORRECT:
        return Judgement(verdict, None, between - started, 0.0)
    measurement = backend.measure(operator, Judged(source, verdict.trace), None)
    return Judgement(verdict, measurement, between - started, time.monotonic() - between)


class Run:
    """One run over the work list: its back-ends, lines and deadline."""

    def __init__(self, work: WorkList, lines: Lines, backend: str, deadline: float, limits: Mapping[str, Json]) -> None:
        self.work, self.lines, self.backend, self.deadline = work, lines, backend, deadline
        self._settings = compose(backend, limits)
        self._scratch = Path(tempfile.mkdtemp(prefix="judge-cost-"))
        self._stack = contextlib.ExitStack()
        self._count = 0
        self._nonce = secrets.token_hex(3)
        """No compiled kernel of an earlier run is found again."""
        self._lock = threading.Lock()

    def open(self) -> Backend:
        with self._lock:
            self._count += 1
            folder = self._scratch / f"lane{self._count}"
        folder.mkdir()
        return self._stack.enter_context(open_backend(self.backend, self._settings, ROOT, folder))

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.deadline

    def alone(self, entry: Entry, backend: Backend, repeats: int) -> None:
        """The cold and the warm judgements of one kernel, nothing else running."""
        operator = self._operator(entry)
        rows = []
        for number in range(repeats + 1):
            kind = "cold" if number == 0 else "warm"
            source = self._clone(entry, f"c{number}")
            row = judged(backend, operator, source).row(kind, entry, self.backend)
            rows.append({"id": f"{kind}|{entry.key}|{number}", **row})
            if row["outcome"] != Status.CORRECT.value:
                break
        self.lines.add(*rows)

    def piped(self, entry: Entry, lanes: Sequence[Backend], clones: int) -> None:
        """`clones` judgements in as many threads as lanes, after one in each lane that opens the task there."""
        operator = self._operator(entry)
        free = list(lanes)

        def one(number: int, backend: Backend) -> dict[str, Json]:
            return judged(backend, operator, self._clone(entry, f"p{number}")).row("piece", entry, self.backend)

        def next_free(number: int) -> dict[str, Json]:
            with self._lock:
                backend = free.pop()
            try:
                return one(number, backend)
            finally:
                with self._lock:
                    free.append(backend)

        with ThreadPoolExecutor(len(lanes)) as pool:
            list(pool.map(one, range(len(lanes)), lanes))
            started = time.monotonic()
            rows = list(pool.map(next_free, range(len(lanes), len(lanes) + clones)))
        elapsed = time.monotonic() - started
        row: dict[str, Json] = {"id": f"piped|{entry.key}", "kind": "piped", "key": entry.key, "task": entry.task_id}
        row |= {"lanes": len(lanes), "clones": clones, "wall_s": elapsed / clones, "elapsed_s": elapsed}
        gpu = [found["gpu_s"] for found in rows]
        row |= {
            "gpu_s": None if None in gpu else sum(gpu) / clones,
            "alone_s": sum(found["alone_s"] for found in rows) / clones,
            "outcomes": dict(Counter(found["outcome"] for found in rows)),
            "notes": dict(Counter(found["note"] for found in rows if found["note"])),
        }
        self.lines.add(row)

    def drafts(self, threads: int, rounds: int) -> None:
        """Every draft once, which shows those that end before they run; then these, `rounds` times, for the rate: from
        `threads` threads of one back-end."""
        backend = self.open()
        entries = self.work.chosen(self.work.drafts)
        with ThreadPoolExecutor(threads) as pool:
            first = [row for row in pool.map(lambda n: self._draft(backend, entries[n], n), range(len(entries))) if row]
            ending = {row["key"] for row in first if row["gpu_s"] == 0 and "check" not in row["stages"]}
            early = [entry for entry in entries if entry.key in ending] * rounds
            numbers = range(len(entries), len(entries) + len(early))
            started = time.monotonic()
            rows = [row for row in pool.map(lambda e, n: self._draft(backend, e, n), early, numbers) if row]
            elapsed = time.monotonic() - started
        if rows:
            self.lines.add(*first, *rows, draft_rate(rows, len(first), threads, elapsed))

    def _draft(self, backend: Backend, entry: Entry, number: int) -> dict[str, Json] | None:
        """None when the time is over."""
        if self.over:
            return None
        started = time.monotonic()
        verdict = backend.judge(self._operator(entry), self._clone(entry, f"d{number}"))
        row: dict[str, Json] = {"id": f"draft|{number}", "kind": "draft", "key": entry.key, "task": entry.task_id}
        row |= {"outcome": outcome(verdict), "wall_s": time.monotonic() - started}
        return row | {"gpu_s": held(verdict, self.backend), "stages": dict(verdict.stages)}

    def _clone(self, entry: Entry, tag: str) -> str:
        return clone(entry.source, f"{tag}_{self._nonce}")

    def _operator(self, entry: Entry) -> Operator:
        return self.work.operator(entry.task_id, entry.precision or Precision.IEEE)

    def close_lanes(self) -> None:
        """What comes next has the machine for itself."""
        self._stack.close()

    def close(self) -> None:
        self.close_lanes()
        shutil.rmtree(self._scratch, ignore_errors=True)


def draft_rate(rows: Sequence[Mapping[str, Json]], asked: int, threads: int, elapsed_s: float) -> dict[str, Json]:
    """Rejected drafts per second; one that held a GPU this time does not count. `asked`: drafts of the first round."""
    early = [row for row in rows if row["gpu_s"] == 0 and "check" not in row["stages"]]
    row: dict[str, Json] = {"id": "drafts", "kind": "drafts", "threads": threads, "drafts": asked}
    row |= {"ending_early": len({found["key"] for found in early}), "n": len(rows), "rejected_without_gpu": len(early)}
    return row | {"elapsed_s": elapsed_s, "drafts_per_s": len(early) / elapsed_s, "target": TARGETS["drafts_per_s"]}


def medians(rows: Sequence[Mapping[str, Json]], column: str) -> list[float]:
    """One value a kernel: the median of its judgements that state it."""
    by_key: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row[column] is not None:
            by_key[row["key"]].append(float(row[column]))
    return [found.median for values in by_key.values() if (found := spread(values)) is not None]


def complete(row: Mapping[str, Json]) -> bool:
    """Whether a judgement has all that the target asks for."""
    return (
        row["outcome"] == Status.CORRECT.value
        and len(row["suites"]) >= SUITES
        and row["halfwidth"] is not None
        and row["halfwidth"] <= HALFWIDTH
    )


def tables(lines: Lines) -> dict[str, list[dict[str, Json]]]:
    """Medians over problems for each way of asking, the drafts, and one row a problem."""
    cold, warm, piped = lines.of("cold"), lines.of("warm"), lines.of("piped")
    correct = {name: [row for row in rows if row["outcome"] == "correct"] for name, rows in (("c", cold), ("w", warm))}
    groups: dict[str, Sequence[Mapping[str, Json]]] = {
        "cold: first of its task": correct["c"],
        "warm: baselines cached": correct["w"],
        f"warm, >= {SUITES} suites, within ±{HALFWIDTH:.0%}": [row for row in warm if complete(row)],
        "piped, amortised": [row for row in piped if set(row["outcomes"]) == {Status.CORRECT.value}],
    }
    costs: list[dict[str, Json]] = []
    for name, rows in groups.items():
        for column in ("wall_s", "gpu_s", "alone_s"):
            found = spread(medians(rows, column))
            if found is not None:
                costs.append({"judgements": name, "of": column, "target": TARGETS[column], **found.cells("s")})
    return {
        "Cost of a correct candidate, over problems": costs,
        "Drafts": [{k: v for k, v in row.items() if k not in ("id", "kind")} for row in lines.of("drafts")],
        "Drafts by outcome": draft_rows(lines.of("draft")),
        "Stages of warm judgements": stage_rows(correct["w"]),
        "Problems": problem_rows(cold, warm, piped),
        "Memory": [{k: v for k, v in row.items() if k not in ("id", "kind")} for row in lines.of("memory")],
    }


def draft_rows(rows: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    found = []
    for name in sorted({row["outcome"] for row in rows}):
        walls = spread(row["wall_s"] for row in rows if row["outcome"] == name)
        reached = sum("check" in row["stages"] for row in rows if row["outcome"] == name)
        found.append(
            {"outcome": name, **({} if walls is None else walls.cells("wall s")), "reached the check": reached}
        )
    return found


def stage_rows(rows: Sequence[Mapping[str, Json]]) -> list[dict[str, Json]]:
    found = []
    for stage in dict.fromkeys(name for row in rows for name in row["stages"]):
        seconds = spread(row["stages"][stage] for row in rows if stage in row["stages"])
        found.append({"stage": stage, **({} if seconds is None else seconds.cells("s"))})
    measured = spread(row["measure_s"] for row in rows)
    return [*found, *([] if measured is None else [{"stage": "measure", **measured.cells("s")}])]


def problem_rows(
    cold: Sequence[Mapping[str, Json]], warm: Sequence[Mapping[str, Json]], piped: Sequence[Mapping[str, Json]]
) -> list[dict[str, Json]]:
    found = []
    for row in cold:
        mine = [other for other in warm if other["key"] == row["key"]]
        shared = [other for other in piped if other["key"] == row["key"]]
        walls = spread(other["wall_s"] for other in mine)
        gpu = spread(other["gpu_s"] for other in mine if other["gpu_s"] is not None)
        cells = {"problem": row["task"], "precision": row["precision"], "outcome": row["outcome"], "mode": row["mode"]}
        cells |= {"cold wall s": row["wall_s"], "cold gpu s": row["gpu_s"]}
        if walls is not None:
            cells |= {"warm n": walls.n, "warm wall s": walls.median, "warm wall min-max": _range(walls)}
            cells |= {"warm gpu s": gpu and gpu.median, "warm gpu min-max": gpu and _range(gpu)}
            alone = spread(other["alone_s"] for other in mine)
            cells |= {"warm alone s": alone and alone.median}
            cells |= {"suites": len(mine[-1]["suites"]), "half interval": mine[-1]["halfwidth"]}
        found.append(cells | {"piped wall s": shared[0]["wall_s"] if shared else None, "note": row["note"]})
    return found


def _range(found: Spread) -> str:
    return f"{found.least:.3g} - {found.largest:.3g}"


def run(arguments: argparse.Namespace) -> Lines:
    """What is left, until the time is over: kernels alone, drafts, then kernels in lanes."""
    require_costs()
    lines = Lines(arguments.out / "judge_cost.jsonl")
    for old in arguments.resume:
        lines.add(*(row for row in Lines(old).rows if row["id"] not in lines.done))
    work = read_work(arguments.work)
    backend = resolve(arguments.backend)
    run = Run(work, lines, backend, time.monotonic() + arguments.seconds, json.loads(arguments.settings))
    entries = work.chosen(work.cost)[: arguments.kernels]
    try:
        if "alone" not in arguments.skip:
            _alone(run, [e for e in entries if f"cold|{e.key}|0" not in lines.done], arguments.repeats)
        if "drafts" not in arguments.skip and "drafts" not in lines.done and work.drafts and not run.over:
            run.drafts(arguments.threads or os.cpu_count() or 1, arguments.rounds)
            run.close_lanes()
        left = [e for e in entries[: arguments.piped] if f"piped|{e.key}" not in lines.done and _was_correct(e, lines)]
        if left and "piped" not in arguments.skip and not run.over:
            lanes = [run.open() for _ in range(arguments.lanes)]
            _each(run, left, lambda entry: run.piped(entry, lanes, arguments.clones))
    finally:
        run.close()
    return lines


def _alone(run: Run, entries: Sequence[Entry], repeats: int) -> None:
    before = gpu_memory_mib()
    backend = run.open()
    _each(run, entries, lambda entry: run.alone(entry, backend, repeats))
    after = gpu_memory_mib()
    if before is not None and after is not None and "memory" not in run.lines.done:
        row: dict[str, Json] = {"id": "memory", "kind": "memory", "before_mib": before, "with_one_lane_mib": after}
        run.lines.add(row | {"processes": [" ".join(map(str, found)) for found in gpu_processes()]})
    run.close_lanes()


def _each(run: Run, entries: Sequence[Entry], do: Callable[[Entry], None]) -> None:
    for entry in entries:
        if run.over:
            return
        try:
            do(entry)
        except EngineError as error:
            say(f"{entry.key}: {type(error).__name__}: {error}")
            run.lines.add(
                {"id": f"error|{entry.key}|{time.time()}", "kind": "error", "key": entry.key, "text": str(error)}
            )


def _was_correct(entry: Entry, lines: Lines) -> bool:
    return any(row["key"] == entry.key and row["outcome"] == "correct" for row in lines.of("cold"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, action="append", default=[])
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--settings", default="{}", help="JSON of overrides by dotted path")
    parser.add_argument("--kernels", type=int, default=1000, help="at most so many of the list")
    parser.add_argument("--repeats", type=int, default=3, help="warm judgements of each kernel")
    parser.add_argument("--piped", type=int, default=8, help="kernels that are also judged in lanes")
    parser.add_argument("--lanes", type=int, default=3)
    parser.add_argument("--clones", type=int, default=9)
    parser.add_argument("--threads", type=int, help="for drafts; as many as cores when absent")
    parser.add_argument("--rounds", type=int, default=3, help="times that each draft is judged")
    parser.add_argument("--skip", nargs="*", default=[], choices=["alone", "drafts", "piped"])
    arguments = parser.parse_args()
    lines = run(arguments)
    found = tables(lines)
    write_report(arguments.out, "judge_cost", machine(resolve(arguments.backend)), found)
    say((arguments.out / "judge_cost.md").read_text(encoding="utf-8"))
    say(f"errors: {len(lines.of('error'))}")


if __name__ == "__main__":
    main()
