"""Another expression in the place of a `require` rule: which kernels it would send to repair, and which accept.

A stage evaluates its requirements on each correct kernel; where one is false the draft goes to repair, and the kernel
is neither timed nor promoted. What a repair that nobody asked for would have brought is not in the record.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from engine.rules import Expression
from engine.store.database import Connection
from engine.store.moments import RULES, moments_of
from engine.store.plans import END, Decision, Ended, Outcome, Plan, Saved, recorded_plans
from engine.store.present import taken
from engine.store.views_stages import REFUSED


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """Of the rule on one kernel. `refused`: it was, for this rule; `settled`: for another one; `ratio`: paired, with
    which it became the best. The rest is what the repairs after it took."""

    candidate_id: str
    recorded: str
    fired: bool
    refused: bool
    says: bool | None
    settled: bool
    promoted: bool
    ratio: float | None
    calls: int
    tokens: int
    usd: float | None
    seconds: float
    gpu_s: float

    @property
    def now(self) -> str:
        return "unknown" if self.says is None else "true" if self.says else "false"

    @property
    def broken(self) -> bool:
        """An unknown requirement is broken where it was so when it was unknown: on_missing says so."""
        return self.fired and self.recorded == "unknown" if self.says is None else not self.says

    @property
    def effect(self) -> str:
        """Beside what was recorded; empty: the same."""
        if self.says is None and not self.broken and not self.settled:
            return "unknown"
        if self.settled or self.broken == self.refused:
            return ""
        return "refused" if self.broken else "accepted"


def replay_required(connection: Connection, checked: Expression, where: str) -> list[Outcome]:
    """All plans in question. A kernel that is refused takes along the gain with which it became the best, unless a
    later one of its stage that stays was faster still."""
    sql = moments_of(checked, where) + _EVALUATIONS.format(
        where=where, evaluations=RULES, drafted=taken("candidates"), called=taken("llm_calls"), refused=REFUSED
    )
    rows = connection.execute(sql).fetchall()
    found = {
        place: [_Evaluation(*row[3:]) for row in of_stage]
        for place, of_stage in itertools.groupby(rows, key=lambda row: (row[0], row[1], row[2]))
    }
    outcomes = []
    for plan, _ in recorded_plans(connection, where):
        made: list[Decision] = []
        trace: list[Hashable] = []
        for stage in plan.stages:
            place = (plan.run_id, plan.task_id, stage.stage)
            trace.append((stage.stage, stage.outcome, stage.mark if stage.ran else None, stage.gain))
            if stage.ran and place in found:
                made += _decided(plan, stage, found[place])
                trace += [(stage.stage, one.candidate_id, one.now, one.refused) for one in found[place]]
        saved: dict[Hashable, Saved] = {
            (*plan.of, one.stage, one.candidate_id): one.saved for one in made if one.saved is not None
        }
        outcomes.append(Outcome(plan, tuple(made), saved, (*trace, END)))
    return outcomes


def _decided(plan: Plan, stage: Ended, found: Sequence[_Evaluation]) -> Iterator[Decision]:
    lost = _lost(found)
    for one in found:
        effect = one.effect
        repairs = Saved(0, one.calls, one.tokens, one.usd, one.seconds, one.gpu_s) if effect == "accepted" else None
        yield Decision(
            plan.run_id,
            plan.task_id,
            stage.category,
            stage.stage,
            "require",
            one.recorded,
            one.now,
            effect,
            repairs,
            lost[one.candidate_id] if effect == "refused" else None,
            stage.score_kind,
            one.candidate_id,
        )


def _lost(found: Sequence[_Evaluation]) -> dict[str, float]:
    """The gain that each kernel would take along. `found` is in the order of promotion: what became the best later is
    faster than all before it."""
    lost = dict.fromkeys((one.candidate_id for one in found), 1.0)
    for one in reversed([one for one in found if one.promoted]):
        if one.effect != "refused":
            break
        lost[one.candidate_id] = max(1.0, one.ratio or 1.0)
    return lost


_EVALUATIONS = """
, others AS (
    SELECT DISTINCT run_id, task_id, stage, candidate_id
    FROM (SELECT r.run_id, r.task_id, r.stage, r.candidate_id, r.rule, arg_max(r.fired, r.seq) AS fired
          FROM {evaluations} r JOIN tasks t USING (run_id, task_id)
          WHERE r.kind = 'require' AND NOT ({where}) GROUP BY ALL)
    WHERE fired),
