"""A threshold swept on a device: what the first job measures, and what is left for the others to pay.

    python -m benchmarks.device_sweep --out FOLDER [--tasks 10] [--headroom 1.1,1.5,3] [--backend cuda] [OVERRIDE ...]

Operators and scripted replies of benchmarks/sweep_tasks.py at sizes for a GPU, the judge, the clock and the profilers
real. One command sweeps `thresholds.floor_headroom`: below it a stage is left out as there is nothing to gain. The
script charges 5 700 tokens and 0.01 USD a reply, so calls that are not repeated show in dollars, too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.sweep_tasks import overrides, write_tasks
from benchmarks.worklist import ROOT, machine, say, write_report
from engine.canonical import Json
from engine.store import query

SIZES = (2048, 1024, 4096)
JOBS = """
SELECT job, floor_headroom, solved, geomean, score_kind, stages_run, stages_skipped, exits, outcome, tokens, usd,
       wall_s, judge_s, gpu_s, run_id FROM sweep ORDER BY job"""
STEPS = "SELECT run_id, kind, count(*), sum(wall_s) FROM steps GROUP BY run_id, kind ORDER BY run_id, kind"
BEST = "SELECT run_id, task_id, speedup FROM leaderboard ORDER BY run_id, task_id"


def sweep(folder: Path, tasks: int, headroom: str, backend: str, more: Sequence[str]) -> float:
    """Run it below `folder`; wall seconds. What the engine says goes to this process's own output."""
    write_tasks(folder, tasks, SIZES)
    command = [
        sys.executable,
        "-m",
        "engine",
        "-m",
        *overrides(folder, folder / "results", replay=False, backend=backend),
    ]
    command += [f"thresholds.floor_headroom={headroom}", f"hydra.sweep.dir={folder / 'hydra'}", *more]
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, check=False)
    say(f"exit {done.returncode}")
    return time.monotonic() - started


def tables(results: Path, wall_s: float) -> Mapping[str, Sequence[Mapping[str, Json]]]:
    jobs = query(results, JOBS)
    rows: list[dict[str, Json]] = [dict(zip(jobs.columns, row, strict=True)) for row in jobs.rows]
    paid: dict[str, dict[str, Json]] = defaultdict(dict)
    for run_id, kind, count, seconds in query(results, STEPS).rows:
        paid[run_id][kind] = str(count) if seconds is None else f"{count}: {seconds:.1f} s"
    best: dict[str, dict[str, Json]] = defaultdict(dict)
    for run_id, task, speedup in query(results, BEST).rows:
        best[task][run_id] = speedup
    by_run = {row["run_id"]: f"job {row['job']}" for row in rows}
    return {
        "Jobs": rows,
        "Steps that each job paid for": [{"job": row["job"], **paid[str(row["run_id"])]} for row in rows],
        "Best speed-up": [
            {"task": task, **{by_run[run]: value for run, value in found.items() if run in by_run}}
            for task, found in sorted(best.items())
        ],
        "The sweep": [{"wall_s": wall_s}],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="tasks and results, kept; a temporary one otherwise")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--headroom", default="1.1,1.5,3")
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        wall_s = sweep(folder, given.tasks, given.headroom, given.backend, given.overrides)
        found = tables(folder / "results", wall_s)
    say(write_report(given.out, "device_sweep", machine(given.backend), found))


if __name__ == "__main__":
    main()
