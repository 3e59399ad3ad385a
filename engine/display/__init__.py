"""What people see: live progress and the end table. Everything shown comes from journal events."""

from __future__ import annotations

import os
from typing import TextIO

from engine.display.foretold import forecast_text
from engine.display.none import NoDisplay
from engine.display.plain import PlainDisplay
from engine.display.seam import Display
from engine.display.table import end_table
from engine.errors import ConfigError, Fault

__all__ = ["Display", "end_table", "forecast_text", "open_display"]

MODES = ("auto", "rich", "plain", "none")


def open_display(mode: str, stream: TextIO) -> Display:
    """A display that writes to `stream`. `auto` is rich on a terminal, plain on anything else and wherever NO_COLOR or
    CI is set; another mode than the known ones raises ConfigError."""
    if mode not in MODES:
        raise ConfigError([Fault("display.mode", f"expected one of {', '.join(MODES)}, got {mode!r}")])
    if mode == "none":
        return NoDisplay()
    if mode == "plain" or (mode == "auto" and not _lively(stream)):
        return PlainDisplay(stream)
    from engine.display.live import RichDisplay  # 0.05 s that a plain run need not pay

    return RichDisplay(stream)


def _lively(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and not os.environ.get("CI")
