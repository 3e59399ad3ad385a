"""Reference operators: where they come from, which a run takes, and what they are."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engine.canonical import digest_text
from engine.codec import decode
from engine.errors import ConfigError, Fault
from engine.records import Task
from engine.settings import TaskSettings
from engine.tasks.contracts import make_task
from engine.tasks.facts_client import FACTS_VERSION, derive_variants
from engine.tasks.select import select
from engine.tasks.sources import from_dataset, from_files

__all__ = ["find_tasks", "load_tasks"]


def load_tasks(
    settings: TaskSettings,
    representatives: Sequence[str],
    root: Path,
    *,
    bundled: str = "tasks",
    cache: Path | None = None,
) -> tuple[Task, ...]:
    """The selected tasks, those without a contract with derived `small` and `odd` variants.

    `representatives` replace `settings.names` when `settings.of_category` is set and there are any. Relative paths
    are meant from the working directory, else from `root`; `bundled` is the folder of the bundled tasks. Derived
    variants are kept in `cache`, by source.
    Raises ConfigError with all faults, MissingError when the source is absent.
    """
    tasks = find_tasks(settings, representatives, root, bundled=bundled)
    foreign = [task for task in tasks if task.contract_origin == "derived"]
    if not foreign:
        return tasks
    variants = _derived(foreign, cache)
    return tuple(_completed(task, variants[task.task_id]) if task.task_id in variants else task for task in tasks)


def find_tasks(
    settings: TaskSettings, representatives: Sequence[str], root: Path, *, bundled: str = "tasks"
) -> tuple[Task, ...]:
    """The selected tasks as they stand: starts no process and derives nothing."""
    if settings.source == "bundled":
        tasks = from_files(str(root / bundled))
    elif settings.path is None:
        raise ConfigError([Fault("task.path", f"missing; task.source={settings.source} reads the tasks from it")])
    else:
        given = Path(settings.path).expanduser()
        path = str(given if given.exists() or not (root / given).exists() else root / given)
        tasks = from_dataset(path) if settings.source == "kernelbench" else from_files(path)
    names = representatives if settings.of_category and representatives else settings.names
    return select(tasks, settings, names)


def _completed(task: Task, variants: dict[str, dict[str, int]]) -> Task:
    contract = dataclasses.replace(task.contract, variants=variants)
    return make_task(task.task_id, task.name, task.source, contract, "derived", task.level, task.number)


def _derived(tasks: Sequence[Task], cache: Path | None) -> dict[str, dict[str, dict[str, int]]]:
    found = {task.task_id: kept for task in tasks if (kept := _kept(task, cache)) is not None}
    missing = [task for task in tasks if task.task_id not in found]
    if missing:
        with tempfile.TemporaryDirectory() as scratch:
            derived = derive_variants([task.source for task in missing], Path(scratch))
        for task, variants in zip(missing, derived, strict=True):
            found[task.task_id] = variants
            _keep(task, cache, variants)
    return found


def _kept(task: Task, cache: Path | None) -> dict[str, dict[str, int]] | None:
    file = _cache_file(task, cache)
    if file is None or not file.exists():
        return None
    return decode(dict[str, dict[str, int]], json.loads(file.read_text(encoding="utf-8")), str(file))


def _keep(task: Task, cache: Path | None, variants: dict[str, dict[str, int]]) -> None:
    file = _cache_file(task, cache)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(".tmp")
        scratch.write_text(json.dumps(variants), encoding="utf-8")
        scratch.replace(file)


def _cache_file(task: Task, cache: Path | None) -> Path | None:
    return cache / f"{digest_text(FACTS_VERSION + task.source)}.json" if cache else None
