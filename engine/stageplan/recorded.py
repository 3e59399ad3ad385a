"""What recorded runs say of rules: which never fired, always fired, or were never known, however often asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine import store
from engine.errors import MissingError, StoreError
from engine.stageplan.lint import Finding, Plans, Severity
from engine.store.database import DATABASE

KINDS = {"skip": "skip_when", "exit": "exit_when", "require": "require"}
LEAST = 10
"""Evaluations below which a rule that said the same each time proves nothing."""

COUNTS = """
SELECT t.category, r.stage, r.kind, r.rule, r.expression, count(*), count(DISTINCT r.task_id),
       count(*) FILTER (r.outcome = 'true'), count(*) FILTER (r.outcome = 'false')
FROM rules r JOIN tasks t USING (run_id, task_id) GROUP BY ALL ORDER BY ALL
"""


@dataclass(frozen=True, slots=True)
class Count:
    """How often one rule was evaluated, on how many tasks, and was true and false; the rest was unknown."""

    category: str
    stage: str
    kind: str
    rule: str
    expression: str
    evaluations: int
    tasks: int
    true: int
    false: int


def counts(data: Path) -> tuple[Count, ...]:
    """From a results folder, whose journals are taken in first, or from its database file; none where there is no
    database. MissingError for a path that does not exist."""
    if not data.exists():
        raise MissingError(f"no results at {data}", hint="--data names a results folder or its results.duckdb")
    folder = data if data.is_dir() else data.parent
    if data.is_dir() and (data / "runs").is_dir():
        # What another program holds open, or nobody may write, is read as it is.
        with contextlib.suppress(StoreError):
            store.ingest(data)
    if not (folder / DATABASE).is_file():
        return ()
    return tuple(Count(*row) for row in store.query(folder, COUNTS).rows)


def on_record(plans: Plans, found: tuple[Count, ...], least: int = LEAST) -> Iterator[Finding]:
    """Findings on rules of these plans that stand in them word for word."""
    for count in found:
        path = f"categories.{count.category}.stages.{count.stage}.{KINDS[count.kind]}.{count.rule}"
        if count.evaluations >= least and _when(plans, count) == count.expression:
            said = _said(count)
            if said:
                told = f"{said} in {count.evaluations} recorded evaluations on {count.tasks} operators"
                yield Finding(Severity.WARNING, f"{path}.when", told)


def _said(count: Count) -> str:
    if count.true + count.false == 0:
        return "never known"
    if count.true == count.evaluations and count.kind != "require":
        return "always true"
    return "never true" if count.true == 0 else ""


def _when(plans: Plans, count: Count) -> str | None:
    """The rule's expression in the plans at hand; None where they have no such rule."""
    categories = plans.settings.categories
    stages = categories[count.category].stages if count.category in categories else {}
    if count.stage not in stages or count.kind not in KINDS:
        return None
    rules = getattr(stages[count.stage], KINDS[count.kind])
    return rules[count.rule].when if count.rule in rules else None
