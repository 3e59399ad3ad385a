"""Fixtures that many tests share. Tests marked gpu are skipped where no CUDA device answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.backends.detect import cuda_devices

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and cuda_devices() == 0:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device answers"))


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
