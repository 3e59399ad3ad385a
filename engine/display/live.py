"""Live progress on a terminal: a row per operator, the last lines under it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engine.canonical import Json
from engine.display.lines import count, line, times

LAST_LINES = 8
REFRESHES_PER_SECOND = 4


@dataclass(slots=True)
class _Progress:
    category: str
    stage: str = ""
    candidates: int = 0
    correct: int = 0
    best: float | None = None
    tokens: int = 0
    outcome: str = "running"


class RichDisplay:
    def __init__(self, stream: TextIO) -> None:
        self._tasks: dict[str, _Progress] = {}
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._console = Console(file=stream)
        self._live = Live(console=self._console, refresh_per_second=REFRESHES_PER_SECOND, transient=True)
        self._live.start()

    def show(self, event: Json) -> None:
        self._note(event)
        text = line(event)
        if text is not None:
            self._last.append(text)
        self._live.update(self._picture())

    def close(self) -> None:
        """Takes the live picture away and gives the cursor back; the end table is printed by the caller."""
        self._live.stop()

    def _note(self, event: Json) -> None:
        kind, task_id = event["kind"], event["task_id"]
        if kind == "task_started":
            self._tasks[task_id] = _Progress(event["category"])
        if task_id not in self._tasks:
            return
        task = self._tasks[task_id]
        if kind == "stage_started":
            task.stage = event["stage"]
        elif kind == "llm_call":
            task.tokens += event["input_tokens"] + event["output_tokens"]
        elif kind == "verdict":
            task.candidates += 1
            task.correct += event["status"] == "correct"
        elif kind == "stage_ended":
            task.best = event["speedup"]
        elif kind == "task_ended":
            task.best, task.outcome = event["speedup"], event["outcome"]
        elif kind == "task_failed":
            task.outcome = "failed"

    def _picture(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("operator", "category", "stage"):
            table.add_column(name, no_wrap=True)
        for name in ("candidates", "vs eager", "tokens"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("")
        for task_id, task in self._tasks.items():
            correct = f"{task.correct} of {task.candidates} correct"
            row = (task_id, task.category, task.stage, correct, times(task.best), count(task.tokens), task.outcome)
            table.add_row(*map(Text, row), style=None if task.outcome == "running" else "dim")
        lines = (Text(text, style="dim", no_wrap=True, overflow="ellipsis") for text in self._last)
        return Group(table, Text(), *lines)
