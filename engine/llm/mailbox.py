"""Prompts as files, replies as files: across an air gap, by a chat window, or by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.canonical import short
from engine.codec import did_you_mean
from engine.errors import AwaitingReply, LlmError
from engine.files import write_whole
from engine.llm.files import ensure_folder, read_text
from engine.llm.recordings import request_hash
from engine.records import Reply, Request, Usage

FRONT_MATTER = ("answered_by", "date", "model", "finish")


@dataclass(frozen=True, slots=True)
class Letter:
    """A reply file: its text, and the front matter before it ('' where a field is absent)."""

    text: str
    answered_by: str = ""
    date: str = ""
    model: str = ""
    finish: str = "stop"


class MailboxLlm:
    """Writes `out/<key>.md` and reads `in/<key>.md`; the key is 16 hex of the request hash. Tokens are not counted."""

    def __init__(self, folder: Path, answered_by: str) -> None:
        self.folder = folder
        self.answered_by = answered_by

    def check(self) -> None:
        ensure_folder(self.folder / "out", "llm.mailbox")
        ensure_folder(self.folder / "in", "llm.mailbox")

    def complete(self, request: Request) -> Reply:
        """AwaitingReply until the reply file has text."""
        key = short(request_hash(request))
        answer = self.folder / "in" / f"{key}.md"
        content = read_text(answer) if answer.is_file() else ""
        if not content.strip():
            prompt = self.folder / "out" / f"{key}.md"
            text = letter_for(request, key)
            if not prompt.is_file() or read_text(prompt) != text:
                write_whole(prompt, text)
            raise AwaitingReply(f"{prompt} waits for a reply in {answer}", where=f"{answer}, the prompt is {prompt}")
        letter = read_letter(content, str(answer))
        return Reply(
            text=letter.text,
            finish=letter.finish,
            usage=Usage(0, 0),
            latency_s=0.0,
            model=letter.model or request.model,
            provider="mailbox",
            answered_by=letter.answered_by or self.answered_by,
            date=letter.date,
        )


def letter_for(request: Request, key: str) -> str:
    """The prompt file: front matter, then each message after a comment that names its role."""
    header: Mapping[str, str] = {
        "key": key,
        "slot": request.slot.path(),
        "model": request.model,
        "params": json.dumps(dict(request.params), sort_keys=True),
        "sample": str(request.sample),
        "reply_to": f"in/{key}.md",
    }
    lines = "\n".join(f"{name}: {value}" for name, value in header.items())
    bodies = "\n".join(f"<!-- {message.role} -->\n{message.content.rstrip()}\n" for message in request.messages)
    return f"---\n{lines}\n---\n\n{bodies}"


def read_letter(content: str, where: str) -> Letter:
    """Split optional front matter from the reply. Only `name: value` lines between two `---` lines at the very top
    count as such; an unknown name there is an LlmError, so that a typing error does not become part of the reply."""
    lines = content.split("\n")
    rules = [number for number, line in enumerate(lines) if line.strip() == "---"]
    if len(rules) < 2 or rules[0] != 0:
        return Letter(content)
    end = rules[1]
    fields: dict[str, str] = {}
    for line in lines[1:end]:
        name, colon, value = line.partition(":")
        if not colon:
            return Letter(content)
        fields[name.strip()] = value.strip()
    for name in fields:
        if name not in FRONT_MATTER:
            message = f"{where}: unknown front matter '{name}'{did_you_mean(name, FRONT_MATTER)}"
            raise LlmError(message, kind="mailbox", hint="correct the line, or remove the block between the --- lines")
    return Letter("\n".join(lines[end + 1 :]).lstrip("\r\n"), **fields)
