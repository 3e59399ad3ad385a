"""Replies from a JSON file: for tests and demonstrations."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import dataclass
from pathlib import Path

from engine.codec import DecodeError, decode
from engine.errors import LlmError, MissingError
from engine.llm.files import read_text
from engine.records import Reply, Request, Usage


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """One entry. `slot`: a slot path or glob, answered as often as asked; without one it is used once, in order."""

    text: str | tuple[str, ...]
    """A text, or its lines."""
    finish: str = "stop"
    usage: Usage = Usage(0, 0)  # noqa: RUF009 - frozen, so one default for all is safe
    slot: str | None = None


class ScriptedLlm:
    """The first entry whose slot matches answers; else the next one without a slot; else LlmError 'script_ended'."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._used = 0
        self._script: tuple[ScriptedReply, ...] | None = None

    def check(self) -> None:
        """MissingError without the file; LlmError(kind='script') when it is not a list of replies."""
        self._load()

    def complete(self, request: Request) -> Reply:
        script = self._load()
        slot = request.slot.path()
        entry = next((entry for entry in script if entry.slot and fnmatch.fnmatchcase(slot, entry.slot)), None)
        return _reply(entry or self._next(script, slot), request)

    def _next(self, script: tuple[ScriptedReply, ...], slot: str) -> ScriptedReply:
        ordered = [entry for entry in script if entry.slot is None]
        if self._used == len(ordered):
            message = f"{self.path} has no reply for {slot}: its {len(ordered)} replies in order are used up"
            raise LlmError(message, kind="script_ended", hint="add a reply, or one with this slot")
        self._used += 1
        return ordered[self._used - 1]

    def _load(self) -> tuple[ScriptedReply, ...]:
        if self._script is None:
            if not self.path.is_file():
                hint = 'a JSON list of texts or {"text", "slot"}: docs/models.md'
                raise MissingError(f"llm.script: there is no file {self.path}", hint=hint)
            try:
                tree = json.loads(read_text(self.path))
                entries = [{"text": entry} if isinstance(entry, str) else entry for entry in tree]
                self._script = decode(tuple[ScriptedReply, ...], entries, "script")
            except (ValueError, TypeError, DecodeError) as error:
                raise LlmError(f"{self.path}: expected a JSON list of replies: {error}", kind="script") from error
        return self._script


def _reply(entry: ScriptedReply, request: Request) -> Reply:
    text = entry.text if isinstance(entry.text, str) else "\n".join(entry.text)
    return Reply(text, entry.finish, entry.usage, latency_s=0.0, model=request.model, provider="scripted")
