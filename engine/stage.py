"""One stage: skip by facts and scores, profile the parent, skip by metrics, propose, judge, repair, promote, exit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from engine.canonical import digest
from engine.draft import Drafter, Plan, TaskState, note_measurement, note_rule
from engine.errors import AwaitingReply
from engine.folder import RunFolder
from engine.kernel import Kernel, trace_metrics
from engine.prompts import Attempt, MetricRow
from engine.records import MetricValue, Mode, ScoreKind
from engine.rules import Evaluation, Value, apply
from engine.settings import Rule, Stage
from engine.vocabulary import OperandKind, operands


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
        """The order of a stage in docs/contracts.md. `state.best` is never replaced by anything slower."""
        journal = self.paid.journal
        parent = state.best
        end = self._skip(state, name, stage, {}, with_metrics=False)
        metrics: Mapping[str, Value | None] = {}
        rows: tuple[MetricRow, ...] = ()
        if end is None and parent is not None:
            metrics, rows = self._profile(state, name, stage, parent)
            end = self._skip(state, name, stage, metrics, with_metrics=True)
        audit = end is not None and self._audited(state, name, end)
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
            return end
        gain, failures = self._propose(state, name, stage, rows, audit=audit)
        candidates = stage.budget.candidates
        if audit and end is not None:
            end = StageEnd("audited", end.why, end.rule, exit=False)
        else:
            extra = {"stage_gain": gain, "failures": float(failures)}
            end = self._exit(state, name, stage, metrics, extra) or StageEnd("done", "", None, exit=False)
        self._note_end(state, name, end, gain=gain, failures=failures, candidates=candidates)
        return end

    def _rules(self, state: TaskState, rules: Mapping[str, Rule], *, with_metrics: bool) -> dict[str, Rule]:
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
        rules = self._rules(state, stage.skip_when, with_metrics=with_metrics)
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

    def _audited(self, state: TaskState, name: str, end: StageEnd) -> bool:
        audit = self.settings.search.audit
        if self.paid.free_replies or audit.share <= 0:
            return False
        mark = digest([state.task_id, name, end.rule, audit.seed])
        return int(mark[:13], 16) / float(16**13) < audit.share

    def _profile(
        self, state: TaskState, name: str, stage: Stage, parent: Kernel
    ) -> tuple[dict[str, Value | None], tuple[MetricRow, ...]]:
        """The parent's metrics for rules, and the same beside the best before it and the baseline for prompts."""
        values = self._values(state, name, parent, stage)
        baseline = {v.metric: v for v in self._baseline_values(state, name, stage)}
        before = (
            {} if state.previous is None else {v.metric: v for v in self._values(state, name, state.previous, stage)}
        )
        metrics: dict[str, Value | None] = dict(trace_metrics(parent.verdict.trace, state.operator.facts))
        metrics |= {value.metric: value.value for value in values}
        rows = []
        for value in values:
            declared = self.settings.metrics[value.metric]
            rows.append(
                MetricRow(
                    name=value.metric,
                    unit=declared.unit,
                    meaning=declared.meaning,
                    better=declared.better,
                    parent=value.value,
                    previous=before[value.metric].value if value.metric in before else None,
                    baseline=baseline[value.metric].value if value.metric in baseline else None,
                    source=value.source,
                )
            )
        return metrics, tuple(rows)

    def _baseline_values(self, state: TaskState, name: str, stage: Stage) -> tuple[MetricValue, ...]:
        """One profile of the reference for all stages of the plan: it is asked once and shared."""
        wanted = sorted({metric for other in state.category.stages.values() for metric in other.metrics})
        values = self.paid.profile(state.operator, None, wanted)
        self._note_metrics(state, name, None, [value for value in values if value.metric in stage.metrics])
        return values

    def _values(self, state: TaskState, name: str, kernel: Kernel, stage: Stage) -> tuple[MetricValue, ...]:
        if not stage.metrics:
            return ()
        values = self.paid.profile(state.operator, kernel.source, stage.metrics)
        self._note_metrics(state, name, kernel.candidate_id, list(values))
        return values

    def _note_metrics(self, state: TaskState, name: str, candidate: str | None, values: list[MetricValue]) -> None:
        for value in values:
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
                note=value.note,
            )

    def _propose(
        self, state: TaskState, name: str, stage: Stage, rows: tuple[MetricRow, ...], *, audit: bool
    ) -> tuple[float | None, int]:
        """All drafts of the stage. Returns the stage's gain in time (None when nothing can be compared) and the
        number of drafts from which nothing correct came."""
        count = stage.budget.candidates
        plan = Plan(name, stage, rows, stage.budget.repairs, count, audit, known=len(state.history))
        start, failures, awaiting = state.best, 0, None
        found: list[Kernel] = []
        for sample in range(count):
            if stage.sequential:
                plan = replace(plan, known=len(state.history))
            try:
                kernel = self.drafter.draft(state, plan, sample)
            except AwaitingReply as error:
                # Siblings do not depend on this reply, so their prompts go out in the same run.
                awaiting = error
                if stage.sequential:
                    break
                continue
            if kernel is None:
                failures += 1
                continue
            found.append(kernel)
            if stage.sequential and self.promote(state, name, kernel, audit=audit) and sample + 1 < count:
                _, rows = self._profile(state, name, stage, kernel)
                plan = replace(plan, metrics=rows)
        if awaiting is not None:
            raise awaiting
        if not stage.sequential:
            for kernel in found:
                self.promote(state, name, kernel, audit=audit)
        return _gain(start, state.best), failures

    def promote(self, state: TaskState, stage: str, kernel: Kernel, *, audit: bool) -> bool:
        """Make `kernel` the best if it is the first, or provably faster than the best in a paired measurement."""
        incumbent = state.best
        promoted, why, ratio = self._decide(state, stage, kernel, incumbent, audit=audit)
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
        state.history.append(Attempt(stage=stage, role="optimise", outcome=outcome, message="", speedup=value))
        if promoted:
            state.previous, state.best = incumbent, kernel
            self.folder.write_best(state.task_id, kernel.source)
        return promoted

    def _decide(
        self, state: TaskState, stage: str, kernel: Kernel, incumbent: Kernel | None, *, audit: bool
    ) -> tuple[bool, str, float | None]:
        if audit:
            return False, "an audited stage never changes the best", None
        if kernel.verdict.mode is Mode.FALLBACK and not self.settings.judge.allow_unverified:
            return False, "judge.allow_unverified is false and its launch plan is not verified", None
        if incumbent is None:
            return True, "first correct kernel", None
        if incumbent.candidate_id == kernel.candidate_id:
            return False, "the same source as the best", None
        mine, best = kernel.measurement.timing("candidate"), incumbent.measurement.timing("candidate")
        if mine is None or best is None or mine.score_kind is not best.score_kind:
            return False, "its time cannot be compared with the best", None
        if mine.score_kind is not ScoreKind.ESTIMATED and mine.lo_us > best.hi_us * 1.05:
            return False, "clearly slower than the best in separate runs", None
        paired = self.paid.promotion(state.operator, kernel.source, incumbent.source)
        note_measurement(self.paid, state.task_id, stage, kernel.candidate_id, paired)
        ratio = paired.ratio("incumbent")
        if ratio is None:
            return False, f"no paired measurement with the best: {paired.note}", None
        gain = self.settings.search.min_gain
        if ratio.lo > gain:
            return True, f"{ratio.value:.3f}x the best, lower end {ratio.lo:.3f} above {gain:g}", ratio.value
        return False, f"{ratio.value:.3f}x the best, lower end {ratio.lo:.3f} not above {gain:g}", ratio.value

    def _note_end(
        self, state: TaskState, name: str, end: StageEnd, *, gain: float | None, failures: int, candidates: int
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


def _gain(before: Kernel | None, after: Kernel | None) -> float | None:
    old = before.measurement.timing("candidate") if before else None
    new = after.measurement.timing("candidate") if after else None
    return old.median_us / new.median_us if old and new else None
