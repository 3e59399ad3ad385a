"""A rule with another expression, over the moments at which rules were evaluated: what it would have said, and, in the
place of a recorded rule, which stages and plans it would have cut short, what that saves and what it loses."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from engine.errors import MissingError
from engine.rules import Expression, parse, to_sql
from engine.store.database import Connection
from engine.store.query import Answer, answer_of, reader
from engine.store.selection import select
from engine.store.statistics import geometric_mean, known_sum
from engine.store.views import identifier, json_path, literal
from engine.vocabulary import FACTS, THRESHOLD_PREFIX, OperandKind, operands


@dataclass(frozen=True, slots=True)
class Scope:
    """Which evaluations are replayed; None: all. `runs`: a word as `selection.select` takes it."""

    runs: str | None = None
    category: str | None = None
    stage: str | None = None


@dataclass(frozen=True, slots=True)
class Saved:
    """What stages took as if nothing had been in the memo: `seconds` of model and judge, of these `gpu_s` on a GPU.
    `usd` is None where a call has no known price."""

    stages: int
    calls: int
    tokens: int
    usd: float | None
    seconds: float
    gpu_s: float


NOTHING = Saved(0, 0, 0, 0.0, 0.0, 0.0)
_SKIPS_OPEN = "skips, goes on"
_OPEN = ("runs", "goes on", _SKIPS_OPEN)


@dataclass(frozen=True, slots=True)
class Decision:
    """One evaluation that decides otherwise, or that cannot be decided. `effect`: `skips` the stage, `ends` the plan
    after it, `goes on` or `runs` where the record stopped (what that costs and finds is not recorded: None), `skips,
    goes on` where the stage left out had ended the plan, or `unknown`. `gain_lost`: product of the paired gains that
    the stages left out really found, at least 1."""

    run_id: str
    task_id: str
    category: str
    stage: str
    kind: str
    recorded: str
    now: str
    effect: str
    saved: Saved | None
    gain_lost: float | None
    score_kind: str | None


@dataclass(frozen=True, slots=True)
class Total:
    """All plans of one kind of score. `spent`: what they took; `gain_lost`: geometric mean over the plans, those
    without a loss as 1; `worse`: plans that lose a gain; `open`: plans that would go on where the record stopped."""

    score_kind: str | None
    plans: int
    evaluations: int
    unknown: int
    skips: int
    ends: int
    open: int
    spent: Saved
    saved: Saved
    worse: int
    gain_lost: float | None


@dataclass(frozen=True, slots=True)
class Replay:
    rule: str
    expression: str
    decisions: tuple[Decision, ...]
    totals: tuple[Total, ...]


def what_if(results: Path, rule: str) -> Answer:
    """How often `rule` would have been true, false and unknown at each place where rules were evaluated.

    A place is one moment of one task: its facts, the run's thresholds, and every operand that any rule read there. A
    name that no rule of the moment read is unknown. Raises RuleError for a faulty rule.
    """
    with reader(results) as connection:
        moments = _moments(parse(rule, _vocabulary(connection)), "TRUE")
        return answer_of(connection, f"{moments} {_COUNTS}")


_COUNTS = """
SELECT t.category, o.stage, o.kind, count(*) AS moments, count(*) FILTER (o.says) AS "true",
       count(*) FILTER (NOT o.says) AS "false", count(*) FILTER (o.says IS NULL) AS "unknown"
