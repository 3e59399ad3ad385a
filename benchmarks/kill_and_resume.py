"""Kill a run with SIGKILL at random moments, repeat the same command, and count what was done or paid twice.

    python -m benchmarks.kill_and_resume --kills 50 [--seed 1] [--tasks conv1d,square_matmul] [--out FOLDER]

The model is scripted from `recordings/bundled` and charges for every call the moment it is taken. After the last kill
of a trial the command runs to its end. Then every step in the ledger must be there once, every event of the journal
once, the journal must have the same rows as a run that nobody interrupted, the bill may be higher by the calls that
were in flight when a kill struck and by nothing else, and a database rebuilt from the journal must equal the one that
was kept up to date between the kills.
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
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.charging_engine import CALL_S, CHARGES
from engine.llm.recordings import every
from engine.store import ingest, query

ROOT = Path(__file__).resolve().parents[1]
ENGINE = (sys.executable, "-m", "benchmarks.charging_engine")
RECORDED = ROOT / "recordings" / "bundled"
KILLS_A_TRIAL = 5
"""A killed run finishes more of itself with every command; fresh trials spread the kills over the whole of it."""
EARLY_SHARE = 0.2
"""Of the kills, those that strike at a random moment after the start, whether or not anything was done by then."""
EARLY_S = 5.0
PAUSE_S = 1.0
USD_A_CALL = 0.01
SLOW_CALL_S = 0.5
ROW = ("kind", "task_id", "stage", "candidate_id", "role", "attempt", "sample", "who", "over", "metric", "rule")
"""What names a row without its measured values: those differ between two runs."""


@dataclass(frozen=True, slots=True)
class Trial:
    """`moments`: how many events the journal had when each kill struck; `progressed`: kills whose command had added to
    it. `in_flight`: calls that each kill cost. `repeated_steps`: ledger keys that occur twice, and finished steps whose
    file is another one at the end. Rows are held against a run that nobody interrupted; its bill is `whole_usd`."""

    seed: int
    kills: int
    progressed: int
    commands: int
    steps: int
    repeated_steps: int
    events: int
    doubled_events: int
    lost_rows: int
    extra_rows: int
    calls: int
    whole_usd: float
    charged_usd: float
    in_flight: tuple[int, ...]
    unexplained_calls: int
    """Calls beyond those of the uninterrupted run and those in flight at the kills."""
    same_database: bool
    moments: tuple[int, ...]

    @property
    def clean(self) -> bool:
        twice = self.repeated_steps or self.doubled_events or self.unexplained_calls
        lost = self.lost_rows or self.extra_rows or max(self.in_flight, default=0) > 1
        return self.same_database and not (twice or lost)


def events_of(results: Path) -> list[dict[str, object]]:
    """Whole lines of the one journal below `results`."""
    found = sorted(results.glob("runs/*/events.jsonl"))
    return lines_of(found[0]) if found else []


def lines_of(path: Path) -> list[dict[str, object]]:
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def ledger_of(results: Path) -> list[str]:
    return [str(line["key"]) for line in lines_of(results / "steps" / "ledger.jsonl")]


def rows_of(events: Iterable[dict[str, object]]) -> Counter[str]:
    return Counter(json.dumps([event.get(name, None) for name in ROW]) for event in events)


def stored(results: Path) -> dict[Path, int]:
    """Every finished step's file and its inode: one that is written again is another file."""
    files = results.glob("steps/*/[0-9a-f][0-9a-f]/*.json")
    return {path.relative_to(results): path.stat().st_ino for path in files}


def script(folder: Path, tasks: Sequence[str]) -> Path:
    """The recorded replies of these tasks as a script in which each costs USD_A_CALL."""
    usage = {"input_tokens": 1000, "output_tokens": 500, "cost_usd": USD_A_CALL}
    found = [recording for recording in every(RECORDED) if recording.request.slot.task_id in tasks]
    entries = [{"slot": made.request.slot.path(), "text": made.reply.text, "usage": usage} for made in found]
    path = folder / "script.json"
    path.write_text(json.dumps(entries))
    return path


class Harness:
    """The command under test; `engine` runs it, `overrides` come after it. A call takes `call_s`, and a kill strikes up
    to `pause_s` after the journal has grown."""

    def __init__(
        self,
        overrides: Sequence[str],
        engine: Sequence[str] = ENGINE,
        *,
        call_s: float = SLOW_CALL_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self.overrides = overrides
        self.engine = engine
        self.call_s = call_s
        self.pause_s = pause_s

    def start(self, results: Path) -> subprocess.Popen[bytes]:
        """The command in a process group of its own; its bill is beside its results."""
        environment = os.environ | {CHARGES: str(bill(results)), CALL_S: str(self.call_s)}
        command = [*self.engine, *self.overrides, f"paths.results={results}"]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=quiet, stderr=subprocess.PIPE, start_new_session=True
        )

    def finish(self, results: Path) -> None:
        """Run to the end; RuntimeError when the engine fails."""
        process = self.start(results)
        _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the engine ended with {process.returncode}: {errors.decode()[-2000:]}")

    def kill(self, results: Path, events: int, pause_s: float) -> bool:
        """Kill the whole group `pause_s` after the journal has `events` events; False when it ended first."""
        process = self.start(results)
        assert process.stderr is not None
        with process.stderr:
            while process.poll() is None and len(events_of(results)) < events:
                time.sleep(0.01)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=pause_s)
                return False
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return True


