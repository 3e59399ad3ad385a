"""JSON lines over a socket, and tensors as raw files: the only forms in which a candidate's process is heard."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from engine.canonical import Json

MAX_LINE = 64 << 20
"""Bytes of one message; a longer one counts as a broken protocol."""

PART_BYTES = 64 << 20


class ChannelClosed(Exception):
    """The other side ended, or sent something that is not one JSON object per line."""


class Channel:
    """One JSON object per line over a stream socket."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._buffer = b""

    def send(self, message: Json) -> None:
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self, timeout_s: float | None = None) -> Json:
        """The next message; raises TimeoutError, or ChannelClosed at the end or on garbage."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            if not select.select([self.socket], [], [], left)[0]:
                raise TimeoutError
            self._fill()
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise ChannelClosed(f"not a JSON line: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise ChannelClosed(f"expected a JSON object, got {line[:80]!r}")
        return message

    def _fill(self) -> None:
        try:
            chunk = self.socket.recv(1 << 20)
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if not chunk:
            raise ChannelClosed("the process ended")
        self._buffer += chunk
        if len(self._buffer) > MAX_LINE:
            raise ChannelClosed(f"a message above {MAX_LINE} bytes")

    def close(self) -> None:
        self.socket.close()


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
    except OSError as error:
        raise ChannelClosed(f"{path.name}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != expected_bytes:
            raise ChannelClosed(f"{path.name}: expected a file of {expected_bytes} bytes, found {status.st_size}")
        for start in range(0, expected_bytes, PART_BYTES):
            part = bytearray(min(PART_BYTES, expected_bytes - start))
            if file.readinto(part) != len(part):
                raise ChannelClosed(f"{path.name}: cut short")
            yield start, part
