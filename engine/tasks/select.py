"""Which tasks of a source a run takes."""

from __future__ import annotations

import fnmatch
import random
import re
from collections.abc import Sequence

from engine.codec import did_you_mean
from engine.errors import ConfigError, Fault
from engine.records import Task
from engine.settings import TaskSettings

_SHOWN = 30


def select(tasks: Sequence[Task], settings: TaskSettings, names: Sequence[str]) -> tuple[Task, ...]:
    """Narrow `tasks` in this order: names, exclude, levels, numbers, first, sample.

    `names` and `exclude` hold task ids, names or glob patterns; the result keeps the order of `names`, else the
    natural order. Raises ConfigError for names and patterns that match nothing, and when nothing is left.
    """
    faults: list[Fault] = []
    chosen = _named(tasks, names, "task.names", faults) if names else list(tasks)
    left_out = {task.task_id for task in _named(tasks, settings.exclude, "task.exclude", faults)}
    numbers = _numbers(settings.numbers, faults)
    if faults:
        raise ConfigError(faults)
    chosen = [task for task in chosen if task.task_id not in left_out]
    if settings.levels:
        chosen = [task for task in chosen if task.level in settings.levels]
    if numbers is not None:
        chosen = [task for task in chosen if task.number is not None and any(task.number in part for part in numbers)]
    if settings.first is not None:
        chosen = chosen[: settings.first]
    if settings.sample is not None and settings.sample < len(chosen):
        drawn = set(random.Random(settings.seed).sample(range(len(chosen)), settings.sample))
        chosen = [task for n, task in enumerate(chosen) if n in drawn]
    if not chosen:
        ids = [task.task_id for task in tasks]
        known = ", ".join(ids[:_SHOWN]) + (f", … ({len(ids)} in all)" if len(ids) > _SHOWN else "")
        raise ConfigError([Fault("task", f"the selection leaves no task; known: {known}")])
    return tuple(chosen)


def _named(tasks: Sequence[Task], names: Sequence[str], path: str, faults: list[Fault]) -> list[Task]:
    found: dict[str, Task] = {}
    for n, name in enumerate(names):
        matching = [task for task in tasks if name in (task.task_id, task.name)]
        matching = matching or [task for task in tasks if _matches(task, name)]
        if not matching:
            known = {task.task_id for task in tasks} | {task.name for task in tasks}
            faults.append(Fault(f"{path}[{n}]", f"no task is called or matches '{name}'{did_you_mean(name, known)}"))
        found |= {task.task_id: task for task in matching}
    return list(found.values())


def _matches(task: Task, pattern: str) -> bool:
    return fnmatch.fnmatchcase(task.task_id, pattern) or fnmatch.fnmatchcase(task.name, pattern)


def _numbers(text: str | None, faults: list[Fault]) -> list[range] | None:
    if text is None:
        return None
    found = []
    for part in text.split(","):
        matched = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if matched is None:
            faults.append(Fault("task.numbers", f"expected numbers and ranges like '1-10,45', got {part!r}"))
            continue
        first = int(matched[1])
        last = int(matched[2]) if matched[2] else first
        if last < first:
            faults.append(Fault("task.numbers", f"the range {part.strip()} is empty"))
        found.append(range(first, last + 1))
    return found
