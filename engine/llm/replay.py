"""Replies from recordings: found by slot, or by the exact request."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from engine.errors import LlmError, MissingError
from engine.llm.recordings import Recording, every, find, paths, request_hash
from engine.records import Message, Reply, Request

DIFF_LINES = 12
DIFF_WIDTH = 160
REMEDY = "record it with another provider and llm.record=<folder>, or answer it yourself with llm=mailbox"


class ReplayLlm:
    """Answers from `folder` without a model. Usage, latency and date are those of the recording."""

    def __init__(self, folder: Path, match: Literal["slot", "exact"]) -> None:
        self.folder = folder
        self.match = match
        self._by_hash: dict[str, Recording] | None = None

    def check(self) -> None:
        if not self.folder.is_dir():
            hint = "set llm.recordings to a folder of recordings, or choose another provider"
            raise MissingError(f"llm.recordings: there is no folder {self.folder}", hint=hint)

    def complete(self, request: Request) -> Reply:
        """LlmError(kind='no_recording') names the nearest recording and how it differs."""
        recording = find(self.folder, request.slot) if self.match == "slot" else self._exact(request)
        if recording is None:
            raise LlmError(self._missing(request), kind="no_recording", hint=REMEDY)
        drift = prompt_difference(recording.request.messages, request.messages)
        return replace(recording.reply, provider="replay", drift=drift)

    def _exact(self, request: Request) -> Recording | None:
        if self._by_hash is None:
            self._by_hash = {request_hash(recording.request): recording for recording in every(self.folder)}
        wanted = request_hash(request)
        return self._by_hash.get(wanted)

    def _missing(self, request: Request) -> str:
        if self.match == "slot":
            close = difflib.get_close_matches(request.slot.path(), paths(self.folder), n=1, cutoff=0.0)
            nearest = f"the nearest is {close[0]}" if close else "it holds none"
            return f"{self.folder} has no recording for {request.slot.path()}; {nearest}"
        assert self._by_hash is not None
        found = _nearest(request, self._by_hash.values())
        if found is None:
            return f"{self.folder} holds no recordings"
        wanted = request_hash(request)[:16]
        return (
            f"{self.folder} has no recording of the exact request {wanted} of {request.slot.path()}; "
            f"the nearest is {found.request.slot.path()}, which differs:\n{_difference(found.request, request)}"
        )


def prompt_difference(recorded: Iterable[Message], asked: Iterable[Message]) -> str | None:
    """A short unified diff from the recorded prompt to the one asked now; None when they are equal."""
    old, new = _flat(recorded), _flat(asked)
    if old == new:
        return None
    diff = list(difflib.unified_diff(old, new, "recorded", "asked", n=0, lineterm=""))[2:]
    added = sum(line.startswith("+") for line in diff)
    removed = sum(line.startswith("-") for line in diff)
    shown = [line[:DIFF_WIDTH] for line in diff[:DIFF_LINES]]
    more = [f"... {len(diff) - DIFF_LINES} more lines"] if len(diff) > DIFF_LINES else []
    return "\n".join([f"{added} lines added, {removed} removed", *shown, *more])


def _flat(messages: Iterable[Message]) -> list[str]:
    return [line for message in messages for line in (f"[{message.role}]", *message.content.split("\n"))]


def _difference(recorded: Request, asked: Request) -> str:
    pairs = (
        ("model", recorded.model, asked.model),
        ("params", dict(recorded.params), dict(asked.params)),
        ("sample", recorded.sample, asked.sample),
    )
    changes = [f"{name}: recorded {old!r}, asked {new!r}" for name, old, new in pairs if old != new]
    prompt = prompt_difference(recorded.messages, asked.messages)
    return "\n".join([*changes, *([prompt] if prompt else [])])


def _nearest(request: Request, recordings: Iterable[Recording]) -> Recording | None:
    """The recording whose prompt shares most lines with the one asked; the same slot wins a tie."""
    asked = set(_flat(request.messages))

    def likeness(recording: Recording) -> tuple[float, bool]:
        lines = set(_flat(recording.request.messages))
        return len(lines & asked) / len(lines | asked), recording.request.slot == request.slot

    return max(recordings, key=likeness, default=None)
