"""A rule with another expression, over the moments at which rules were evaluated: what it would have said, and, in the
place of a recorded rule, which stages, plans and kernels it would have cut short, what that saves and what it loses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from engine.errors import MissingError
from engine.rules import Expression, parse
from engine.store.database import Connection
from engine.store.moments import RULES, Scope, kinds_of, moments_of, recorded, vocabulary, where_of
from engine.store.plans import (
    END,
    SKIPS_OPEN,
    Decision,
    Ended,
    Outcome,
    Plan,
    Replay,
    Saved,
    Trace,
    recorded_plans,
    replay_of,
    sum_of,
)
from engine.store.query import Answer, answer_of, reader
from engine.store.required import replay_required


def what_if(results: Path, rule: str) -> Answer:
    """How often `rule` would have been true, false and unknown at each place where rules were evaluated.

    A place is one moment of one task: its facts, the run's thresholds, and every operand that any rule read there. A
    name that no rule of the moment read is unknown. Raises RuleError for a faulty rule.
    """
    with reader(results) as connection:
        moments = moments_of(parse(rule, vocabulary(connection)), "TRUE")
        return answer_of(connection, f"{moments} {_COUNTS}")


_COUNTS = """
SELECT t.category, o.stage, o.kind, count(*) AS moments, count(*) FILTER (o.says) AS "true",
       count(*) FILTER (NOT o.says) AS "false", count(*) FILTER (o.says IS NULL) AS "unknown"
