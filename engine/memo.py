"""Content-addressed outcomes of everything that costs: no finished step is ever repeated, by any run on this folder.

results/steps/<kind>/<2 hex>/<sha256 of kind and inputs>.json   {v, kind, inputs, outcome, cost, t, outcome_sha256}
results/steps/ledger.jsonl                                      one line for each step that was really done

A step's modification time is when it was last asked for; docs/steps.md says what belongs to each kind's inputs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from engine.canonical import Json, digest, digest_text
from engine.errors import StoreError, StoreFull
from engine.files import write_whole

VERSION = 1
LEDGER = "ledger.jsonl"
LOCKS = "locks"


class Passing(Exception):
    """Raised by `work` with an outcome that holds for this call only, because what caused it may be gone the next time:
    memory that was short, a process that died, a tool without permission. It is returned and not stored."""

    def __init__(self, outcome: Json, cost: Json) -> None:
        super().__init__("an outcome that is not kept")
        self.outcome, self.cost = outcome, cost


@dataclass(frozen=True, slots=True)
class Step:
    """A finished step. `ran`: this call did the work and paid `cost`; otherwise it was found."""

    key: str
    inputs: Json
    outcome: Json
    cost: Json
    ran: bool


class Memo:
    """The steps below `root`, shared by all runs and processes; `run_id` signs the ledger."""

    def __init__(self, root: Path, run_id: str) -> None:
        self.root = root
        self.run_id = run_id

    def lookup(self, kind: str, inputs: Json) -> Step | None:
        """The finished step, or None."""
        return self.read(kind, step_key(kind, inputs))

    def step(self, kind: str, inputs: Json, work: Callable[[], tuple[Json, Json]]) -> Step:
        """The outcome of `work` for `inputs`: found, or done now by exactly one of all processes that ask.

        `work` returns (outcome, cost), both JSON trees; with `Passing` it gives an outcome that is not stored. Whatever
        else it raises is passed on, and nothing is stored.
        """
        key = step_key(kind, inputs)
        found = self.read(kind, key)
        if found is not None:
            return found
        with self.locked(kind, key):
            found = self.read(kind, key)
            if found is not None:
                return found
            try:
                outcome, cost = work()
            except Passing as passing:
                return Step(key, inputs, passing.outcome, passing.cost, ran=True)
            stored = self._store(kind, key, inputs, outcome, cost)
        return Step(key, stored["inputs"], stored["outcome"], stored["cost"], ran=True)

    def paid_by_run(self) -> dict[str, Json]:
        """Address -> cost of every step that this run paid for, by the ledger, in this command or an earlier one."""
        path = self.root / LEDGER
        found: dict[str, Json] = {}
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # half a line of a writer that was killed
                entry = json.loads(line)
                if entry["run_id"] == self.run_id:
                    found[entry["key"]] = entry["cost"]
        return found

    def path(self, kind: str, key: str) -> Path:
        """Where a step is or will be."""
        return self.root / kind / key[:2] / f"{key}.json"

    def read(self, kind: str, key: str) -> Step | None:
        """The finished step at an address, or None. It counts as used now, which keeps it from being pruned."""
        path = self.path(kind, key)
        try:
            # Another user's folder may be readable only; its owner's pruning is then not ours to hold up.
            with contextlib.suppress(OSError):
                os.utime(path)
            tree = json.loads(path.read_bytes())
            if tree["v"] != VERSION or tree["kind"] != kind:
                raise StoreError(
                    f"{path}: expected a step of kind {kind} and version {VERSION}, "
                    f"found {tree['kind']!r} and {tree['v']!r}"
                )
            return Step(key, tree["inputs"], tree["outcome"], tree["cost"], ran=False)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} is not a step: {error}", hint="delete that file; its step is done again"
            ) from error

    @contextmanager
    def locked(self, kind: str, key: str) -> Iterator[None]:
        """Hold the step's lock: whoever does the step, or takes it away, holds it."""
        path = self.root / LOCKS / kind / key
        while True:
            with _opened(path) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _same_file(path, file.fileno()):
                    continue  # the holder before us removed the file we waited on
                try:
                    yield
                finally:
                    path.unlink()
                return

    def _store(self, kind: str, key: str, inputs: Json, outcome: Json, cost: Json) -> Json:
        now = round(time.time(), 6)
        tree = {"v": VERSION, "kind": kind, "inputs": inputs, "outcome": outcome, "cost": cost, "t": now}
        tree["outcome_sha256"] = outcome_sum(outcome)
        path = self.path(kind, key)
        # NaN and infinity in an outcome are kept: the work is paid for, and Python reads them back.
        text = json.dumps(tree, ensure_ascii=True, separators=(",", ":"))
        try:
            write_whole(path, text, survive_power_cut=True)
            self._note(kind, key, cost, now)
        except OSError as error:
            hint = "free some space below results/, then repeat the command: it continues"
            raise StoreFull(f"cannot store the step {path}: {error}", hint=hint) from error
        return json.loads(text)

    def _note(self, kind: str, key: str, cost: Json, now: float) -> None:
        entry = {"t": now, "run_id": self.run_id, "kind": kind, "key": key, "cost": cost, "pid": os.getpid()}
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        append_line(self.root / LEDGER, line)


def append_line(path: Path, line: bytes) -> None:
    """Append one line to a file that several processes append to; OSError when it does not fit.

    One write to a file opened for appending: lines never mix. Half a line that a full disk left is closed first, so
    that it cannot swallow this one."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.fstat(descriptor).st_size
        torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
        whole = b"\n" * torn + line
        if os.write(descriptor, whole) != len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def outcome_sum(outcome: Json) -> str:
    """What a stored outcome is verified by: sha256 of its JSON text with sorted keys, NaN and infinity allowed."""
    return digest_text(json.dumps(outcome, sort_keys=True, separators=(",", ":")))


def step_key(kind: str, inputs: Json) -> str:
    """The address of a step, 64 hex."""
    return digest({"kind": kind, "inputs": inputs})


def _opened(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise StoreFull(f"cannot make the lock {path}: {error}", hint="free some space below results/") from error


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)
