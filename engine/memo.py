"""Content-addressed outcomes of everything that costs: no finished step is ever repeated, by any run on this folder.

results/steps/<kind>/<2 hex>/<sha256 of kind and inputs>.json   {v, kind, inputs, outcome, cost, t}
results/steps/ledger.jsonl                                      one line for each step that was really done
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.canonical import Json, digest
from engine.errors import StoreError
from engine.files import write_whole

VERSION = 1


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
        key = step_key(kind, inputs)
        return self._read(kind, key)

    def step(self, kind: str, inputs: Json, work: Callable[[], tuple[Json, Json]]) -> Step:
        """The outcome of `work` for `inputs`: found, or done now by exactly one of all processes that ask.

        `work` returns (outcome, cost), both JSON trees; with `Passing` it gives an outcome that is not stored. Whatever
        else it raises is passed on, and nothing is stored.
        """
        key = step_key(kind, inputs)
        found = self._read(kind, key)
        if found is not None:
            return found
        with self._locked(kind, key):
            found = self._read(kind, key)
            if found is not None:
                return found
            try:
                outcome, cost = work()
            except Passing as passing:
                return Step(key, passing.outcome, passing.cost, ran=True)
            stored = self._store(kind, key, inputs, outcome, cost)
        return Step(key, stored["outcome"], stored["cost"], ran=True)

    def path(self, kind: str, key: str) -> Path:
        """Where a step is or will be."""
        return self.root / kind / key[:2] / f"{key}.json"

    def _read(self, kind: str, key: str) -> Step | None:
        path = self.path(kind, key)
        try:
            tree = json.loads(path.read_bytes())
            if tree["v"] != VERSION or tree["kind"] != kind:
                raise StoreError(
                    f"{path}: expected a step of kind {kind} and version {VERSION}, "
                    f"found {tree['kind']!r} and {tree['v']!r}"
                )
            return Step(key, tree["outcome"], tree["cost"], ran=False)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} is not a step: {error}", hint="delete that file; its step is done again"
            ) from error

    @contextmanager
    def _locked(self, kind: str, key: str) -> Iterator[None]:
        folder = self.root / "locks" / kind
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / key
        while True:
            with path.open("ab") as file:
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
        path = self.path(kind, key)
        # NaN and infinity in an outcome are kept: the work is paid for, and Python reads them back.
        text = json.dumps(tree, ensure_ascii=True, separators=(",", ":"))
        try:
            write_whole(path, text, survive_power_cut=True)
            self._note(kind, key, cost, now)
        except OSError as error:
            raise StoreError(f"cannot store the step {path}: {error}", hint="free some space below results/") from error
        return json.loads(text)

    def _note(self, kind: str, key: str, cost: Json, now: float) -> None:
        entry = {"t": now, "run_id": self.run_id, "kind": kind, "key": key, "cost": cost, "pid": os.getpid()}
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        # One write to a file opened for appending: lines of several processes never mix.
        descriptor = os.open(self.root / "ledger.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def step_key(kind: str, inputs: Json) -> str:
    """The address of a step, 64 hex."""
    return digest({"kind": kind, "inputs": inputs})


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)
