"""One line per event that a person would want to know of: for pipes, CI logs and `NO_COLOR`."""

from __future__ import annotations

from typing import TextIO

from engine.canonical import Json
from engine.display.lines import line


class PlainDisplay:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, event: Json) -> None:
        text = line(event)
        if text is not None:
            self._stream.write(text + "\n")
            self._stream.flush()

    def close(self) -> None:
        self._stream.flush()