FROM outcomes o JOIN tasks t USING (run_id, task_id)
GROUP BY t.category, o.stage, o.kind ORDER BY t.category, o.stage, o.kind
"""


def replay(results: Path, expression: str, rule: str, scope: Scope) -> Replay:
    """The recorded plans with `expression` in the place of skip or exit rule `rule`; all other rules as recorded.

    Stages and drafts keep what they found: a stage that is left out takes its own gain with it, no other's. Raises
    RuleError for a faulty expression, MissingError where no such rule was evaluated."""
    with reader(results) as connection:
        checked = parse(expression, _vocabulary(connection))
        where = _where(connection, rule, scope)
        sql = _moments(checked, where) + _EVALUATIONS.format(where=where, rule=literal(rule))
        evaluations = connection.execute(sql).fetchall()
        if not evaluations:
            raise MissingError(f"no evaluation of a skip or exit rule '{rule}'{_recorded(connection, rule, scope)}")
        plans = connection.execute(_PLANS.format(where=where)).fetchall()
    by_plan: dict[tuple[str, str], list[_Evaluation]] = defaultdict(list)
    for run_id, task_id, *values in evaluations:
        by_plan[run_id, task_id].append(_Evaluation(*values))
    decisions: list[Decision] = []
    outcomes = []
    for (run_id, task_id), rows in itertools.groupby(plans, key=lambda row: (row[0], row[1])):
        stages = [_Ended(*row[2:]) for row in rows]
        found = list(_walk(run_id, task_id, stages, by_plan[run_id, task_id]))
        decisions += [decision for decision in found if decision.effect]
        outcomes.append(_Outcome(stages[-1].score_kind, stages, found))
    kinds = sorted({outcome.score_kind for outcome in outcomes}, key=lambda kind: (kind is None, kind))
    totals = (_total(kind, [outcome for outcome in outcomes if outcome.score_kind == kind]) for kind in kinds)
    return Replay(rule, expression, tuple(decisions), tuple(totals))


@dataclass(frozen=True, slots=True)
class _Evaluation:
    stage: str
    kind: str
    recorded: str
    fired: bool
    says: bool | None
    settled: bool
    """Another rule of the same stage and kind fired and was obeyed."""

    @property
    def now(self) -> str:
        return "unknown" if self.says is None else "true" if self.says else "false"

    @property
    def fires(self) -> bool:
        """An unknown rule fires where it did so when it was unknown: on_missing says so."""
        return self.fired and self.recorded == "unknown" if self.says is None else self.says


@dataclass(frozen=True, slots=True)
class _Ended:
    stage: str
    category: str
    outcome: str
    rule: str | None
    gain: float | None
    score_kind: str | None
    calls: int
    tokens: int
    usd: float | None
    seconds: float
    gpu_s: float
    last: bool
    """No plan of the category has a stage after it, and one came to its end there."""

    @property
    def ran(self) -> bool:
        """As part of the plan; an audit is none."""
        return self.outcome in ("done", "exited")


@dataclass(frozen=True, slots=True)
class _Outcome:
    score_kind: str | None
    stages: Sequence[_Ended]
    decisions: Sequence[Decision]


def _walk(run_id: str, task_id: str, stages: Sequence[_Ended], found: Iterable[_Evaluation]) -> Iterator[Decision]:
    """What becomes of one plan, stage by stage; nothing is decided after its end."""
    evaluations = {(one.stage, one.kind): one for one in found}
    for position, stage in enumerate(stages):
        for one in (evaluations.get((stage.stage, kind)) for kind in ("skip", "exit")):
            if one is None:
                continue
            left_out, effect = _effect(one, stage, stages[position + 1 :])
            priced = effect in ("skips", "ends", _SKIPS_OPEN)
            yield Decision(
                run_id,
                task_id,
                stage.category,
                stage.stage,
                one.kind,
                one.recorded,
                one.now,
                effect,
                _sum(left_out) if priced else None,
                prod(max(1.0, other.gain or 1.0) for other in left_out) if priced else None,
                stage.score_kind,
            )
            if effect in ("ends", "goes on", _SKIPS_OPEN):
                return
            if effect == "skips":
                break  # exit rules are not asked after a stage that was skipped


def _effect(one: _Evaluation, stage: _Ended, later: Sequence[_Ended]) -> tuple[list[_Ended], str]:
    """The stages that would not have run, and what happens; no effect: as recorded."""
    if one.settled:
        return [], ""
    goes_on = stage.outcome == "exited" and not stage.last
    if one.kind == "skip":
        if one.fires:
            return ([stage], _SKIPS_OPEN if goes_on else "skips") if stage.ran else ([], "")
        stopped = not stage.ran and one.fired
        return [], "runs" if stopped else "unknown" if one.says is None else ""
    if one.fires:
        rest = [other for other in later if other.ran]
        return (rest, "ends") if rest else ([], "")
    if stage.outcome == "exited" and one.fired:
        return [], "goes on" if goes_on else ""
    return [], "unknown" if one.says is None else ""


def _sum(stages: Iterable[_Ended]) -> Saved:
    found = list(stages)
    whole = (sum(stage.calls for stage in found), sum(stage.tokens for stage in found))
    seconds = (sum(stage.seconds for stage in found), sum(stage.gpu_s for stage in found))
    return Saved(len(found), *whole, known_sum(stage.usd for stage in found), *seconds)


def _total(kind: str | None, plans: Sequence[_Outcome]) -> Total:
    decided = [decision for plan in plans for decision in plan.decisions]
    effects = [decision.effect for decision in decided]
    losses = [prod(d.gain_lost for d in plan.decisions if d.gain_lost is not None) for plan in plans]
    open_ends = sum(any(d.effect in _OPEN for d in plan.decisions) for plan in plans)
    saved = [decision.saved for decision in decided if decision.saved is not None]
    stages, calls, tokens = (sum(getattr(one, name) for one in saved) for name in ("stages", "calls", "tokens"))
    seconds = (sum(one.seconds for one in saved), sum(one.gpu_s for one in saved))
    return Total(
        kind,
        len(plans),
        len(decided),
        sum(decision.now == "unknown" for decision in decided),
        effects.count("skips") + effects.count(_SKIPS_OPEN),
        effects.count("ends"),
        open_ends,
        _sum(stage for plan in plans for stage in plan.stages if stage.ran),
        Saved(stages, calls, tokens, known_sum(one.usd for one in saved), *seconds),
        sum(loss > 1 for loss in losses),
        geometric_mean(losses),
    )


_EVALUATIONS = """
, others AS (
    SELECT DISTINCT run_id, task_id, stage, kind
    FROM (SELECT run_id, task_id, stage, kind, rule, arg_max(obeyed, seq) AS obeyed FROM rules
          WHERE rule <> {rule} GROUP BY ALL)
    WHERE obeyed)
