"""JSON lines over a socket, and tensors as raw files: the only forms in which a candidate's process is heard."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from engine.canonical import Json

MAX_LINE = 64 << 20
"""Bytes of one message; a longer one counts as a broken protocol."""

MAX_DEPTH = 100
"""Objects inside objects, or lists inside lists: what reads an answer recurses over it."""

MAX_DIGITS = 20
"""Of one whole number: 64 bits, signed or not."""

PART_BYTES = 64 << 20

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LONG_NUMBER = re.compile(rb"\d{%d}" % (MAX_DIGITS + 1))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class ChannelClosed(Exception):
    """The other side ended, or sent something that is not one JSON object per line."""


class Channel:
    """One JSON object per line over a stream socket.

    `hostile`: the other side may be a candidate's process. Then what JSON itself does not forbid but later readers
    stumble over is garbage too: numbers that are not finite or longer than 64 bits, nesting beyond MAX_DEPTH; halves of
    surrogate pairs become question marks.
    """

    def __init__(self, end: socket.socket, *, hostile: bool = False) -> None:
        self.socket = end
        self._hostile = hostile
        self._buffer = bytearray()
        self._searched = 0

    def send(self, message: Json, timeout_s: float | None = None) -> None:
        """Raises TimeoutError when the other side does not read, ChannelClosed when it has ended."""
        try:
            self.socket.settimeout(timeout_s)
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError:
            raise
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self, timeout_s: float | None = None) -> Json:
        """The next message; raises TimeoutError, or ChannelClosed at the end or on garbage."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            self._fill(deadline)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        try:
            message = _strict(line) if self._hostile else json.loads(line)
        except ValueError as error:
            raise ChannelClosed(f"not a JSON line: {error}: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise ChannelClosed(f"expected a JSON object, got {line[:80]!r}")
        return message

    def _fill(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        try:
            self.socket.settimeout(left)
            chunk = self.socket.recv(1 << 20)
        except TimeoutError:
            raise
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if not chunk:
            raise ChannelClosed("the process ended")
        self._buffer += chunk
        if len(self._buffer) > MAX_LINE:
            raise ChannelClosed(f"a message above {MAX_LINE} bytes")

    def close(self) -> None:
        self.socket.close()


def _strict(line: bytes) -> Json:
    """The JSON value of a line from a hostile process; ValueError for what `Channel` names."""
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _is_deep(line):
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    whole = _short_integer if _LONG_NUMBER.search(line) else None
    # As text: of bytes json would guess the encoding, and let halves of surrogate pairs pass.
    text = line.decode("utf-8")
    tree = json.loads(text, parse_float=_finite, parse_int=whole, parse_constant=_no_constant)
    if _SURROGATE.search(line):
        tree = json.loads(json.dumps(tree, ensure_ascii=False).encode(errors="replace"))
    return tree


def _is_deep(line: bytes) -> bool:
    """Whether brackets outside strings nest deeper than MAX_DEPTH, twice that where lists and objects alternate. A line
    with unpaired ones is no JSON anyway."""
    brackets = _STRING.sub(b"", line).translate(None, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond a double's range")
    return value


def _short_integer(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def read_raw(path: Path, expected_bytes: int) -> bytearray:
    """The content of a plain file of exactly that size; ChannelClosed for a link, a device or another size."""
    content = bytearray(expected_bytes)
    for start, part in read_parts(path, expected_bytes):
        content[start : start + len(part)] = part
    return content


def read_parts(path: Path, expected_bytes: int) -> Iterator[tuple[int, bytearray]]:
    """The same in parts (offset, content): a result at full size need not pass through the host's memory at once."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        # ValueError: a name that no file can have.
        raise ChannelClosed(f"{path.name!r}: {error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != expected_bytes:
            raise ChannelClosed(f"{path.name}: expected a file of {expected_bytes} bytes, found {status.st_size}")
        for start in range(0, expected_bytes, PART_BYTES):
            part = bytearray(min(PART_BYTES, expected_bytes - start))
            if _read_into(descriptor, part) != len(part):
                raise ChannelClosed(f"{path.name}: cut short")
            yield start, part
    finally:
        os.close(descriptor)


def _read_into(descriptor: int, part: bytearray) -> int:
    """Fill `part`; how many bytes there were."""
    done = 0
    view = memoryview(part)
    while done < len(part) and (count := os.readv(descriptor, [view[done:]])):
        done += count
    return done
