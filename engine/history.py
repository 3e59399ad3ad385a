"""What earlier runs below a results folder took: a median and its n by role of a call and by kind of a judge step."""

from __future__ import annotations

import contextlib
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.canonical import Json

CALL = b'"kind":"llm_call"'
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
    """`roles`: calls by role of the model `model`; `kinds`: judge steps by kind; `calls_a_task`: calls that each
    task of each earlier run asked for, of the same model."""

    model: str
    roles: dict[str, Taken]
    kinds: dict[str, Taken]
    calls_a_task: tuple[int, ...]


def read_history(results: Path, model: str) -> History:
    """Everything that the journals and the ledger below `results` say of calls of `model` and of judge steps."""
    roles: dict[str, list[Json]] = defaultdict(list)
    calls: dict[tuple[str, str], int] = defaultdict(int)
    given: set[str | None] = set()
    for path in sorted((results / "runs").glob("*/events.jsonl")):
        for event in _objects(path, CALL):
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
        tuple(calls.values()),
    )


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


def _objects(path: Path, mark: bytes) -> Iterator[Json]:
    """The JSON lines that hold `mark`; half a line of a writer that was killed is left out."""
    for line in path.read_bytes().splitlines() if path.exists() else ():
        if mark in line:
            with contextlib.suppress(ValueError):
                yield json.loads(line)
