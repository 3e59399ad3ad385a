"""Recorded replies: one readable JSON file a slot, `<folder>/<slot path>.json`, made to be kept in git.

Texts are stored as lists of lines, so that a changed prompt or kernel reads as a diff.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.canonical import digest
from engine.codec import DecodeError, decode, encode
from engine.errors import LlmError
from engine.files import write_whole
from engine.llm.files import read_text
from engine.records import Message, Reply, Request, Slot, Usage

Text = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """A request with its reply. `reply.answered_by` and `reply.date` say whose answer it is."""

    request: Request
    reply: Reply


@dataclass(frozen=True, slots=True)
class StoredMessage:
    role: str
    content: Text


@dataclass(frozen=True, slots=True)
class StoredRequest:
    model: str
    messages: tuple[StoredMessage, ...]
    params: Mapping[str, str | int | float | bool]
    sample: int


@dataclass(frozen=True, slots=True)
class StoredReply:
    text: Text
    finish: str
    usage: Usage
    latency_s: float
    model: str
    provider: str
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class StoredRecording:
    """The form of the file. `request_hash` is checked when it is read."""

    v: Literal[1]
    slot: Slot
    request: StoredRequest
    request_hash: str
    reply: StoredReply
    answered_by: str
    date: str


def request_hash(request: Request) -> str:
    """sha256 of model, messages, params and sample: the address of a model call, wherever its slot is."""
    tree = encode(request)
    del tree["slot"]
    return digest(tree)


def location(folder: Path, slot: Slot) -> Path:
    return folder / f"{slot.path()}.json"


def save(folder: Path, recording: Recording) -> Path:
    """Write the recording to its slot; an equal file is left alone, another one replaced."""
    request, reply = recording.request, recording.reply
    stored = StoredRecording(
        v=1,
        slot=request.slot,
        request=StoredRequest(
            model=request.model,
            messages=tuple(StoredMessage(message.role, _lines(message.content)) for message in request.messages),
            params=request.params,
            sample=request.sample,
        ),
        request_hash=request_hash(request),
        reply=StoredReply(
            text=_lines(reply.text),
            finish=reply.finish,
            usage=reply.usage,
            latency_s=reply.latency_s,
            model=reply.model,
            provider=reply.provider,
            attempts=reply.attempts,
        ),
        answered_by=reply.answered_by,
        date=reply.date,
    )
    path = location(folder, request.slot)
    text = json.dumps(encode(stored), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if not path.is_file() or path.read_bytes() != text.encode():
        write_whole(path, text)
    return path


def load(path: Path) -> Recording:
    """Read and verify one file; LlmError(kind='recording') names everything that is wrong with it."""
    stat = path.stat()
    return _load(path, stat.st_mtime_ns, stat.st_size)


# The jobs of a sweep ask for the same replies; a file that has changed is read again.
@functools.lru_cache(maxsize=4096)
def _load(path: Path, _mtime_ns: int, _size: int) -> Recording:
    try:
        stored = decode(StoredRecording, json.loads(read_text(path)), "recording")
    except (ValueError, DecodeError) as error:
        raise LlmError(
            f"{path}: {error}", kind="recording", hint="restore the file from git or record it anew"
        ) from error
    request = Request(
        slot=stored.slot,
        model=stored.request.model,
        messages=tuple(Message(message.role, _joined(message.content)) for message in stored.request.messages),
        params=stored.request.params,
        sample=stored.request.sample,
    )
    found = request_hash(request)
    if found != stored.request_hash:
        message = f"{path}: request_hash is {stored.request_hash[:16]}, but the request in the file hashes to {found}"
        raise LlmError(message, kind="recording", hint="the request was edited; correct it or set request_hash")
    reply = Reply(
        text=_joined(stored.reply.text),
        finish=stored.reply.finish,
        usage=stored.reply.usage,
        latency_s=stored.reply.latency_s,
        model=stored.reply.model,
        provider=stored.reply.provider,
        answered_by=stored.answered_by,
        date=stored.date,
        attempts=stored.reply.attempts,
    )
    return Recording(request, reply)


def find(folder: Path, slot: Slot) -> Recording | None:
    """The recording of a slot, or None when there is none."""
    path = location(folder, slot)
    return load(path) if path.is_file() else None


def paths(folder: Path) -> list[str]:
    """Slot paths of every recording in the folder, sorted."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.json"))


def every(folder: Path) -> Iterator[Recording]:
    for name in paths(folder):
        yield load(folder / f"{name}.json")


def _lines(text: str) -> tuple[str, ...]:
    return tuple(text.split("\n"))


def _joined(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(text)
