"""Under search.rules=observe: the steps that other outcomes of the rules would need, made with the same replies.

A run that obeys its rules may leave a stage out or end early; later kernels then meet another best kernel.
What each stage proposes is fixed by the replies of its slots, so that the ways through a plan differ in promotions,
profiles and confirmations alone. All of them are made here, once, and a sweep over thresholds finds every step.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from engine.canonical import Json
from engine.draft import Drafter, Plan, TaskState
from engine.errors import BudgetSpent, EngineError, LlmError
from engine.folder import RunFolder
from engine.journal import Journal
from engine.kernel import Kernel
from engine.paid import Paid
from engine.prompts import MetricRow
from engine.records import Reply, Request
from engine.rules import Node, Value, apply
from engine.settings import Rule, Stage
from engine.stage import StageRunner
from engine.vocabulary import THRESHOLD_PREFIX

Chance = Literal["no", "maybe", "yes"]
EXTREME = 1e300
"""Beyond every score, fact and metric; sums of it stay finite, or a rule would be unknown."""

_TURNS_ONCE = frozenset({"and", "or", "not", "neg", "+", "-", "<", "<=", ">", ">=", "min", "max"})
"""Operations that only rise or only fall as one operand grows, and are finite at its extremes."""


class _Unwritten(Journal):
    """Takes events and keeps none: the run's journal tells of the one path it went."""

    def __init__(self) -> None:
        self.due = None

    def write(
        self, kind: str, *, task_id: str | None = None, stage: str | None = None, durable: bool = False, **fields: Json
    ) -> Json:
        return {}


class _Nowhere(RunFolder):
    """Keeps no file."""

    def __init__(self) -> None:
        return

    def write_best(self, task_id: str, source: str) -> Path:
        return Path()

    def write_source(self, task_id: str, candidate_id: str, source: str) -> None:
        return


class _Beside(Paid):
    """Paid steps of other paths. A reply is that of its slot on the run's own path; one that was never asked for is
    asked, and journalled, by the run itself."""

    def __init__(self, own: Paid) -> None:
        search = replace(own.settings.search, rules="obey")
        super().__init__(
            replace(own.settings, search=search),
            backend=own.backend,
            caller=own.caller,
            memo=own.memo,
            journal=_Unwritten(),
            folder=_Nowhere(),
            free_replies=own.free_replies,
            replies=own.replies,
            own=own.own,
        )
        self.run = own

    def reply(self, request: Request) -> Reply:
        slot = request.slot.path()
        known = self.run.answered[slot] if slot in self.run.answered else self.run.reply(request)
        if isinstance(known, LlmError):
            raise known
        return known


class _Undecided(EngineError):
    """A rule that must be known is not."""


class _Obedient(Drafter):
    """A draft under a rule that must be known and is not is lost to the other paths; it ends nothing."""

    undecided = _Undecided

    def draft(self, state: TaskState, plan: Plan, sample: int) -> Kernel | None:
        try:
            return super().draft(state, plan, sample)
        except _Undecided:
            return None


@dataclass(frozen=True, slots=True)
class _Place:
    """The number of the next stage and the kernels that have been best, in order."""

    stage: int
    bests: tuple[Kernel, ...]

    @property
    def name(self) -> tuple[int, tuple[str, ...]]:
        return self.stage, tuple(kernel.candidate_id for kernel in self.bests)


