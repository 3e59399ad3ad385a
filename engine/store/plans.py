"""Recorded plans as a replayed rule finds them, what it decides about them, and the totals of that."""

from __future__ import annotations

import itertools
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from engine.store.database import Connection
from engine.store.moments import RULES
from engine.store.present import taken
from engine.store.statistics import geometric_mean, known_sum
from engine.store.views_stages import AUDITED, ENDS, TOLD, judged, marked, timed


@dataclass(frozen=True, slots=True)
class Saved:
    """What stages took as if nothing had been in the memo: `seconds` of model, judge, clock and profiler, of these
    `gpu_s` on a GPU. `usd` is None where a call has no known price. Below zero: what would be spent in addition."""

    stages: int
    calls: int
    tokens: int
    usd: float | None
    seconds: float
    gpu_s: float


NOTHING = Saved(0, 0, 0, 0.0, 0.0, 0.0)
SKIPS_OPEN = "skips, goes on"
OPEN = ("runs", "goes on", SKIPS_OPEN, "refused", "accepted")


@dataclass(frozen=True, slots=True)
class Decision:
    """One evaluation that decides otherwise, or that cannot be decided. `effect`: `skips` the stage, `ends` the plan
    after it, `goes on` or `runs` where the record stopped (what that costs and finds is not recorded: None; where an
    audit ran, `saved` is what it took, below zero, and `gain_lost` one over what it found), `skips, goes on` where the
    stage left out had ended the plan, or `unknown`. `gain_lost`: product of the paired gains that the stages left out
    really found, at least 1; None where no draft of them was judged and timed. Of a `require` rule `candidate_id` is
    the kernel: `refused`, it would go to repair and take its own gain along, or `accepted`, and the repairs that
    followed it are saved."""

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
    candidate_id: str | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """All plans of one kind of score. `spent`, `saved`: a stage that several plans share was paid for once, and counts
    once. `gain_lost`: geometric mean over the plans, those without a loss as 1, those of an unknown one left out;
    `unjudged`: these; `worse`: plans that lose a gain; `refused`: kernels that would go to repair; `open`: plans that
    would go on where the record stopped, or in which a kernel is refused or accepted."""

    score_kind: str | None
    plans: int
    evaluations: int
    unknown: int
    skips: int
    ends: int
    refused: int
    open: int
    spent: Saved
    saved: Saved
    worse: int
    gain_lost: float | None
    unjudged: int


@dataclass(frozen=True, slots=True)
class Replay:
    """`decisions`: those that differ from the record, or cannot be made. `repeats`: plans of other runs that found the
    same in the memo, or that the rule itself cut short where another one shows how they go on; nowhere counted."""

    rule: str
    expression: str
    decisions: tuple[Decision, ...]
    totals: tuple[Total, ...]
    repeats: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The last end of a stage of a recorded plan, and what it took."""

    stage: str
    category: str
    outcome: str
    rule: str | None
    gain: float | None
    """Paired, at least 1; of an audit that of its find, 1 where its interval does not lie above the best's. None where
    no draft was judged, or a correct one has no time of the best's kind."""
    score_kind: str | None
    calls: int
    tokens: int
    usd: float | None
    seconds: float
    gpu_s: float
    last: bool
    """No plan of the category has a stage after it, and one came to its end there."""
    mark: str | None
    """Of drafts and ratios, of the calls where there is no draft: the same where all came from the memo."""

    @property
    def ran(self) -> bool:
        """As part of the plan; an audit is none."""
        return self.outcome in ("done", "exited")

    @property
    def cost(self) -> Saved:
        """Of this stage."""
        return Saved(1, self.calls, self.tokens, self.usd, self.seconds, self.gpu_s)


@dataclass(frozen=True, slots=True)
class Plan:
    """One task of one run. `of`: the task, its text and the device."""

    run_id: str
    task_id: str
    of: tuple[Hashable, ...]
    stages: tuple[Ended, ...]

    @property
    def score_kind(self) -> str | None:
        """Of its best kernel."""
        return self.stages[-1].score_kind

    @property
    def spent(self) -> dict[Hashable, Saved]:
        """By stage and what it found."""
        return {(*self.of, stage.stage, stage.mark): stage.cost for stage in self.stages if stage.ran}