FROM outcomes o JOIN tasks t USING (run_id, task_id)
GROUP BY t.category, o.stage, o.kind ORDER BY t.category, o.stage, o.kind
"""


def replay(results: Path, expression: str, rule: str, scope: Scope) -> Replay:
    """The recorded plans with `expression` in the place of `rule`; all other rules obeyed, also in a run that observed
    them. What several runs found in the memo counts once.

    Stages and drafts keep what they found: a stage that is left out takes its own gain with it, no other's. Raises
    RuleError for a faulty expression, MissingError where no such rule was evaluated, or one of its name in two ways."""
    with reader(results) as connection:
        checked = parse(expression, vocabulary(connection))
        where = where_of(connection, rule, scope)
        kinds = kinds_of(connection, where)
        if not kinds:
            raise MissingError(f"no evaluation of a rule '{rule}'{recorded(connection, rule, scope)}")
        if "require" in kinds and len(kinds) > 1:
            problem = f"'{rule}' is the name of a require rule, which refuses where it is false, and of another rule"
            raise MissingError(problem, hint="--category and --stage choose one of them")
        outcomes = (replay_required if kinds == {"require"} else _replay_stages)(connection, checked, where)
    return replay_of(rule, expression, outcomes)


def _replay_stages(connection: Connection, checked: Expression, where: str) -> list[Outcome]:
    sql = moments_of(checked, where) + _EVALUATIONS.format(where=where, evaluations=RULES)
    by_plan: dict[tuple[str, str], list[_Evaluation]] = defaultdict(list)
    for run_id, task_id, *values in connection.execute(sql).fetchall():
        by_plan[run_id, task_id].append(_Evaluation(*values))
    return [
        _outcome(plan, by_plan[plan.run_id, plan.task_id], others) for plan, others in recorded_plans(connection, where)
    ]


@dataclass(frozen=True, slots=True)
class _Evaluation:
    stage: str
    kind: str
    recorded: str
    fired: bool
    says: bool | None

    @property
    def now(self) -> str:
        return "unknown" if self.says is None else "true" if self.says else "false"

    @property
    def fires(self) -> bool:
        """An unknown rule fires where it did so when it was unknown: on_missing says so."""
        return self.fired and self.recorded == "unknown" if self.says is None else self.says


@dataclass(frozen=True, slots=True)
class _Change:
    """What one evaluation does to the plan; no `effect`: as recorded."""

    one: _Evaluation
    stage: Ended
    effect: str
    left_out: tuple[Ended, ...] = ()


def _outcome(plan: Plan, found: Iterable[_Evaluation], others: Container[tuple[str, str]]) -> Outcome:
    evaluations = {(one.stage, one.kind): one for one in found}
    decisions = []
    saved: dict[Hashable, Saved] = {}
    for change in _walk(plan.stages, evaluations, others):
        kept, lost = None, None
        if change.effect in ("skips", "ends", SKIPS_OPEN):
            kept, lost = sum_of(stage.cost for stage in change.left_out), _lost(change.left_out)
            saved.update(((*plan.of, stage.stage, stage.mark), stage.cost) for stage in change.left_out)
        elif change.effect == "runs" and change.stage.outcome == "audited":
            kept = _negative(change.stage.cost)
            lost = None if change.stage.gain is None else 1.0 / change.stage.gain
            saved[(*plan.of, change.stage.stage, change.stage.mark, "audit")] = kept
        one, stage = change.one, change.stage
        where = (plan.run_id, plan.task_id, stage.category, stage.stage, one.kind, one.recorded, one.now)
        decisions.append(Decision(*where, change.effect, kept, lost, stage.score_kind))
    return Outcome(plan, tuple(decisions), saved, _trace(plan.stages, evaluations, others))


def _lost(left_out: Sequence[Ended]) -> float | None:
    """The product of what these found; None where nothing was judged in any."""
    gains = [max(1.0, stage.gain) for stage in left_out if stage.gain is not None]
    return prod(gains) if gains else None


def _negative(cost: Saved) -> Saved:
    usd = None if cost.usd is None else -cost.usd
    return Saved(-cost.stages, -cost.calls, -cost.tokens, usd, -cost.seconds, -cost.gpu_s)


_Found = dict[tuple[str, str], _Evaluation]
"""By stage and kind."""


def _walk(stages: Sequence[Ended], found: _Found, others: Container[tuple[str, str]]) -> Iterator[_Change]:
    """What becomes of one plan, stage by stage; nothing is decided after its end, and no exit rule is asked after a
    stage that was skipped."""
    for position, stage in enumerate(stages):
        goes_on = stage.outcome == "exited" and not stage.last
        skip, exits = found.get((stage.stage, "skip")), found.get((stage.stage, "exit"))
        if skip is not None:
            settled = (stage.stage, "skip") in others
            effect = "" if settled else _skip_effect(skip, stage, goes_on=goes_on)
            yield _Change(skip, stage, effect, (stage,) if effect in ("skips", SKIPS_OPEN) else ())
            if effect == SKIPS_OPEN:
                return
            if effect == "skips":
                continue
        if exits is not None and stage.ran:
            rest = tuple(later for later in stages[position + 1 :] if later.ran)
            settled = (stage.stage, "exit") in others
            effect = "" if settled else _exit_effect(exits, stage, rest, goes_on=goes_on)
            yield _Change(exits, stage, effect, rest if effect == "ends" else ())
            if effect in ("ends", "goes on"):
                return


def _skip_effect(one: _Evaluation, stage: Ended, *, goes_on: bool) -> str:
    if one.fires:
        return (SKIPS_OPEN if goes_on else "skips") if stage.ran else ""
    stopped = not stage.ran and one.fired
    return "runs" if stopped else "unknown" if one.says is None else ""


def _exit_effect(one: _Evaluation, stage: Ended, rest: Sequence[Ended], *, goes_on: bool) -> str:
    if one.fires:
        return "ends" if rest else ""
    if stage.outcome == "exited" and one.fired:
        return "goes on" if goes_on else ""
    return "unknown" if one.says is None else ""


def _trace(stages: Sequence[Ended], found: _Found, others: Container[tuple[str, str]]) -> Trace:
    """Open at the end where this rule alone skipped a stage or ended the plan."""
    told: list[Hashable] = []
    for stage in stages:
        for kind, acted in (("skip", not stage.ran), ("exit", stage.outcome == "exited")):
            if kind == "exit":
                told.append((stage.stage, stage.mark, stage.gain) if stage.ran else (stage.stage, stage.outcome))
            one = found.get((stage.stage, kind))
            if one is not None:
                told.append((stage.stage, kind, one.now, one.fires))
                if acted and one.fired and (stage.stage, kind) not in others:
                    return tuple(told)
    return (*told, END)


_EVALUATIONS = """
SELECT r.run_id, r.task_id, r.stage, r.kind, arg_max(r.outcome, r.seq), arg_max(r.fired, r.seq),
       arg_max_null(o.says, r.seq)
FROM {evaluations} r JOIN tasks t USING (run_id, task_id)
JOIN outcomes o ON o.run_id = r.run_id AND o.task_id = r.task_id AND o.stage = r.stage AND o.kind = r.kind
                   AND o.candidate_id IS NOT DISTINCT FROM r.candidate_id
WHERE {where} GROUP BY r.run_id, r.task_id, r.stage, r.kind ORDER BY r.run_id, r.task_id
"""
