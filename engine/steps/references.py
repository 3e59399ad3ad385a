"""Which steps the journals of runs refer to, and which of them a run that has not ended needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.canonical import Json, digest_text
from engine.decode import remembered_identity
from engine.errors import StoreError
from engine.extract import extract_code
from engine.journal import read_events
from engine.records import Reply, Usage

ENDS = ("done", "budget")
"""Outcomes after which the same command does nothing more."""


@dataclass(slots=True)
class References:
    """Replies by address; everything else by its subject: the hashes of a task and of a source."""

    replies: set[str] = field(default_factory=set)
    tasks: set[str] = field(default_factory=set)
    sources: set[tuple[str, str]] = field(default_factory=set)

    def add(self, events: Sequence[Json], folder: Path) -> None:
        """What the journal of the run in `folder` refers to."""
        current: dict[str, str] = {}
        answered: dict[tuple[Json, ...], tuple[str, Json]] = {}
        for event in events:
            if event["kind"] == "task_started":
                current[event["task_id"]] = event["task_hash"]
                self.tasks.add(event["task_hash"])
            elif event["kind"] == "candidate":
                self.sources.add((current[event["task_id"]], event["source_hash"]))
                answered.pop(_slot(event), None)
            elif event["kind"] == "llm_call":
                answered[_slot(event)] = current[event["task_id"]], event
                if event.get("step") is not None:
                    self.replies.add(event["step"])
        # What a reply led to on the other paths of an observing run stands in the reply alone.
        for task_hash, event in answered.values():
            source = _written(folder, event)
            if source is not None:
                self.sources.add((task_hash, digest_text(source)))

    def name(self, kind: str, key: str, inputs: Json) -> bool:
        """Whether the step is among them. One whose inputs name no task is not taken for anybody's but by address."""
        if kind == "reply":
            return key in self.replies
        if not isinstance(inputs, dict) or "task" not in inputs:
            return False
        source = inputs.get("source")
        return inputs["task"] in self.tasks if source is None else (inputs["task"], source) in self.sources


@dataclass(slots=True)
class Uses:
    """`every`: what any journal refers to; `needed`: what one does whose run has not ended; `open_runs`: those runs;
    `runs`: all that have a journal."""

    every: References = field(default_factory=References)
    needed: References = field(default_factory=References)
    open_runs: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)


def uses(results: Path) -> Uses:
    """Read all journals of `results`. StoreError for a damaged one, since it may refer to any step."""
    found = Uses()
    journals: dict[str, list[Json]] = {}
    for path in sorted((results / "runs").glob("*/events.jsonl")):
        journals[path.parent.name] = events = read_events(path)
        try:
            found.every.add(events, path.parent)
        except KeyError as error:
            problem = f"an event of another form than docs/journal.md declares, without {error}"
            hint = "it may refer to any step: move that run's folder away, or restore the file"
            raise StoreError(f"{path}: {problem}", hint=hint) from error
        if not ended(events):
            found.open_runs.add(path.parent.name)
    # A run that measures afresh reads its replies from the run without `fresh`, up to its last slot.
    bases = {base for run_id in found.open_runs if (base := _base(results, run_id)) is not None}
    for run_id in sorted((found.open_runs | bases) & journals.keys()):
        found.needed.add(journals[run_id], results / "runs" / run_id)
    found.runs = set(journals)
    return found


def _slot(event: Json) -> tuple[Json, ...]:
    return tuple(event[name] for name in ("task_id", "stage", "role", "attempt", "sample"))


def _written(folder: Path, event: Json) -> str | None:
    """The kernel in the reply to a call; None where there is none or the text is gone."""
    stem = f"{event['stage']}.{event['role']}.{event['attempt']}.{event['sample']}"
    path = folder / "tasks" / event["task_id"] / "exchanges" / f"{stem}.reply.md"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n")
    return extract_code(Reply(text, event["finish"], Usage(0, 0), 0.0, "", "")).code


def ended(events: Sequence[Json]) -> bool:
    """Whether the same command would do nothing more: the end was written, and no task was started after it."""
    last = {event["kind"]: event["seq"] for event in events if event["kind"] == "task_started"}
    ends = [event["seq"] for event in events if event["kind"] == "run_ended" and event["outcome"] in ENDS]
    return bool(ends) and ends[-1] > last.get("task_started", -1)


def _base(results: Path, run_id: str) -> str | None:
    path = results / "runs" / run_id / "config.yaml"
    if not path.exists():
        return None
    try:
        return remembered_identity(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        hint = "the file was changed by hand; move that run's folder away, or restore the file"
        raise StoreError(f"{path} is not a run's configuration: {error}", hint=hint) from error
