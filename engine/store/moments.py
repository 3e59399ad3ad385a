"""Moments at which rules were evaluated, and what another expression would have said at them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.rules import Expression, to_sql
from engine.store.database import Connection
from engine.store.present import present
from engine.store.selection import select
from engine.store.views import identifier, json_path, literal
from engine.vocabulary import FACTS, THRESHOLD_PREFIX, OperandKind, operands

RULES = present("rules")
"""The evaluations for the present text of a task that was edited."""
_OF_TASKS = f"{RULES} r JOIN tasks t USING (run_id, task_id)"


@dataclass(frozen=True, slots=True)
class Scope:
    """Which evaluations are replayed; None: all. `runs`: a word as `selection.select` takes it."""

    runs: str | None = None
    category: str | None = None
    stage: str | None = None


def where_of(connection: Connection, rule: str, scope: Scope) -> str:
    """A condition on rules `r` and tasks `t`: the evaluations of `rule` in the scope."""
    parts = [f"r.rule = {literal(rule)}"]
    if scope.runs is not None:
        chosen = ", ".join(literal(run_id) for run_id in select(connection, scope.runs).run_ids)
        parts.append(f"r.run_id IN ({chosen})")
    parts += [f"t.category = {literal(scope.category)}"] if scope.category is not None else []
    parts += [f"r.stage = {literal(scope.stage)}"] if scope.stage is not None else []
    return " AND ".join(parts)


def kinds_of(connection: Connection, where: str) -> set[str]:
    """The kinds under which the evaluations that `where` takes were recorded."""
    sql = f"SELECT DISTINCT r.kind FROM {_OF_TASKS} WHERE {where}"
    return {kind for (kind,) in connection.execute(sql).fetchall()}


def recorded(connection: Connection, rule: str, scope: Scope) -> str:
    """What is recorded instead: the rule's stages where the stage alone is wrong, else all rules."""
    if scope.stage is not None:
        where = where_of(connection, rule, replace(scope, stage=None))
        sql = f"SELECT DISTINCT r.stage FROM {_OF_TASKS} WHERE {where} ORDER BY r.stage"
        stages = [stage for (stage,) in connection.execute(sql).fetchall()]
        if stages:
            return f" in stage '{scope.stage}'; it is recorded in {', '.join(stages)}"
    sql = "SELECT DISTINCT rule FROM rules ORDER BY rule"
    names = [name for (name,) in connection.execute(sql).fetchall()]
    return f" in this scope; recorded are {', '.join(names)}" if names else "; no rule is recorded"


def vocabulary(connection: Connection) -> dict[str, OperandKind]:
    """The names that an expression can read."""
    seen = {name for (name,) in connection.execute("SELECT DISTINCT unnest(json_keys(operands)) FROM rules").fetchall()}
    kept = "SELECT DISTINCT unnest(json_keys(thresholds)) FROM run_starts"
    thresholds = {name for (name,) in connection.execute(kept).fetchall()}
    metrics = {name for name in seen if not name.startswith(THRESHOLD_PREFIX)}
    return dict(operands(sorted(metrics), sorted(thresholds)))


def moments_of(expression: Expression, where: str) -> str:
    """Common table expressions: `outcomes` has what the expression `says` at each moment of the tasks in question."""
    names = sorted(expression.names)
    columns = "".join(f", {_operand(name)} AS {_alias(name)}" for name in names)
    says = to_sql(expression, _alias)
    return f"""
WITH places AS (
    SELECT DISTINCT r.run_id, r.task_id, r.stage, r.kind FROM {_OF_TASKS} WHERE {where}),
moments AS (
    SELECT r.run_id, r.task_id, r.stage, r.kind, r.candidate_id{columns}
    FROM {RULES} r JOIN places USING (run_id, task_id, stage, kind)
    JOIN tasks t USING (run_id, task_id) JOIN runs u USING (run_id)
    GROUP BY r.run_id, r.task_id, r.stage, r.kind, r.candidate_id),
outcomes AS (SELECT *, {says} AS says FROM moments)
"""


def _alias(name: str) -> str:
    return identifier(f"operand {name}")


def _operand(name: str) -> str:
    if name in FACTS:
        return f"any_value(t.facts ->> {json_path(name)})"
    if name.startswith(THRESHOLD_PREFIX):
        return f"any_value(u.thresholds ->> {json_path(name.removeprefix(THRESHOLD_PREFIX))})"
    return f"any_value(r.operands ->> {json_path(name)})"
