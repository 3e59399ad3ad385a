"""Fixtures that many tests share. Tests marked gpu are skipped where no CUDA device answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

import engine.run
import engine.tasks
from engine.backends.detect import cuda_devices

T, U = TypeVar("T"), TypeVar("U")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and cuda_devices() == 0:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device answers"))


@pytest.fixture(scope="session", autouse=True)
def described_once() -> Iterator[None]:
    """Facts and variants of a task are found in a process that imports torch: once for all tests of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.run, "describe", _once(engine.run.describe, lambda task: task.task_hash))
        patch.setattr(engine.tasks, "derive_variants", _once(engine.tasks.derive_variants, str))
        yield


def _once(
    find: Callable[[Sequence[T], Path], tuple[U, ...]], key: Callable[[T], str]
) -> Callable[[Sequence[T], Path], tuple[U, ...]]:
    known: dict[str, U] = {}

    def found(tasks: Sequence[T], scratch: Path) -> tuple[U, ...]:
        missing = [task for task in tasks if key(task) not in known]
        if missing:
            known.update(zip(map(key, missing), find(missing, scratch), strict=True))
        return tuple(known[key(task)] for task in tasks)

    return found


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared(project: Path) -> Path:
    """The folder with data sets and samples beside the checkout; tests that use it are skipped without it."""
    folder = project.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: it holds data that is not part of the project")
    return folder
