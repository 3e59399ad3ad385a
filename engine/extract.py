"""What a model's reply contains: the one block of code, or the one JSON object. Pure; a bad reply is data."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.canonical import Json
from engine.records import Reply

CLASS = "ModelNew"
OPENING = re.compile(r"^[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)*(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
AFTER_PROSE = re.compile(r"(?P<fence>`{3})(?P<info>python3?|py|triton)[ \t]*$", re.IGNORECASE)
DEFINITION = re.compile(rf"^class[ \t]+{CLASS}\b", re.MULTILINE)
THINKING = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
FENCES = 8
"""Closing fences tried for one block."""
BRACES = 200
"""Opening braces tried for one object: a reply of thousands must not cost quadratic time."""
ASK = f"Reply with the whole module in one ```python block that defines class {CLASS}."


class ReplyKind(StrEnum):
    OK = "ok"
    EMPTY = "empty"
    NO_CODE = "no_code"
    AMBIGUOUS_CODE = "ambiguous_code"
    TRUNCATED = "truncated"


@dataclass(frozen=True, slots=True)
class Extracted:
    """`code` is None unless `kind` is ok; `message` says what was wrong and what to do, for the repair prompt."""

    code: str | None
    kind: ReplyKind
    message: str


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `closed`: its closing fence is there; `info`: the word after the opening one."""

    text: str
    info: str
    closed: bool


def extract_code(reply: Reply) -> Extracted:
    """The one fenced block that defines class ModelNew. Never raises; the rules are in docs/models.md."""
    cut = reply.finish == "length"
    text = _plain(reply.text)
    if not text.strip():
        return _nothing(reply)
    found = blocks(text)
    defining = [block for block in found if _defines(block.text)]
    open_end = bool(found) and not found[-1].closed
    if cut and (open_end or not defining):
        return _failed(
            ReplyKind.TRUNCATED, f"The reply was cut off at the token limit{_used(reply)}. Answer shorter: {ASK}"
        )
    if len(defining) > 1:
        message = (
            f"The reply has {len(defining)} code blocks that define class {CLASS}; which one is meant is unclear. {ASK}"
        )
        return _failed(ReplyKind.AMBIGUOUS_CODE, message)
    if not defining:
        return _failed(ReplyKind.NO_CODE, f"{_why_no_code(reply, text, found)} {ASK}")
    block = defining[0]
    if not block.closed and not _parses(block.text):
        message = f"The code block has no closing fence and stops in mid-statement: the reply is incomplete. {ASK}"
        return _failed(ReplyKind.TRUNCATED, message)
    return Extracted(block.text, ReplyKind.OK, "")


def extract_json(text: str, required: Sequence[str]) -> Mapping[str, str] | None:
    """The first JSON object with all `required` keys, fenced ones first; lists of texts are joined by newlines.

    Strict JSON, but found anywhere. None without such an object, or where a required value is not text.
    """
    plain = _plain(text)
    for source in (*(block.text for block in blocks(plain)), plain):
        for tree in _objects(source):
            if all(name in tree for name in required):
                values = {name: _as_text(tree[name]) for name in required}
                texts = {name: value for name, value in values.items() if value is not None}
                return texts if len(texts) == len(values) else None
    return None


def blocks(text: str) -> list[Block]:
    """Fenced blocks in order, dedented: ``` or ~~~ of any length and indentation, in lists, after a word of prose.

    A closing fence that would leave unparsable Python is passed over when a later one closes a block that does parse:
    such a fence stands in a docstring. A block labelled markdown is looked into.
    """
    lines = text.split("\n")
    found: list[Block] = []
    at = 0
    while at < len(lines):
        opening = OPENING.match(lines[at])
        at += 1
        if opening is None and at < len(lines) and not OPENING.match(lines[at]):
            opening = AFTER_PROSE.search(lines[at - 1])
        if opening is None:
            continue
        block, at = _block(lines, at, opening)
        inner = blocks(block.text) if block.info.lower() in ("markdown", "md") else []
        found.extend(inner or [block])
    return found


def _block(lines: list[str], start: int, opening: re.Match[str]) -> tuple[Block, int]:
    fence, info = opening["fence"], opening["info"].strip().partition(" ")[0]
    indent = len(lines[start - 1]) - len(lines[start - 1].lstrip())
    closing = re.compile(rf"^[ \t]{{0,{indent + 3}}}{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$")
    ends = [number for number in range(start, len(lines)) if closing.match(lines[number])]
    if not ends:
        return Block(_code(lines[start:]), info, closed=False), len(lines)
    end = next((end for end in ends[:FENCES] if _parses(_code(lines[start:end]))), ends[0])
    return Block(_code(lines[start:end]), info, closed=True), end + 1


def _code(lines: list[str]) -> str:
    """The lines without their common indentation, otherwise byte for byte (textwrap.dedent would empty blank lines)."""
    margins = [line[: len(line) - len(line.lstrip())] for line in lines if line.strip()]
    margin = min(margins, key=len, default="")
    return "\n".join(line.removeprefix(margin) for line in lines).strip("\n") + "\n"


def _plain(text: str) -> str:
    """Without byte-order mark, with \\n line ends, without a leading <think> section (its drafts are not answers)."""
    unified = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return THINKING.sub("", unified, count=1)


def _defines(code: str) -> bool:
    return DEFINITION.search(code) is not None


def _parses(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _nothing(reply: Reply) -> Extracted:
    if reply.finish == "length":
        message = f"The reply is empty: the token limit was used up before the answer{_used(reply)}. Think less. {ASK}"
        return _failed(ReplyKind.TRUNCATED, message)
    if reply.finish == "content_filter":
        return _failed(ReplyKind.EMPTY, f"The reply is empty: the provider's content filter withheld it. {ASK}")
    return _failed(ReplyKind.EMPTY, f"The reply is empty. {ASK}")


def _why_no_code(reply: Reply, text: str, found: list[Block]) -> str:
    if reply.finish == "content_filter":
        return "The provider's content filter cut the reply before any usable code."
    if not found:
        return f"The reply defines {CLASS} outside a code block." if _defines(text) else "The reply has no code block."
    if any(re.search(r"^class[ \t]+Model\b", block.text, re.MULTILINE) for block in found):
        return f"The code defines class Model; the candidate's class must be called {CLASS}."
    count = "The one code block does not define" if len(found) == 1 else f"None of the {len(found)} code blocks defines"
    return f"{count} class {CLASS}."


def _used(reply: Reply) -> str:
    usage = reply.usage
    thought = f", {usage.reasoning_tokens} of them for reasoning" if usage.reasoning_tokens else ""
    return f" ({usage.output_tokens} output tokens{thought})" if usage.output_tokens else ""


def _failed(kind: ReplyKind, message: str) -> Extracted:
    return Extracted(None, kind, message)


def _objects(text: str) -> Iterator[Mapping[str, Json]]:
    decoder = json.JSONDecoder()
    at = text.find("{")
    for _ in range(BRACES):
        if at < 0:
            return
        try:
            tree, end = decoder.raw_decode(text, at)
        except ValueError:
            end = at + 1
        except RecursionError:
            return
        else:
            yield tree
        at = text.find("{", end)


def _as_text(value: Json) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return None