def bill(results: Path) -> Path:
    return results.with_name(f"{results.name}.bill.jsonl")


def charged(results: Path) -> float:
    return sum(float(str(line["usd"])) for line in lines_of(bill(results)))


def lost_calls(results: Path) -> int:
    """Calls that were charged and whose reply was not stored."""
    return len(lines_of(bill(results))) - len(list(results.glob("steps/reply/*/*.json")))


def run_trial(harness: Harness, whole: Path, broken: Path, kills: int, seed: int) -> Trial:
    """One trial in the fresh folder `broken`; `whole` is an uninterrupted run. Kills strike after the journal has
    grown, at moments that are spread over the whole run and over the work between two events; a few at any moment."""
    length = len(events_of(whole))
    draw = random.Random(seed)
    targets = sorted(draw.sample(range(1, length - 1), kills))
    moments: list[int] = []
    progressed, commands = 0, 1
    in_flight: list[int] = []
    finished: dict[Path, int] = {}
    for target in targets:
        before, lost = len(events_of(broken)), lost_calls(broken)
        early = draw.random() < EARLY_SHARE
        events = 0 if early else max(target, before + 1)
        commands += 1
        if not harness.kill(broken, events, draw.uniform(0.0, EARLY_S if early else harness.pause_s)):
            break
        moments.append(len(events_of(broken)))
        progressed += moments[-1] > before
        in_flight.append(lost_calls(broken) - lost)
        finished |= stored(broken).items() - finished.items()
        if moments[-1]:
            ingest(broken)
    harness.finish(broken)
    ingest(broken)
    now = stored(broken)
    again = sum(now[path] != inode for path, inode in finished.items())
    return _compare(whole, broken, seed, moments, progressed, commands, in_flight, again)


def _compare(
    whole: Path,
    broken: Path,
    seed: int,
    moments: Sequence[int],
    progressed: int,
    commands: int,
    in_flight: Sequence[int],
    written_again: int,
) -> Trial:
    events, ledger = events_of(broken), ledger_of(broken)
    contents = Counter(
        json.dumps({k: v for k, v in event.items() if k not in ("seq", "t")}, sort_keys=True) for event in events
    )
    mine, theirs = rows_of(events), rows_of(events_of(whole))
    calls = len(lines_of(bill(broken)))
    return Trial(
        seed=seed,
        kills=len(moments),
        progressed=progressed,
        commands=commands,
        steps=len(ledger),
        repeated_steps=sum(count - 1 for count in Counter(ledger).values()) + written_again,
        events=len(events),
        doubled_events=sum(count - 1 for count in contents.values()),
        lost_rows=sum((theirs - mine).values()),
        extra_rows=sum((mine - theirs).values()),
        calls=calls,
        whole_usd=round(charged(whole), 6),
        charged_usd=round(charged(broken), 6),
        in_flight=tuple(in_flight),
        unexplained_calls=calls - len(lines_of(bill(whole))) - sum(in_flight),
        same_database=_same_database(broken),
        moments=tuple(moments),
    )


def _same_database(results: Path) -> bool:
    """Whether a database rebuilt from the journals has the rows of the one that was kept up to date."""
    live = _contents(results)
    (results / "results.duckdb").unlink()
    ingest(results)
    return bool(live) and live == _contents(results)


def _contents(results: Path) -> dict[str, tuple[tuple[object, ...], ...]]:
    tables = query(results, "SELECT table_name FROM duckdb_tables() WHERE NOT starts_with(table_name, '_')").rows
    return {str(name): query(results, f'SELECT * FROM "{name}" ORDER BY ALL').rows for (name,) in tables}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tasks", default="conv1d,square_matmul")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", default=[])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        replies = script(Path(folder), given.tasks.split(","))
        model = ["llm=scripted", f"llm.script={replies}", "search.audit.share=0.0"]
        chosen = ["backend=cpu", "task=bundled", f"task.names=[{given.tasks}]", "display.mode=none"]
        harness = Harness([*chosen, *model, *given.overrides])
        whole = Path(folder) / "whole"
        harness.finish(whole)
        trials: list[Trial] = []
        while sum(trial.kills for trial in trials) < given.kills:
            left = given.kills - sum(trial.kills for trial in trials)
            seed = given.seed + len(trials)
            trials.append(run_trial(harness, whole, Path(folder) / str(seed), min(KILLS_A_TRIAL, left), seed))
            sys.stdout.write(json.dumps(asdict(trials[-1])) + "\n")
            sys.stdout.flush()
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "kill_and_resume.json").write_text(json.dumps([asdict(trial) for trial in trials], indent=1))
    return 0 if all(trial.clean for trial in trials) else 1


if __name__ == "__main__":
    sys.exit(main())
