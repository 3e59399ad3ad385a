"""What earlier runs below a results folder took: a median and its n by role of a call and by kind of a judge step."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.canonical import Json

CALL, END = b'"kind":"llm_call"', b'"kind":"task_ended"'
START, CLOSE = b'"kind":"task_started"', b'"kind":"run_ended"'
WHOLE = ("done", "exited", "unsolved")
"""How a task ended that neither a budget nor an error cut short."""
JUDGE_KINDS = ("verdict", "baseline", "timing", "promotion", "profile", "confirm")


@dataclass(frozen=True, slots=True)
class Taken:
    """Medians over `n` calls or steps. `usd` over the `priced` calls whose price was known, None without one."""

    n: int
    seconds: float
    tokens: float
    usd: float | None
    priced: int


@dataclass(frozen=True, slots=True)
class History:
    """`roles`: calls by role of the model `model`; `kinds`: judge steps by kind; `calls_a_task`: one number for each
    task, the calls of the same model in a run that went through its plan: the median over such runs."""

    model: str
    roles: dict[str, Taken]
    kinds: dict[str, Taken]
    calls_a_task: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Own:
    """What the very run that is foretold did before. `calls`, `tokens`, `usd`: of the replies that it paid for itself;
    `usd` None where one has no known price. `closed`: it came to its end. `tasks`: by id the last text's hash and how
    the task ended, None: not yet."""

    calls: int
    tokens: int
    usd: float | None
    closed: bool
    tasks: Mapping[str, tuple[str, str | None]]

    def done(self, hashes: Mapping[str, str]) -> frozenset[str]:
        """Those of these tasks, by id and hash of their text, for which the same command pays nothing any more."""
        same = frozenset(name for name, text in hashes.items() if name in self.tasks and self.tasks[name][0] == text)
        if self.closed and len(same) == len(hashes):
            return same
        return frozenset(task_id for task_id in same if self.tasks[task_id][1] in WHOLE)


def read_own(results: Path, run_id: str) -> Own:
    """By its journal and its lines of the ledger."""
    tasks: dict[str, tuple[str, str | None]] = {}
    closed = False
    for event in _objects(results / "runs" / run_id / "events.jsonl", START, END, CLOSE):
        if event["kind"] == "run_ended":
            closed = event["outcome"] in ("done", "budget")
        elif event["kind"] == "task_started":
            tasks[event["task_id"]], closed = (event["task_hash"], None), False
        elif event["task_id"] in tasks:
            tasks[event["task_id"]] = tasks[event["task_id"]][0], event["outcome"]
    ledger = _objects(results / "steps" / "ledger.jsonl", f'"run_id":"{run_id}"'.encode())
    usages = [entry["cost"]["usage"] for entry in ledger if entry["kind"] == "reply"]
    tokens = sum(usage["input_tokens"] + usage["output_tokens"] for usage in usages)
    priced = [usage["cost_usd"] for usage in usages if usage["cost_usd"] is not None]
    return Own(len(usages), tokens, sum(priced) if len(priced) == len(usages) else None, closed, tasks)


def read_history(results: Path, model: str) -> History:
    """Everything that the journals and the ledger below `results` say of calls of `model` and of judge steps."""
    roles: dict[str, list[Json]] = defaultdict(list)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    whole: set[tuple[str, str]] = set()
    given: set[str | None] = set()
    for path in sorted((results / "runs").glob("*/events.jsonl")):
        for event in _objects(path, CALL, END):
            if event["kind"] == "task_ended":
                whole |= {(event["run_id"], event["task_id"])} if event["outcome"] in WHOLE else set()
                continue
            # Providers answer with a dated name of the model that was asked for, or without its prefix.
            if re.fullmatch(rf"{re.escape(_tail(model))}([-@]\d[\d-]*)?", _tail(event["model"])) is None:
                continue
            calls[event["run_id"], event["task_id"]] += 1
            # A reply that other runs found again was given once.
            step = event.get("step")
            if step is None or step not in given:
                given.add(step)
                roles[event["role"]].append(event)
    kinds: dict[str, list[float]] = defaultdict(list)
    for entry in _objects(results / "steps" / "ledger.jsonl", b'"wall_s"'):
        if entry["kind"] in JUDGE_KINDS:
            kinds[entry["kind"]].append(entry["cost"]["wall_s"])
    return History(
        model,
        {role: _calls(events) for role, events in roles.items()},
        {kind: Taken(len(walls), statistics.median(walls), 0, None, 0) for kind, walls in kinds.items()},
        _a_task({place: n for place, n in calls.items() if place in whole}),
    )


def _a_task(calls: Mapping[tuple[str, str], int]) -> tuple[float, ...]:
    """Of calls by run and task."""
    tasks: dict[str, list[int]] = defaultdict(list)
    for (_, task_id), n in calls.items():
        tasks[task_id].append(n)
    return tuple(float(statistics.median(found)) for found in tasks.values())


def _tail(model: str) -> str:
    return model.rpartition("/")[2]


def _calls(events: list[Json]) -> Taken:
    priced = [event["cost_usd"] for event in events if event["cost_usd"] is not None]
    return Taken(
        n=len(events),
        seconds=statistics.median(event["latency_s"] for event in events),
        tokens=statistics.median(event["input_tokens"] + event["output_tokens"] for event in events),
        usd=statistics.median(priced) if priced else None,
        priced=len(priced),
    )


def _objects(path: Path, *marks: bytes) -> Iterator[Json]:
    """The JSON lines that hold one of `marks`; half a line of a writer that was killed is left out."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        if any(mark in line for mark in marks):
            with contextlib.suppress(ValueError):
                yield json.loads(line)
