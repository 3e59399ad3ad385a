"""One CPU back-end for all tests that judge: its processes start once and end with the test run."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import shutil
import tempfile
from pathlib import Path

from engine.backends.cpu import CpuBackend
from engine.project import project_root
from engine.records import Facts, Operator, Task, Verdict
from engine.settings import Settings
from engine.tasks import load_tasks
from tests.support.compose import compose

FACTS = Facts(0, 0, 0, 0, 0, 0, 0, 0, 0, None, None, 0.0, 0.0, 0.0, "float32", "none")
CASES = Path(__file__).resolve().parents[1] / "adversarial" / "cases"
LIMITS = ("judge.limits.run_s=20", "judge.limits.trace_s=20", "judge.limits.memory_gib=4")


@functools.cache
def settings() -> Settings:
    return compose("backend=cpu", *LIMITS)[0]


@functools.cache
def backend() -> CpuBackend:
    scratch = Path(tempfile.mkdtemp(prefix="judge-tests-"))
    opened = CpuBackend(settings(), project_root(), scratch)

    def end() -> None:
        opened.__exit__(None, None, None)
        shutil.rmtree(scratch, ignore_errors=True)

    atexit.register(end)
    return opened


@functools.cache
def bundled_tasks() -> dict[str, Task]:
    everything = dataclasses.replace(
        settings().task, source="bundled", names=(), of_category=False, levels=(), numbers=None, first=None, sample=None
    )
    return {task.name: task for task in load_tasks(everything, (), project_root())}


def case(name: str) -> str:
    """The source of a corpus case, by file name without suffix."""
    return (CASES / f"{name}.py").read_text(encoding="utf-8")


def judged(task: str | Task, source: str) -> Verdict:
    chosen = bundled_tasks()[task] if isinstance(task, str) else task
    return backend().judge(Operator(chosen, FACTS), source)
