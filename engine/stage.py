"""One stage: skip by facts and scores, profile the parent, skip by metrics, propose, judge, repair, promote, exit."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from engine.draft import Drafter, Plan, TaskState, note_rule
from engine.errors import AwaitingReply, BudgetSpent
from engine.folder import RunFolder
from engine.kernel import Kernel, comparable, refusal, trace_metrics, verifies
from engine.prompts import Attempt, MetricRow, metric_row
from engine.records import MetricValue
from engine.rules import Evaluation, Value, apply, audited
from engine.settings import Rule, Stage
from engine.vocabulary import OperandKind, operands, trusted


@dataclass(frozen=True, slots=True)
class StageEnd:
    """How a stage ended. `exit`: the plan stops here."""

    outcome: Literal["done", "skipped", "exited", "audited"]
    why: str
    rule: str | None
    exit: bool


class StageRunner:
    """Runs stages of one run; decides promotion and stop from rules and paired measurements alone."""

    def __init__(self, drafter: Drafter, folder: RunFolder) -> None:
        self.drafter = drafter
        self.paid = drafter.paid
        self.settings = drafter.settings
        self.folder = folder

    def run(self, state: TaskState, name: str, stage: Stage) -> StageEnd:
        """The order of a stage in docs/contracts.md. `state.best` is never replaced by anything slower. A stage that
        reaches its own budget ends there, with what it has found; BudgetSpent of the task or the run is raised once the
        stage has ended in the same way."""
        try:
            with self.paid.caller.budget.stage(name):
                end, spent = self._run(state, name, stage)
        except BudgetSpent as error:
            # Nothing was proposed yet: the profile of the parent did not fit.
            end, spent = StageEnd("done", str(error), None, exit=False), error
            self._note_end(state, name, end, gain=None, failures=0, candidates=0)
        if spent is not None and spent.level != "stage":
            raise spent
        return end

    def _run(self, state: TaskState, name: str, stage: Stage) -> tuple[StageEnd, BudgetSpent | None]:
        """How the stage ended, and the budget that cut it."""
        journal = self.paid.journal
        parent = state.best
        end = self._skip(state, name, stage, {}, with_metrics=False)
        metrics: Mapping[str, Value | None] = {}
        rows: tuple[MetricRow, ...] = ()
        if end is None and parent is not None:
            metrics, rows = self.profile(state, name, stage, parent)
            end = self._skip(state, name, stage, metrics, with_metrics=True)
        skip = None if end is None else end.rule
        audit = skip is not None and audited(self.settings, state.task_id, name, skip)
        journal.write(
            "stage_started",
            task_id=state.task_id,
            stage=name,
            category=state.category_name,
            parent_id=parent.candidate_id if parent else None,
            audit=audit,
        )
        if end is not None and not audit:
            self._note_end(state, name, end, gain=None, failures=0, candidates=0)
            return end, None
        tried = len(state.history)
        gain, failures, spent = self._proposed(state, name, stage, rows, audit=audit)
        candidates = stage.budget.candidates
        if audit and end is not None:
            # Later prompts must not know of an audit, or it would change what it measures.
            del state.history[tried:]
            end = StageEnd("audited", end.why, end.rule, exit=False)
        elif spent is not None and spent.level != "stage":
            end = StageEnd("done", "", None, exit=False)
        else:
            fired = self._exit(state, name, stage, metrics, self.ended(state, failures))
            end = fired or StageEnd("done", "", None, exit=False)
        if spent is not None:
            end = replace(end, why=f"{end.why}; {spent}" if end.why else str(spent))
        self._note_end(state, name, end, gain=gain, failures=failures, candidates=candidates)
        return end, spent

    def ended(self, state: TaskState, failures: int | None) -> dict[str, Value | None]:
        """The scores of the stage that just ended, which only exit rules know; failures None where it was cut."""
        gain = _gain(state) if comparable(self.settings, state.best) else None
        return {"stage_gain": gain, "failures": None if failures is None else float(failures)}

    def split(self, rules: Mapping[str, Rule], *, with_metrics: bool) -> dict[str, Rule]:
        """The rules that read a metric, or those that read none."""
        known = operands(self.settings.metrics, self.settings.thresholds)

        def reads_metrics(rule: Rule) -> bool:
            return any(known[name] is OperandKind.METRIC for name in self.drafter.expressions[rule.when].names)

        return {key: rule for key, rule in rules.items() if reads_metrics(rule) == with_metrics}

    def _skip(
        self,
        state: TaskState,
        name: str,
        stage: Stage,
        metrics: Mapping[str, Value | None],
        *,
        with_metrics: bool,
    ) -> StageEnd | None:
        rules = self.split(stage.skip_when, with_metrics=with_metrics)
        fired = self._fire(state, name, "skip", rules, self.drafter.operands(state, metrics))
        return StageEnd("skipped", fired.why, fired.rule, exit=False) if fired else None

    def _exit(
        self,
        state: TaskState,
        name: str,
        stage: Stage,
        metrics: Mapping[str, Value | None],
        extra: Mapping[str, Value | None],
    ) -> StageEnd | None:
        fired = self._fire(state, name, "exit", stage.exit_when, self.drafter.operands(state, metrics, extra))
        return StageEnd("exited", fired.why, fired.rule, exit=True) if fired else None

    def _fire(
        self,
        state: TaskState,
        name: str,
        kind: Literal["skip", "exit"],
        rules: Mapping[str, Rule],
        operands: Mapping[str, Value | None],
    ) -> Evaluation | None:
        """Evaluate every rule, journal each, and return the first that fired and is obeyed."""
        first = None
        for key, rule in rules.items():
            evaluation = apply(key, kind, rule, self.drafter.expressions[rule.when], operands)
            obeyed = evaluation.fired and self.settings.search.rules == "obey"
            note_rule(
                self.paid,
                state.task_id,
                name,
                evaluation,
                fired=evaluation.fired,
                obeyed=obeyed,
                candidate=state.best.candidate_id if state.best else None,
            )
            if obeyed and first is None:
                first = evaluation
        return first

    def profile(
        self, state: TaskState, name: str, stage: Stage, parent: Kernel
    ) -> tuple[dict[str, Value | None], tuple[MetricRow, ...]]:
        """The parent's metrics for rules, and the same beside the best before it and the baseline for prompts."""
        values = self._values(state, name, parent, stage)
        baseline = _by_name(self._baseline_values(state, name, stage))
        before = {} if state.previous is None else _by_name(self._values(state, name, state.previous, stage))
        metrics: dict[str, Value | None] = dict(trace_metrics(parent.verdict.trace, state.operator.facts))
        metrics |= {value.metric: value.value for value in values}
        declared = self.settings.metrics
        rows = (metric_row(declared[v.metric], v, before.get(v.metric), baseline.get(v.metric)) for v in values)
        return metrics, tuple(row for row in rows if row is not None)

    def _baseline_values(self, state: TaskState, name: str, stage: Stage) -> tuple[MetricValue, ...]:
        """One profile of the reference for all stages of the plan: it is asked once and shared."""
        wanted = sorted({metric for other in state.category.stages.values() for metric in other.metrics})
        values = self.paid.profile(state.operator, None, wanted)
        return self._trusted(state, name, None, stage, [value for value in values if value.metric in stage.metrics])

    def _values(self, state: TaskState, name: str, kernel: Kernel, stage: Stage) -> tuple[MetricValue, ...]:
        if not stage.metrics:
            return ()
        values = self.paid.profile(state.operator, kernel.judged, stage.metrics)
        return self._trusted(state, name, kernel.candidate_id, stage, values)

    def _trusted(
        self, state: TaskState, name: str, candidate: str | None, stage: Stage, values: Sequence[MetricValue]
    ) -> tuple[MetricValue, ...]:
        """The values as this stage may use them; journalled as found, with the reason where one is not used."""
        usable = tuple(trusted(value, stage.min_confidence) for value in values)
        for value, used in zip(values, usable, strict=True):
            self.paid.journal.write(
                "metric",
                task_id=state.task_id,
                stage=name,
                candidate_id=candidate,
                metric=value.metric,
                value=value.value,
                unit=value.unit,
                source=value.source,
                confidence=value.confidence,
                note=used.note,
                contradiction=value.contradiction,
            )
        return usable

    def _proposed(
        self, state: TaskState, name: str, stage: Stage, rows: tuple[MetricRow, ...], *, audit: bool
    ) -> tuple[float | None, int | None, BudgetSpent | None]:
        """As `_propose`, and the budget that cut it; the failures are then not known."""
        try:
            return *self._propose(state, name, stage, rows, audit=audit), None
        except BudgetSpent as spent:
            state.cut.add(name)
            return _gain(state), None, spent

    def _propose(
        self, state: TaskState, name: str, stage: Stage, rows: tuple[MetricRow, ...], *, audit: bool
    ) -> tuple[float | None, int]:
        """All drafts of the stage. Returns the stage's gain in time (None when nothing can be compared) and the
        number of drafts from which nothing correct came."""
        count = stage.budget.candidates
        plan = Plan(name, stage, rows, stage.budget.repairs, count, audit, known=len(state.history))
        state.gain = 1.0
        found = self._in_turn(state, plan, stage) if stage.sequential else self.drafts(state, plan)
        if not stage.sequential:
            self.settle(state, plan, found)
        return _gain(state), count - len(found)

    def _in_turn(self, state: TaskState, plan: Plan, stage: Stage) -> list[Kernel]:
        """All drafts of one plan, each from the best so far; as `drafts`, and promoted."""
        found: list[Kernel] = []
        state.found[plan.name] = found
        settled = 0
        try:
            for sample in range(plan.samples):
                draft = self.drafter.draft(state, replace(plan, known=len(state.history)), sample)
                if draft is None:
                    continue
                settled += 1
                if self.promote(state, plan.name, draft, audit=plan.audit) and sample + 1 < plan.samples:
                    _, rows = self.profile(state, plan.name, stage, draft)
                    plan = replace(plan, metrics=rows)
        except BaseException as stop:
            self._keep(state, plan, found[settled:], stop)
            raise
        return found

    def drafts(self, state: TaskState, plan: Plan) -> list[Kernel]:
        """All drafts of one plan from the same parent: the correct ones, also in `state.found`. Where a reply is
        awaited the others' prompts go out all the same, and AwaitingReply is raised at the end; on any other stop
        what was found is kept first."""
        found: list[Kernel] = []
        state.found[plan.name] = found
        awaiting: AwaitingReply | None = None
        try:
            for sample in range(plan.samples):
                try:
                    self.drafter.draft(state, plan, sample)
                except AwaitingReply as error:
                    awaiting = error
        except BaseException as stop:
            self._keep(state, plan, found, stop)
            raise
        if awaiting is not None:
            raise awaiting
        return found

    def settle(self, state: TaskState, plan: Plan, kernels: Sequence[Kernel]) -> None:
        """Promote each in turn. Where a budget forbids a measurement the others are still looked at, and BudgetSpent is
        raised at the end."""
        spent = None
        for kernel in kernels:
            try:
                self.promote(state, plan.name, kernel, audit=plan.audit)
            except BudgetSpent as error:
                spent = error
        if spent is not None:
            raise spent

    def _keep(self, state: TaskState, plan: Plan, kernels: Sequence[Kernel], stop: BaseException) -> None:
        """What was found before `stop` is not lost. An interrupt pays for nothing more: the first kernel of a task is
        its best without a measurement, and the others wait for the command that continues."""
        if isinstance(stop, Exception):
            with contextlib.suppress(BudgetSpent):
                self.settle(state, plan, kernels)
            return
        for kernel in kernels:
            if state.best is None:
                self.promote(state, plan.name, kernel, audit=plan.audit)

    def promote(self, state: TaskState, stage: str, kernel: Kernel, *, audit: bool) -> bool:
        """Make `kernel` the best if it is the first, or provably faster than the best in a paired measurement. Where a
        budget forbids that one, the best stays, and BudgetSpent is raised once that is on record."""
        incumbent, spent = state.best, None
        try:
            promoted, why, ratio = self._decide(state, stage, kernel, incumbent, audit=audit)
        except BudgetSpent as error:
            promoted, why, ratio = False, f"no paired measurement with the best: {error}", None
            spent = error
        speedup = kernel.measurement.ratio("eager")
        self.paid.journal.write(
            "promotion",
            task_id=state.task_id,
            stage=stage,
            durable=True,
            candidate_id=kernel.candidate_id,
            incumbent_id=incumbent.candidate_id if incumbent else None,
            promoted=promoted,
            why=why,
            ratio=ratio,
        )
        outcome = "best so far" if promoted else f"correct, not promoted: {why}"
        value = speedup.value if speedup else None
        role = state.roles[kernel.candidate_id]
        state.history.append(Attempt(stage=stage, role=role, outcome=outcome, message="", speedup=value))
        if promoted:
            state.gain *= ratio or 1.0
            state.previous, state.best = incumbent, kernel
            state.bests.append(kernel)
            self.folder.write_best(state.task_id, kernel.source)
        if spent is not None:
            raise spent
        return promoted

    def _decide(
        self, state: TaskState, stage: str, kernel: Kernel, incumbent: Kernel | None, *, audit: bool
    ) -> tuple[bool, str, float | None]:
        refused = "an audited stage never changes the best" if audit else refusal(self.settings, kernel, incumbent)
        if refused is not None:
            return False, refused, None
        if incumbent is None:
            untimed = kernel.measurement.note if not kernel.timed else ""
            return True, f"first correct kernel, not timed: {untimed}" if untimed else "first correct kernel", None
        if incumbent.timed and incumbent.measurement.timing("candidate") is None:
            return True, "the best so far has no time", None
        if verifies(kernel, incumbent):
            return True, "its time is measured, that of the best so far unverified", None
        paired = self.paid.promotion(state.operator, kernel.judged, incumbent.judged)
        self.paid.note_measurement(state.task_id, stage, kernel.candidate_id, paired)
        ratio = paired.ratio("incumbent")
        if ratio is None:
            return False, f"no paired measurement with the best: {paired.note}", None
        gain = self.settings.search.min_gain
        word = "above" if ratio.lo > gain else "not above"
        why = f"{ratio.value:.3f}x the best, lower end {ratio.lo:.3f} {word} {gain:g}"
        return ratio.lo > gain, why, ratio.value

    def _note_end(
        self, state: TaskState, name: str, end: StageEnd, *, gain: float | None, failures: int | None, candidates: int
    ) -> None:
        view = state.scores()
        self.paid.journal.write(
            "stage_ended",
            task_id=state.task_id,
            stage=name,
            durable=True,
            category=state.category_name,
            outcome=end.outcome,
            why=end.why,
            rule=end.rule,
            best_id=state.best.candidate_id if state.best else None,
            speedup=view.speedup,
            score_kind=view.score_kind.value if view.score_kind else None,
            stage_gain=gain,
            failures=failures,
            candidates=candidates,
        )


def _by_name(values: Sequence[MetricValue]) -> dict[str, MetricValue]:
    return {value.metric: value for value in values}


def _gain(state: TaskState) -> float | None:
    """Time before the stage over time after it: the product of the paired ratios that promoted; None without a time."""
    timed = state.best is not None and state.best.measurement.timing("candidate") is not None
    return state.gain if timed else None
