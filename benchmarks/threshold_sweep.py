"""A sweep over thresholds after one run that observed its rules: what it costs, and whether it tells the truth.

    python -m benchmarks.threshold_sweep [--tasks 20] [--values 4] [--sample 3] [--jobs 8] [--folder F] [--out FILE]

1. One run with search.rules=observe pays for every path.
2. values**3 jobs over three thresholds, in one process: seconds, model calls and judge steps (lines of the ledger).
3. A sample of the jobs is run from scratch, each in a results folder of its own, and compared with its row of the view.
4. --jobs concurrent engines run jobs of the sweep against one copy of the observed results while a reader holds the
   database open; their rows are compared with the sweep's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.sweep_tasks import overrides, write_tasks
from engine.store import query

ROOT = Path(__file__).resolve().parents[1]
SWEPT = {
    "thresholds.poor_matmul_speedup": (0.05, 0.2, 0.5, 0.9),
    "thresholds.swizzle_speedup": (0.3, 0.7, 0.95, 2.0),
    "thresholds.staging_speedup": (1.55, 1.6, 1.68, 2.0),
}
COLUMNS = (
    "tasks, solved, geomean, score_kind, stages_run, stages_skipped, exits, outcome, tokens, round(usd, 9), unpriced"
)
"""What a run from scratch tells in the same numbers; not its seconds, which a sweep saves."""
Run = Callable[[str, Sequence[str]], float]
MODEL = ("reply",)
FREE = ("facts",)


@dataclass(frozen=True, slots=True)
class Result:
    """`calls`, `steps`: paid for during the sweep. `different`: jobs whose row is not that of a run from scratch, of
    `sampled` ones. `lost`: rows of the concurrent jobs that are missing or not as in the sweep."""

    tasks: int
    jobs: int
    observe_s: float
    observed_steps: int
    sweep_s: float
    calls: int
    steps: int
    rows: int
    distinct: int
    sampled: int
    different: int
    scratch_s: tuple[float, ...]
    concurrent: int
    concurrent_s: float
    failed: int
    lost: int
    reads: int

    @property
    def clean(self) -> bool:
        return not (self.calls or self.steps or self.different or self.failed or self.lost) and self.rows == self.jobs


def ledger(results: Path) -> Counter[str]:
    path = results / "steps" / "ledger.jsonl"
    return Counter(json.loads(line)["kind"] for line in path.read_text().splitlines()) if path.exists() else Counter()


def engine(module: str, arguments: Sequence[str]) -> float:
    """Run one command to its end; wall seconds."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"exit {done.returncode}: {' '.join(arguments)}\n{done.stderr[-3000:]}")
    return time.monotonic() - started


def rows_of(results: Path) -> dict[str, tuple[object, ...]]:
    """The rows of the view `sweep` by the thresholds that its jobs were given."""
    names = ", ".join(name.partition(".")[2] for name in SWEPT)
    found = query(results, f"SELECT {names}, {COLUMNS} FROM sweep ORDER BY job").rows
    return {key(row[: len(SWEPT)]): tuple(row[len(SWEPT) :]) for row in found}


def key(values: Sequence[object]) -> str:
    return " ".join(f"{float(str(value)):g}" for value in values)


def key_of(job: Sequence[str]) -> str:
    return key([override.partition("=")[2] for override in job])


def sweep_arguments(values: int) -> list[str]:
    return [f"{name}={','.join(f'{value:g}' for value in given[:values])}" for name, given in SWEPT.items()]


def jobs_of(values: int) -> Iterator[list[str]]:
    """The overrides of each job, in the order of Hydra's sweeper."""
    for chosen in itertools.product(*(given[:values] for given in SWEPT.values())):
        yield [f"{name}={value:g}" for name, value in zip(SWEPT, chosen, strict=True)]


