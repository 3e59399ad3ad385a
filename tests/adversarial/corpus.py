"""The corpus as records: index.csv parsed, sources, tasks with their policy.

Columns of index.csv: `file` in cases/; `task`, bundled or in tests/adversarial/tasks; `label`: honest, cheat or defect;
`catalogue`: row of the catalogue of cheats; `reason`: what the verdict may say, alternatives by `|`; `what`: in a few
words; `policy`: the host_ops under which it is judged, empty for the configured one; `cpu`, `cuda`: where the outcome
on one back-end is another: reasons, `not_decidable`, or `timed` (it may pass the checks; its time has to be true).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

from engine.records import Reason, Status, Task, Verdict
from engine.tasks.contracts import make_task
from engine.tasks.sources import from_files

HERE = Path(__file__).resolve().parent
CASES = HERE / "cases"
BUNDLED = HERE.parents[1] / "tasks"
LABELS = ("honest", "cheat", "defect")
POLICIES = ("", "none", "library", "any")
NOT_DECIDABLE, TIMED, CORRECT = "not_decidable", "timed", "correct"
OUTCOMES = frozenset({NOT_DECIDABLE, TIMED, CORRECT, *(reason.value for reason in Reason)})


@dataclass(frozen=True, slots=True)
class Row:
    """One line of index.csv. `cpu` and `cuda` are the outcomes that a back-end may have: reasons, or `correct`."""

    file: str
    task: str
    label: str
    catalogue: str
    what: str
    policy: str
    cpu: frozenset[str]
    cuda: frozenset[str]

    @property
    def name(self) -> str:
        return self.file.removesuffix(".py") + (f"-{self.policy}" if self.policy else "")

    @property
    def honest(self) -> bool:
        return self.label == "honest"

    @property
    def limit(self) -> str:
        """The limit that it is to meet, `time` or `memory`; empty: none."""
        outcomes = self.cpu | self.cuda
        return "time" if "timeout" in outcomes else "memory" if "out_of_memory" in outcomes else ""

    def source(self) -> str:
        return (CASES / self.file).read_text(encoding="utf-8")

    def outcomes(self, backend: str) -> frozenset[str]:
        """What `cpu` or `cuda` may say of it."""
        return self.cpu if backend == "cpu" else self.cuda


def outcome_of(verdict: Verdict) -> str:
    """A verdict in the words of the index."""
    return CORRECT if verdict.status is Status.CORRECT else str(verdict.reason)


@functools.cache
def rows() -> tuple[Row, ...]:
    """The index; ValueError for a word that it may not use."""
    with (HERE / "index.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_row(line) for line in csv.DictReader(file))


def _row(line: dict[str, str]) -> Row:
    own = line["reason"] or CORRECT
    cpu, cuda = (frozenset((line[name] or own).split("|")) for name in ("cpu", "cuda"))
    unknown = (cpu | cuda) - OUTCOMES
    if unknown or line["label"] not in LABELS or line["policy"] not in POLICIES:
        raise ValueError(f"index.csv, {line['file']}: unknown label, policy or outcome {', '.join(sorted(unknown))}")
    return Row(line["file"], line["task"], line["label"], line["catalogue"], line["what"], line["policy"], cpu, cuda)


@functools.cache
def _tasks() -> dict[str, Task]:
    return {task.name: task for folder in (BUNDLED, HERE / "tasks") for task in from_files(str(folder))}


@functools.cache
def task_of(name: str, policy: str = "") -> Task:
    """A task by name, with `policy` as its host_ops when there is one."""
    task = _tasks()[name]
    if not policy:
        return task
    contract = dataclasses.replace(task.contract, host_ops=policy)
    return make_task(task.task_id, task.name, task.source, contract, task.contract_origin, task.level, task.number)
