"""The long texts of a page: prompts, replies, sources and differences, as they are or packed.

A run of a hundred operators holds some 15 MB of them, nearly all of it repeated from prompt to prompt. Above
PLAIN_LIMIT they are packed per operator, and the page unpacks an operator's when one of them is unfolded."""

from __future__ import annotations

import base64
import difflib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.prompts import trim_error
from engine.report.detail import Candidate, Operator

PLAIN_LIMIT = 1_000_000
"""Characters in all."""
LONGEST = 200_000
"""Characters of one text; its middle is left out above."""
USER = "<!-- user -->"
"""Where the user message begins in the file of a prompt: engine.folder.RunFolder.write_exchange."""
MOST_LINES = 4000
"""Of a source that is compared: the time of a comparison grows with the square."""


@dataclass(frozen=True, slots=True)
class Change:
    """A candidate's source as a difference to its parent's, or whole where it has none: `parent_id` is None then.
    `text`: the number of the text."""

    text: int
    parent_id: str | None
    added: int
    removed: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """Numbers of a call's texts, None where there is no file. `system` is that of a message in the list that all
    operators share: nearly every prompt of a run begins with the same one."""

    system: int | None
    prompt: int | None
    reply: int | None


class Texts:
    """The texts of one operator by number; equal ones are kept once. New system messages are added to `systems`."""

    def __init__(self, run: Path, operator: Operator, systems: dict[str, int]) -> None:
        self._systems = systems
        self.folder = run / "tasks" / operator.row.task_id
        self._numbers: dict[str, int] = {}
        self._sources: dict[str, str | None] = {}
        self.exchanges = {call.stem: self._exchange(call.stem) for stage in operator.stages for call in stage.calls}
        self.changes = {found.number: self._change(found) for found in operator.candidates}
        best = self._read(self.folder / "best.py") if operator.row.best_id else None
        self.best = None if best is None else self._add(best)

    @property
    def all(self) -> list[str]:
        return list(self._numbers)

    @property
    def size(self) -> int:
        return sum(map(len, self._numbers))

    def packed(self) -> str:
        """A JSON list of the texts, deflated, in base64."""
        return base64.b64encode(zlib.compress(json.dumps(self.all).encode())).decode()

    def _add(self, text: str) -> int:
        return self._numbers.setdefault(trim_error(text, LONGEST), len(self._numbers))

    def _exchange(self, stem: str) -> Exchange:
        folder = self.folder / "exchanges"
        prompt, reply = self._read(folder / f"{stem}.prompt.md"), self._read(folder / f"{stem}.reply.md")
        system = None
        if prompt is not None and USER in prompt:
            # A file of ours: what a model wrote stands in the user message, after the first mark.
            head, _, prompt = prompt.partition(USER)
            told = trim_error(head.partition("\n")[2].strip(), LONGEST)
            system = self._systems.setdefault(told, len(self._systems)) if told else None
        added = [None if text is None else self._add(text.strip("\n")) for text in (prompt, reply)]
        return Exchange(system, *added)

    def _change(self, candidate: Candidate) -> Change | None:
        source = self._source(candidate.point.candidate_id)
        if source is None:
            return None
        parent_id = candidate.event["parent_id"]
        parent = self._source(parent_id) if parent_id else None
        if parent is None or max(parent.count("\n"), source.count("\n")) > MOST_LINES:
            return Change(self._add(source), None, 0, 0)
        lines = list(difference(parent, source, parent_id, candidate.point.candidate_id))
        added = sum(line.startswith("+") for line in lines[2:])
        removed = sum(line.startswith("-") for line in lines[2:])
        return Change(self._add("\n".join(lines) or "the same source"), parent_id, added, removed)

    def _source(self, candidate_id: str) -> str | None:
        if candidate_id not in self._sources:
            self._sources[candidate_id] = self._read(self.folder / "candidates" / f"{candidate_id}.py")
        return self._sources[candidate_id]

    def _read(self, path: Path) -> str | None:
        """What a kernel's author can write into a source need not be UTF-8's best."""
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def difference(parent: str, child: str, before: str, after: str) -> Iterable[str]:
    """Unified, with three lines of context."""
    return difflib.unified_diff(parent.splitlines(), child.splitlines(), before, after, lineterm="")
