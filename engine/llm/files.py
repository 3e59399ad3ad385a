"""Files that people and programs read while we write them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from engine.errors import LlmError, MissingError


def read_text(path: Path) -> str:
    """The text of a file that somebody else wrote, without a byte-order mark; LlmError when it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"{path}: expected UTF-8 text, found byte {error.object[error.start]:#04x} at offset {error.start}"
        raise LlmError(message, kind="unreadable", hint="save the file as UTF-8") from error


def ensure_folder(path: Path, setting: str) -> None:
    """Make the folder of a setting; MissingError when that is impossible or it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MissingError(
            f"{setting}: cannot make the folder {path}: {error.strerror}", hint=f"change {setting}"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise MissingError(f"{setting}: the folder {path} cannot be written", hint=f"change {setting}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file, which is made when absent; other processes wait."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