promoted AS (
    SELECT run_id, task_id, stage, candidate_id, arg_max_null(ratio, seq) AS ratio, max(seq) AS seq
    FROM promotions ANTI JOIN {refused} USING (run_id, task_id, candidate_id) WHERE promoted GROUP BY ALL),
drafts AS (
    SELECT run_id, task_id, stage, candidate_id, arg_min(sample, seq) AS sample, arg_min(attempt, seq) AS attempt
    FROM {drafted} GROUP BY ALL),
evaluated AS (
    SELECT r.run_id, r.task_id, r.stage, r.candidate_id, arg_max(r.outcome, r.seq) AS recorded,
           arg_max(r.fired, r.seq) AS fired, arg_max(r.obeyed, r.seq) AS refused, arg_max_null(o.says, r.seq) AS says,
           min(r.seq) AS seq
    FROM {evaluations} r JOIN tasks t USING (run_id, task_id)
    JOIN outcomes o ON o.run_id = r.run_id AND o.task_id = r.task_id AND o.stage = r.stage AND o.kind = r.kind
                       AND o.candidate_id = r.candidate_id
    WHERE {where} GROUP BY r.run_id, r.task_id, r.stage, r.candidate_id),
asked AS (
    SELECT e.run_id, e.task_id, e.stage, e.candidate_id, count(*) AS calls,
           sum(l.input_tokens + l.output_tokens)::BIGINT AS tokens, sum(l.cost_usd) AS usd,
           count(*) FILTER (l.cost_usd IS NULL) AS unpriced, sum(l.latency_s) AS seconds
    FROM evaluated e JOIN drafts d USING (run_id, task_id, stage, candidate_id)
    JOIN {called} l ON l.run_id = e.run_id AND l.task_id = e.task_id AND l.stage = e.stage AND l.sample = d.sample
                        AND l.attempt > d.attempt
    GROUP BY ALL),
judged AS (
    SELECT e.run_id, e.task_id, e.stage, e.candidate_id, sum(v.wall_s) AS seconds, sum(v.gpu_s) AS gpu_s
    FROM evaluated e JOIN drafts d USING (run_id, task_id, stage, candidate_id)
    JOIN drafts f ON f.run_id = e.run_id AND f.task_id = e.task_id AND f.stage = e.stage AND f.sample = d.sample
                     AND f.attempt > d.attempt
    JOIN verdicts v ON v.run_id = f.run_id AND v.task_id = f.task_id AND v.stage = f.stage
                       AND v.candidate_id = f.candidate_id
    GROUP BY ALL)
SELECT e.run_id, e.task_id, e.stage, e.candidate_id, e.recorded, e.fired, e.refused, e.says,
       x.candidate_id IS NOT NULL, p.seq IS NOT NULL, p.ratio, coalesce(a.calls, 0), coalesce(a.tokens, 0),
       CASE WHEN coalesce(a.unpriced, 0) = 0 THEN coalesce(a.usd, 0.0) END,
       coalesce(a.seconds, 0.0) + coalesce(j.seconds, 0.0), coalesce(j.gpu_s, 0.0)
FROM evaluated e LEFT JOIN others x USING (run_id, task_id, stage, candidate_id)
LEFT JOIN promoted p USING (run_id, task_id, stage, candidate_id)
LEFT JOIN asked a USING (run_id, task_id, stage, candidate_id)
LEFT JOIN judged j USING (run_id, task_id, stage, candidate_id)
ORDER BY e.run_id, e.task_id, e.stage, coalesce(p.seq, e.seq)
"""
