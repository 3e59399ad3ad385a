"""Answers as text for a terminal."""

from __future__ import annotations

from engine.results.text import table
from engine.store import Answer


def test_a_terminal_is_sent_no_control_sequences():
    hostile = "\x1b[31mred\x1b[0m \x1b]0;title\x07and\x9b2J\x08 bell\x07\x7f"
    shown = table(Answer(("\x1b[2Jname", "n"), ((hostile, 1), ("two\nlines\u00b5", "?"))))
    assert shown.splitlines() == [
        "name          n",
        "------------  -",
        "red and bell  1",
        "two linesµ    ?",
        "(2 rows)",
    ]