@contextmanager
def reader(results: Path, log: Path) -> Iterator[None]:
    """A process that holds the database open and asks it again and again, as a notebook does."""
    code = (
        "import duckdb, sys, time\n"
        "db = duckdb.connect(sys.argv[1], read_only=True)\n"
        "n = 0\n"
        "while True:\n"
        "    db.execute('SELECT count(*) FROM sweep').fetchall(); n += 1\n"
        "    open(sys.argv[2], 'w').write(str(n)); time.sleep(0.05)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(results / "results.duckdb"), str(log)])
    try:
        while process.poll() is None and not log.exists():
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def concurrently(module: str, base: Sequence[str], jobs: Sequence[Sequence[str]], results: Path) -> tuple[int, float]:
    """All jobs at once, each an engine of its own; how many failed, and wall seconds."""
    started = time.monotonic()
    running = []
    for number, job in enumerate(jobs):
        named = ["-m", *base, *job, "run.sweep=together", f"hydra.sweep.dir={results / 'hydra' / str(number)}"]
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *named], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        )
    failed = 0
    for process in running:
        _, error = process.communicate()
        if process.returncode != 0:
            failed += 1
            sys.stderr.write(error.decode()[-2000:])
    return failed, time.monotonic() - started


def measure(
    folder: Path, *, tasks: int, values: int, sample: int, jobs: int, module: str = "engine", run: Run = engine
) -> Result:
    """Everything, below `folder`. `run` runs one command of `module`; the concurrent ones are always processes."""
    write_tasks(folder, tasks)
    results = folder / "results"
    base = overrides(folder, results, replay=True)
    observe_s = run(module, [*overrides(folder, results, replay=False), "search.rules=observe"])
    observed = ledger(results)
    copy = folder / "together"
    subprocess.run(["cp", "-r", str(results), str(copy)], check=True)
    sweep = ["-m", *base, *sweep_arguments(values), f"hydra.sweep.dir={folder / 'hydra'}"]
    sweep_s = run(module, sweep)
    new = ledger(results) - observed
    told = rows_of(results)
    every = list(jobs_of(values))
    chosen = every[:: max(1, len(every) // sample)][:sample] if sample else []
    scratch_s, different = [], 0
    for number, job in enumerate(chosen):
        fresh = folder / f"scratch{number}"
        alone = ["-m", *overrides(folder, fresh, replay=True), *job, f"hydra.sweep.dir={folder / 'hydra'}"]
        scratch_s.append(round(run(module, alone), 1))
        different += rows_of(fresh) != {name: row for name, row in told.items() if name in rows_of(fresh)}
    together = every[:: max(1, len(every) // jobs)][:jobs] if jobs else []
    failed, together_s, lost, reads = 0, 0.0, 0, 0
    if together:
        first = [*overrides(folder, copy, replay=True), "search.rules=observe"]
        engine(module, first)
        with reader(copy, folder / "reads"):
            failed, together_s = concurrently(module, overrides(folder, copy, replay=True), together, copy)
        reads = int((folder / "reads").read_text())
        seen = rows_of(copy)
        lost = sum(name not in seen or seen[name] != told[name] for name in map(key_of, together))
    return Result(
        tasks=tasks,
        jobs=len(every),
        observe_s=round(observe_s, 1),
        observed_steps=sum(observed.values()),
        sweep_s=round(sweep_s, 1),
        calls=sum(new[kind] for kind in MODEL),
        steps=sum(count for kind, count in new.items() if kind not in (*MODEL, *FREE)),
        rows=len(told),
        distinct=len(set(told.values())),
        sampled=len(chosen),
        different=different,
        scratch_s=tuple(scratch_s),
        concurrent=len(together),
        concurrent_s=round(together_s, 1),
        failed=failed,
        lost=lost,
        reads=reads,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--values", type=int, default=4, help="of each of the three thresholds")
    parser.add_argument("--sample", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--engine", default="engine", help="the module that is run")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one otherwise")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(
            given.folder or Path(scratch),
            tasks=given.tasks,
            values=given.values,
            sample=given.sample,
            jobs=given.jobs,
            module=given.engine,
        )
    text = json.dumps(asdict(result), indent=1) + "\n"
    sys.stdout.write(text)
    if given.out:
        given.out.write_text(text)
    return 0 if result.clean else 1


if __name__ == "__main__":
    sys.exit(main())
