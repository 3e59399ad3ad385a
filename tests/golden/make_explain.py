"""Writes tests/golden/explain/*.txt anew: python -m tests.golden.make_explain

Look at the difference before keeping it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.project import project_root
from engine.records import Operator
from engine.stageplan.explain import explain
from engine.tasks import find_tasks
from engine.tasks.facts import describe_task
from tests.support.compose import compose

FOLDER = Path(__file__).parent / "explain"
CASES: Mapping[str, tuple[str, ...]] = {
    "softmax": ("backend=cpu", "task=bundled", "task.names=[softmax]"),
    "conv2d_relu_bias": ("backend=cuda", "llm=gpt", "task=bundled", "task.names=[conv2d_relu_bias]"),
}


def explained(name: str) -> str:
    settings, _ = compose(*CASES[name])
    (task,) = find_tasks(settings.task, (), project_root())
    return explain(settings, Operator(task, describe_task(task)))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in CASES:
        (FOLDER / f"{name}.txt").write_text(explained(name), encoding="utf-8")


if __name__ == "__main__":
    main()