Trace = tuple[Hashable, ...]
"""What happened to a plan, as far as it does not depend on the rule that is replayed; closed by `END`."""

END = ("end",)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was decided about one plan, changes and confirmations of what was recorded alike."""

    plan: Plan
    decisions: tuple[Decision, ...]
    saved: Mapping[Hashable, Saved]
    trace: Trace


def obeyed(plan: Plan, fired: Container[tuple[str, str]]) -> Plan:
    """The plan as a run leaves it that obeys the rules that `fired`, by stage and kind: of an observing run what is
    left out is gone, of an obeying one nothing changes."""
    kept: list[Ended] = []
    for stage in plan.stages:
        if stage.outcome == "done" and (stage.stage, "skip") in fired:
            kept.append(replace(stage, outcome="skipped", gain=None))
            continue
        ends = stage.outcome == "done" and (stage.stage, "exit") in fired
        kept.append(replace(stage, outcome="exited") if ends else stage)
        if ends:
            break
    return replace(plan, stages=tuple(kept))


def sum_of(saved: Iterable[Saved]) -> Saved:
    """All of these together."""
    found = list(saved)
    stages, calls, tokens = (sum(getattr(one, name) for one in found) for name in ("stages", "calls", "tokens"))
    seconds, gpu_s = (sum(getattr(one, name) for one in found) for name in ("seconds", "gpu_s"))
    return Saved(stages, calls, tokens, known_sum(one.usd for one in found), seconds, gpu_s)


def distinct(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Without the repeats: plans whose trace another one of the same task has, and those that the rule cut short where
    another one goes on from there."""
    seen: set[Hashable] = set()
    kept = []
    for number in sorted(range(len(outcomes)), key=lambda number: -len(outcomes[number].trace)):
        of, trace = outcomes[number].plan.of, outcomes[number].trace
        if (of, trace) not in seen:
            seen.update((of, trace[:length]) for length in range(len(trace) + 1))
            kept.append(number)
    return [outcomes[number] for number in sorted(kept)]


def replay_of(rule: str, expression: str, outcomes: Sequence[Outcome]) -> Replay:
    """The answer; one total for each kind of score."""
    found = distinct(outcomes)
    decisions = tuple(decision for outcome in found for decision in outcome.decisions if decision.effect)
    kinds = sorted({outcome.plan.score_kind for outcome in found}, key=lambda kind: (kind is None, kind))
    totals = (_total(kind, [outcome for outcome in found if outcome.plan.score_kind == kind]) for kind in kinds)
    return Replay(rule, expression, decisions, tuple(totals), len(outcomes) - len(found))


def _total(kind: str | None, plans: Sequence[Outcome]) -> Total:
    decided = [decision for plan in plans for decision in plan.decisions]
    effects = [decision.effect for decision in decided]
    losses = [_loss(plan) for plan in plans]
    known = [loss for loss in losses if loss is not None]
    spent = {key: cost for plan in plans for key, cost in plan.plan.spent.items()}
    saved = {key: cost for plan in plans for key, cost in plan.saved.items()}
    return Total(
        kind,
        len(plans),
        len(decided),
        sum(decision.now == "unknown" for decision in decided),
        effects.count("skips") + effects.count(SKIPS_OPEN),
        effects.count("ends"),
        effects.count("refused"),
        sum(any(d.effect in OPEN for d in plan.decisions) for plan in plans),
        sum_of(spent.values()),
        sum_of(saved.values()),
        sum(loss > 1 for loss in known),
        geometric_mean(known) if known else None,
        len(losses) - len(known),
    )


def _loss(plan: Outcome) -> float | None:
    """None where what was left out is not known to have found anything, or nothing. What audits found is over the same
    best: of several the largest find counts."""
    priced = [decision for decision in plan.decisions if decision.saved is not None or decision.gain_lost is not None]
    lost = [decision for decision in priced if decision.effect != "accepted"]
    known = [(decision.gain_lost, decision.effect == "runs") for decision in lost if decision.gain_lost is not None]
    found = [gain for gain, audit in known if audit]
    left_out = prod(gain for gain, audit in known if not audit)
    return left_out * min(found, default=1.0) if len(known) == len(lost) else None