SELECT r.run_id, r.task_id, r.stage, r.kind, arg_max(r.outcome, r.seq), arg_max(r.fired, r.seq),
       arg_max_null(o.says, r.seq), bool_or(x.kind IS NOT NULL)
FROM rules r JOIN tasks t USING (run_id, task_id)
LEFT JOIN others x ON x.run_id = r.run_id AND x.task_id = r.task_id AND x.stage = r.stage AND x.kind = r.kind
JOIN outcomes o ON o.run_id = r.run_id AND o.task_id = r.task_id AND o.stage = r.stage AND o.kind = r.kind
                   AND o.candidate_id IS NOT DISTINCT FROM r.candidate_id
WHERE {where} GROUP BY r.run_id, r.task_id, r.stage, r.kind ORDER BY r.run_id, r.task_id
"""

_PLANS = """
WITH asked AS (SELECT DISTINCT r.run_id, r.task_id FROM rules r JOIN tasks t USING (run_id, task_id) WHERE {where}),
ended AS (SELECT * FROM stages QUALIFY row_number() OVER (PARTITION BY run_id, task_id, stage ORDER BY seq DESC) = 1),
followed AS (SELECT *, lead(stage) OVER (PARTITION BY run_id, task_id ORDER BY seq) AS next FROM ended),
-- Only a plan that nothing cut short shows which stage is the last.
finals AS (SELECT f.category, f.stage FROM followed f JOIN tasks t USING (run_id, task_id)
           WHERE f.next IS NULL AND f.outcome <> 'exited' AND t.outcome = 'done'
           EXCEPT SELECT category, stage FROM followed WHERE next IS NOT NULL)
SELECT e.run_id, e.task_id, e.stage, e.category, e.outcome, e.rule, e.stage_gain, e.score_kind, coalesce(c.calls, 0),
       coalesce(c.tokens, 0), CASE WHEN coalesce(c.unpriced, 0) = 0 THEN coalesce(c.usd, 0.0) END,
       coalesce(c.model_s + c.judge_s, 0.0), coalesce(c.gpu_s, 0.0), f.stage IS NOT NULL
FROM ended e JOIN asked USING (run_id, task_id) LEFT JOIN stage_cost c USING (run_id, task_id, stage)
LEFT JOIN finals f ON f.category = e.category AND f.stage = e.stage
ORDER BY e.run_id, e.task_id, e.seq
"""


def _where(connection: Connection, rule: str, scope: Scope) -> str:
    parts = [f"r.rule = {literal(rule)}", "r.kind IN ('skip', 'exit')"]
    if scope.runs is not None:
        chosen = ", ".join(literal(run_id) for run_id in select(connection, scope.runs).run_ids)
        parts.append(f"r.run_id IN ({chosen})")
    parts += [f"t.category = {literal(scope.category)}"] if scope.category is not None else []
    parts += [f"r.stage = {literal(scope.stage)}"] if scope.stage is not None else []
    return " AND ".join(parts)


def _recorded(connection: Connection, rule: str, scope: Scope) -> str:
    """What is recorded instead: the rule's stages where the stage alone is wrong, else all rules."""
    if scope.stage is not None:
        where = _where(connection, rule, replace(scope, stage=None))
        sql = (
            f"SELECT DISTINCT r.stage FROM rules r JOIN tasks t USING (run_id, task_id) WHERE {where} ORDER BY r.stage"
        )
        stages = [stage for (stage,) in connection.execute(sql).fetchall()]
        if stages:
            return f" in stage '{scope.stage}'; it is recorded in {', '.join(stages)}"
    sql = "SELECT DISTINCT rule FROM rules WHERE kind IN ('skip', 'exit') ORDER BY rule"
    names = [name for (name,) in connection.execute(sql).fetchall()]
    return f" in this scope; recorded are {', '.join(names)}" if names else "; no rule is recorded"


def _vocabulary(connection: Connection) -> dict[str, OperandKind]:
    seen = {name for (name,) in connection.execute("SELECT DISTINCT unnest(json_keys(operands)) FROM rules").fetchall()}
    kept = "SELECT DISTINCT unnest(json_keys(thresholds)) FROM run_starts"
    thresholds = {name for (name,) in connection.execute(kept).fetchall()}
    metrics = {name for name in seen if not name.startswith(THRESHOLD_PREFIX)}
    return dict(operands(sorted(metrics), sorted(thresholds)))


def _moments(expression: Expression, where: str) -> str:
    """Common table expressions: `outcomes` has what the expression `says` at each moment of the tasks in question."""
    names = sorted(expression.names)
    columns = "".join(f", {_operand(name)} AS {_alias(name)}" for name in names)
    says = to_sql(expression, _alias)
    return f"""
WITH places AS (
    SELECT DISTINCT r.run_id, r.task_id, r.stage, r.kind FROM rules r JOIN tasks t USING (run_id, task_id)
    WHERE {where}),
moments AS (
    SELECT r.run_id, r.task_id, r.stage, r.kind, r.candidate_id{columns}
    FROM rules r JOIN places USING (run_id, task_id, stage, kind)
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
