"""The judge's benchmarks in sequence within a time limit, and their results in few files.

    python -m benchmarks.all_judge --work work.json --out FOLDER [--peers FOLDER] [--seconds 560] [--resume lines.tgz]
                                   [--only NAME ...] [--share NAME=SECONDS ...] [--backend auto]

Each is a process of its own whose lines go to --scratch; after each, FOLDER holds report.md, report.json, lines.tgz
(all lines, for --resume) and logs.tgz, so that a run cut short leaves what it has. What one does not use of its share
goes to those that follow.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.worklist import ROOT, BenchmarkError, machine, say
from engine.backends.detect import resolve
from engine.canonical import Json

SHARES = {"judge_cost": 0.3, "judge_aa": 0.35, "recorded_speedups": 0.15, "judge_soak": 0.2, "peers": 0.0}
"""Of the time, in this order; peers gets what is left, or with --share what is said."""

LEAST_S = 15.0
"""A benchmark that would get less is left for the next run."""

GRACE_S = 45.0
"""After its time, for what a benchmark has begun; then it is interrupted, and killed after as much again."""


@dataclass(frozen=True, slots=True)
class Step:
    """One benchmark: its name, its arguments besides --out and --seconds, and seconds given."""

    name: str
    arguments: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    name: str
    status: int | None
    """None: not started."""
    given_s: float
    wall_s: float


def plan(arguments: argparse.Namespace, names: Sequence[str]) -> list[Step]:
    """What to run, with shares of the whole time; a benchmark without a share gets all that is left when it starts."""
    given = dict(part.split("=", 1) for part in arguments.share)
    unknown = sorted(set(given) - set(SHARES))
    if unknown:
        raise BenchmarkError(f"--share: expected {', '.join(SHARES)}, got {', '.join(unknown)}")
    backend = ("--backend", arguments.backend)
    work = ("--work", str(arguments.work))
    own: Mapping[str, tuple[str, ...]] = {
        "judge_cost": (*work, *backend),
        "judge_aa": ("--layer", "stopwatch" if resolve(arguments.backend) == "cuda" else "fake"),
        "recorded_speedups": (*work, *backend),
        "judge_soak": backend,
        "peers": (*work, "--peers", str(arguments.peers), "--ours", str(lines_of(arguments.scratch, "judge_cost"))),
    }
    seconds = {name: float(given[name]) if name in given else SHARES[name] * arguments.seconds for name in names}
    return [Step(name, own[name], seconds[name]) for name in names]


def lines_of(scratch: Path, name: str) -> Path:
    return scratch / name / f"{name}.jsonl"


def run_step(step: Step, scratch: Path, seconds: float) -> Ended:
    """Run one benchmark for about `seconds`; interrupted, it still ends its processes and keeps its lines."""
    folder = scratch / step.name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{step.name}", "--out", str(folder), "--seconds", f"{seconds:.0f}"]
    started = time.monotonic()
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen([*command, *step.arguments], cwd=ROOT, stdout=log, stderr=log)
        for wait_s, then in ((seconds + GRACE_S, signal.SIGINT), (GRACE_S, signal.SIGKILL)):
            try:
                process.wait(wait_s)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(then)
        status = process.wait()
    return Ended(step.name, status, seconds, time.monotonic() - started)


def share_of(step: Step, later: Sequence[Step], left: float) -> float:
    """Seconds for a step: its share with what earlier ones left over, grace for what it has begun aside. When earlier
    ones took too long it still has its share, and the last go without."""
    usable = left - GRACE_S
    return max(usable - sum(other.seconds for other in later), min(step.seconds, usable))


def pack(scratch: Path, out: Path, ended: Sequence[Ended], facts: Json) -> None:
    """At most four files in `out`: the reports as one text and one tree, all lines, all logs."""
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name in SHARES if (scratch / name).is_dir()]
    reports = {name: scratch / name / f"{name}.json" for name in names}
    trees = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in reports.items() if path.exists()}
    runs = [{"name": e.name, "status": e.status, "given_s": e.given_s, "wall_s": e.wall_s} for e in ended]
    (out / "report.json").write_text(json.dumps({"machine": facts, "runs": runs, "reports": trees}), encoding="utf-8")
    texts = [scratch / name / f"{name}.md" for name in names]
    body = "\n\n".join(path.read_text(encoding="utf-8") for path in texts if path.exists())
    (out / "report.md").write_text(f"{json.dumps(facts)}\n\n{json.dumps(runs, indent=1)}\n\n{body}", encoding="utf-8")
    for archive, pattern in (("lines.tgz", "*/*.jsonl"), ("logs.tgz", "*/log.txt")):
        with tarfile.open(out / archive, "w:gz") as packed:
            for path in sorted(scratch.glob(pattern)):
                packed.add(path, str(path.relative_to(scratch)))


def unpack(archive: Path, scratch: Path) -> None:
    """Lines of an earlier run, where this one has none."""
    with tarfile.open(archive, "r:gz") as packed:
        for member in packed.getmembers():
            path = Path(member.name)
            stream = packed.extractfile(member)
            known = path.parent.name in SHARES and path.name == f"{path.parent.name}.jsonl"
            target = lines_of(scratch, path.parent.name)
            if stream is not None and known and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(stream.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peers", type=Path, help="checked-out evaluators; without it they are left out")
    parser.add_argument("--scratch", type=Path, help="keep it over several commands to resume")
    parser.add_argument("--resume", type=Path, help="lines.tgz of an earlier run")
    parser.add_argument("--seconds", type=float, default=560.0, help="for all together")
    parser.add_argument("--only", nargs="+", choices=list(SHARES))
    parser.add_argument("--share", nargs="*", default=[], help="NAME=SECONDS instead of its share")
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    arguments.scratch = arguments.scratch or Path(tempfile.mkdtemp(prefix="all-judge-"))
    if arguments.resume is not None:
        unpack(arguments.resume, arguments.scratch)
    names = [name for name in arguments.only or SHARES if name != "peers" or arguments.peers is not None]
    deadline = time.monotonic() + arguments.seconds
    steps = plan(arguments, names)
    facts = machine(resolve(arguments.backend))
    ended: list[Ended] = []
    for number, step in enumerate(steps):
        seconds = share_of(step, steps[number + 1 :], deadline - time.monotonic())
        done = Ended(step.name, None, seconds, 0.0) if seconds < LEAST_S else run_step(step, arguments.scratch, seconds)
        ended.append(done)
        pack(arguments.scratch, arguments.out, ended, facts)
        say(f"{done.name}: status {done.status}, {done.wall_s:.0f} s of {done.given_s:.0f} s")
    say((arguments.out / "report.md").read_text(encoding="utf-8")[-9000:])
    sys.exit(0 if all(done.status == 0 for done in ended) else 1)


if __name__ == "__main__":
    main()