_PLANS = f"""
WITH asked AS (
    SELECT DISTINCT r.run_id, r.task_id FROM {RULES} r JOIN tasks t USING (run_id, task_id) WHERE {{where}}),
ends AS ({ENDS}),
ended AS (SELECT * FROM ends SEMI JOIN asked USING (run_id, task_id)),
{timed("asked")}, {judged("asked")}, {TOLD}, {AUDITED}, {marked("ended")},
called AS (
    SELECT run_id, task_id, stage,
           string_agg(concat_ws(' ', role, attempt, sample, output_tokens, latency_s), ','
                      ORDER BY role, attempt, sample, output_tokens, latency_s) AS mark
    FROM {taken("llm_calls")} SEMI JOIN asked USING (run_id, task_id) GROUP BY run_id, task_id, stage),
followed AS (SELECT *, lead(stage) OVER (PARTITION BY run_id, task_id ORDER BY seq) AS next FROM ends),
-- Only a plan that nothing cut short shows which stage is the last.
finals AS (SELECT f.category, f.stage FROM followed f JOIN tasks t USING (run_id, task_id)
           WHERE f.next IS NULL AND f.outcome <> 'exited' AND t.outcome = 'done'
           EXCEPT SELECT category, stage FROM followed WHERE next IS NOT NULL)
SELECT e.run_id, e.task_id, k.task_hash, u.device, e.stage, e.category, e.outcome, e.rule,
       CASE WHEN e.outcome = 'audited' THEN CASE a.false_skip WHEN true THEN a.gain WHEN false THEN 1.0 END
            WHEN w.stage IS NOT NULL THEN e.stage_gain END,
       e.score_kind, coalesce(c.calls, 0), coalesce(c.tokens, 0),
       CASE WHEN coalesce(c.unpriced, 0) = 0 THEN coalesce(c.usd, 0.0) END,
       coalesce(c.seconds, 0.0), coalesce(c.gpu_s, 0.0), f.stage IS NOT NULL, coalesce(m.mark, l.mark)
FROM ended e JOIN tasks k USING (run_id, task_id) JOIN runs u USING (run_id)
LEFT JOIN stage_cost c USING (run_id, task_id, stage) LEFT JOIN told w USING (run_id, task_id, stage)
LEFT JOIN audited a USING (run_id, task_id, stage) LEFT JOIN marked m USING (run_id, task_id, stage)
LEFT JOIN called l USING (run_id, task_id, stage)
LEFT JOIN finals f ON f.category = e.category AND f.stage = e.stage
ORDER BY u.started, e.run_id, e.task_id, e.seq
"""

_OTHERS = """
SELECT run_id, task_id, stage, kind
FROM (SELECT r.run_id, r.task_id, r.stage, r.kind, r.rule, arg_max(r.fired, r.seq) AS fired
      FROM {evaluations} r JOIN tasks t USING (run_id, task_id)
      WHERE r.kind <> 'require' AND NOT ({where}) GROUP BY ALL)
WHERE fired GROUP BY ALL
"""


def recorded_plans(connection: Connection, where: str) -> Iterator[tuple[Plan, set[tuple[str, str]]]]:
    """Every plan with an evaluation that `where` takes, runs in the order of their start, as a run that obeys all other
    rules leaves it; with the stages and kinds of these that fired."""
    fired: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for run_id, task_id, *place in connection.execute(_OTHERS.format(where=where, evaluations=RULES)).fetchall():
        fired.setdefault((run_id, task_id), set()).add((place[0], place[1]))
    rows = connection.execute(_PLANS.format(where=where)).fetchall()
    for (run_id, task_id, *text), of_plan in itertools.groupby(rows, key=lambda row: row[:4]):
        plan = Plan(run_id, task_id, (task_id, *text), tuple(Ended(*row[4:]) for row in of_plan))
        others = fired.get((run_id, task_id)) or set()
        yield obeyed(plan, others), others