class Paths:
    """Walks every way through the plan of one task that some thresholds could choose."""

    def __init__(self, stages: StageRunner, state: TaskState) -> None:
        drafter = stages.drafter
        self.paid = _Beside(stages.paid)
        self.runner = StageRunner(
            _Obedient(self.paid.settings, self.paid, drafter.prompts, drafter.expressions), self.paid.folder
        )
        self.state = state
        self._drafts: dict[str, list[Kernel]] = {}

    def walk(self) -> None:
        """Make every step. Raises what a paid step raises, BudgetSpent included."""
        plan = tuple(self.state.category.stages.items())
        left = [_Place(0, tuple(self.state.seeded))] if self.state.seeded else []
        seen = set()
        while left:
            place = left.pop()
            if place.name in seen:
                continue
            seen.add(place.name)
            if place.stage == len(plan):
                self._confirm(place.bests)
            else:
                left += self._next(place, *plan[place.stage])

    def _next(self, place: _Place, name: str, stage: Stage) -> list[_Place]:
        state = self._at(place.bests)
        skipped = _Place(place.stage + 1, place.bests)
        if name not in self.state.found:
            # A budget forbade all of it.
            return [skipped]
        operands = self.runner.drafter.operands
        found = self._chance(self.runner.split(stage.skip_when, with_metrics=False), "skip", operands(state, {}))
        if found == "yes":
            return [skipped]
        metrics, rows = self.runner.profile(state, name, stage, place.bests[-1])
        rules = self.runner.split(stage.skip_when, with_metrics=True)
        measured = self._chance(rules, "skip", operands(state, metrics))
        if measured == "yes":
            return [skipped]
        ways = [skipped] if "maybe" in (found, measured) else []
        drafts = self._drafted(state, name, stage, rows)
        after = self._at(place.bests)
        after.gain = 1.0
        for number, kernel in enumerate(drafts, start=1):
            promoted = self.runner.promote(after, name, kernel, audit=False)
            # Which sample wrote the last kernel is not known: one after it may have failed.
            if stage.sequential and promoted and number < stage.budget.candidates:
                self.runner.profile(after, name, stage, kernel)
        bests = tuple(after.bests)
        failures = None if name in self.state.cut else stage.budget.candidates - len(drafts)
        ended = self.runner.ended(after, failures)
        ending = self._chance(stage.exit_when, "exit", operands(after, metrics, ended))
        if ending != "no":
            self._confirm(bests)
        return ways if ending == "yes" else [*ways, _Place(place.stage + 1, bests)]

    def _at(self, bests: Sequence[Kernel]) -> TaskState:
        """The task as it would stand with these kernels, the last of which is the best."""
        own = self.state
        return TaskState(
            own.operator,
            own.category_name,
            own.category,
            baseline=own.baseline,
            best=bests[-1],
            previous=bests[-2] if len(bests) > 1 else None,
            bests=list(bests),
            roles=dict(own.roles),
        )

    def _drafted(self, state: TaskState, name: str, stage: Stage, rows: tuple[MetricRow, ...]) -> list[Kernel]:
        """The kernels that the replies of the stage's slots lead to where its requirements are obeyed. Of a stage that
        a budget cut those that it had found: no reply is asked for there."""
        if name not in self._drafts:
            plan = Plan(name, stage, rows, stage.budget.repairs, stage.budget.candidates, audit=False, known=0)
            if name in self.state.cut or not stage.require:
                self._drafts[name] = [kernel for kernel in self.state.found[name] if self._holds(state, plan, kernel)]
            else:
                self._drafts[name] = self._obeyed(state, plan)
                self.state.roles.update(state.roles)
        return self._drafts[name]

    def _obeyed(self, state: TaskState, plan: Plan) -> list[Kernel]:
        try:
            with self.paid.caller.budget.stage(plan.name):
                return self.runner.drafts(state, plan)
        except BudgetSpent as spent:
            if spent.level != "stage":
                raise
            self.state.cut.add(plan.name)
            return state.found[plan.name]

    def _holds(self, state: TaskState, plan: Plan, kernel: Kernel) -> bool:
        """Whether the kernel meets the requirements of its stage."""
        drafter = self.runner.drafter
        try:
            return drafter.violated(state, plan, kernel.candidate_id, kernel.source, kernel.verdict) is None
        except _Undecided:
            return False

    def _confirm(self, bests: tuple[Kernel, ...]) -> None:
        if not self.paid.settings.judge.confirm.enabled:
            return
        for kernel in reversed(bests):
            if not self.paid.confirm(self.state.operator, kernel.judged).refused:
                return

    def _chance(
        self,
        rules: Mapping[str, Rule],
        kind: Literal["skip", "exit"],
        operands: Mapping[str, Value | None],
    ) -> Chance:
        """Whether some of the rules fires: at whatever thresholds, at some, at none. A rule that may turn more than
        once as a threshold grows may fire."""
        found: set[Chance] = {"no"}
        for key, rule in rules.items():
            expression = self.runner.drafter.expressions[rule.when]
            uses = _uses(expression.root)
            swept = sorted({name for name, _ in uses})
            made = [
                apply(key, kind, rule, expression, {**operands, **dict(zip(swept, values, strict=True))})
                for values in itertools.product((-EXTREME, EXTREME), repeat=len(swept))
            ]
            fired = {evaluation.fired for evaluation in made}
            once = len(swept) == len(uses) and all(plain for _, plain in uses)
            decided = len(fired) == 1 and (once or bool(made[0].missing))
            found.add("maybe" if not decided else "yes" if fired == {True} else "no")
        return "yes" if "yes" in found else "maybe" if "maybe" in found else "no"


def _uses(node: Node) -> list[tuple[str, bool]]:
    """Each use of a threshold, and whether only operations of `_TURNS_ONCE` lie between it and the rule's value."""
    if node.op == "name":
        name = str(node.value)
        return [(name, True)] if name.startswith(THRESHOLD_PREFIX) else []
    return [(name, plain and node.op in _TURNS_ONCE) for arg in node.args for name, plain in _uses(arg)]
