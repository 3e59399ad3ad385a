"""Kill a replayed run with SIGKILL at random moments, repeat the same command, and count what was done twice.

    python -m benchmarks.kill_and_resume --kills 50 [--seed 1] [--out FOLDER] [-- OVERRIDE ...]

After the last kill the command runs to its end. Then every step in the ledger must be there once, every event of the
journal once, and the journal must have the same rows as a run that nobody interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINE = (sys.executable, "-m", "engine")
PAUSE_S = 0.3
KILLS_A_TRIAL = 10
"""A killed run finishes more of itself with every command; fresh trials spread the kills over the whole of it."""
ROW = ("kind", "task_id", "stage", "candidate_id", "role", "attempt", "sample", "who", "over", "metric", "rule")
"""What names a row without its measured values: those differ between two runs."""


@dataclass(frozen=True, slots=True)
class Trial:
    """`repeated_steps`: ledger keys that occur twice; `doubled_events`, `lost_rows`, `extra_rows`: against a run that
    nobody interrupted; `moments`: how many events the journal had when each kill struck."""

    kills: int
    commands: int
    steps: int
    repeated_steps: int
    events: int
    doubled_events: int
    lost_rows: int
    extra_rows: int
    moments: tuple[int, ...]

    @property
    def clean(self) -> bool:
        return not (self.repeated_steps or self.doubled_events or self.lost_rows or self.extra_rows)


def events_of(results: Path) -> list[dict[str, object]]:
    """Whole lines of the one journal below `results`."""
    found = sorted(results.glob("runs/*/events.jsonl"))
    if not found:
        return []
    data = found[0].read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def ledger_of(results: Path) -> list[str]:
    path = results / "steps" / "ledger.jsonl"
    return [json.loads(line)["key"] for line in path.read_text().splitlines()] if path.exists() else []


def rows_of(events: list[dict[str, object]]) -> Counter[str]:
    return Counter(json.dumps([event.get(name, None) for name in ROW]) for event in events)


def run_trial(
    kills: int, seed: int, folder: Path, overrides: Sequence[str], *, engine: Sequence[str] = ENGINE
) -> Trial:
    """One trial in `folder`. Each kill strikes up to PAUSE_S after the journal has grown by a random number of events,
    so that kills spread over the whole run and over the work between two events."""
    whole, broken = folder / "whole", folder / "broken"
    subprocess.run([*engine, *overrides, f"paths.results={whole}"], cwd=ROOT, check=True, capture_output=True)
    length = len(events_of(whole))
    draw = random.Random(seed)
    command = [*engine, *overrides, f"paths.results={broken}"]
    moments: list[int] = []
    commands = 1
    for left in range(kills, 0, -1):
        now = len(events_of(broken))
        target = now + draw.randint(0, max(1, 2 * (length - now) // (left + 1)))
        commands += 1
        if not _kill_at(command, broken, min(target, length - 8), draw.uniform(0.0, PAUSE_S)):
            break
        moments.append(len(events_of(broken)))
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return _compare(whole, broken, tuple(moments), commands)


def _kill_at(command: Sequence[str], results: Path, events: int, pause_s: float) -> bool:
    """Start the command and kill its whole group; False when it ended first."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and len(events_of(results)) < events:
        time.sleep(0.01)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=pause_s)
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def _compare(whole: Path, broken: Path, moments: tuple[int, ...], commands: int) -> Trial:
    events, ledger = events_of(broken), ledger_of(broken)
    contents = Counter(
        json.dumps({k: v for k, v in event.items() if k not in ("seq", "t")}, sort_keys=True) for event in events
    )
    mine, theirs = rows_of(events), rows_of(events_of(whole))
    return Trial(
        kills=len(moments),
        commands=commands,
        steps=len(ledger),
        repeated_steps=sum(count - 1 for count in Counter(ledger).values()),
        events=len(events),
        doubled_events=sum(count - 1 for count in contents.values()),
        lost_rows=sum((theirs - mine).values()),
        extra_rows=sum((mine - theirs).values()),
        moments=moments,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", default=[])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        total, trials = 0, []
        while total < given.kills:
            place = Path(folder) / str(len(trials))
            place.mkdir()
            trial = run_trial(min(KILLS_A_TRIAL, given.kills - total), given.seed + len(trials), place, given.overrides)
            total += trial.kills
            trials.append(trial)
            sys.stdout.write(json.dumps(asdict(trial)) + "\n")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "kill_and_resume.json").write_text(json.dumps([asdict(trial) for trial in trials], indent=1))
    return 0 if all(trial.clean for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
