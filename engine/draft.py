"""One draft: ask the model, extract the code, judge it, and repair what failed until it holds or the budget ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from engine.canonical import digest_text
from engine.errors import AwaitingReply, BudgetSpent, EngineError, LlmError, LlmRefused
from engine.extract import extract_code, extract_json
from engine.kernel import (
    UNTIMED,
    Kernel,
    Scores,
    accepts_estimates,
    counted,
    fact_operands,
    score_view,
    scores,
    trace_metrics,
)
from engine.llm import request_for
from engine.paid import Paid, candidate_id
from engine.prompts import Attempt, MetricRow, PromptContext, Prompts, trim_error
from engine.records import Judged, Measurement, Operator, Reason, Reply, Slot, Status, Verdict
from engine.rules import Evaluation, Expression, Value, apply
from engine.settings import Category, Settings, Stage
from engine.vocabulary import OperandKind, operands

SEED = "seed"
"""The step before the first stage; drafts there have no parent."""

ERROR_ANALYSIS_KEYS = ("critical_issue", "why_it_matters", "minimal_fix_hint")
STRATEGY_KEYS = ("bottleneck", "method", "plan")


@dataclass(slots=True)
class TaskState:
    """What is known of a task while its plan runs. `best` only ever improves."""

    operator: Operator
    category_name: str
    category: Category
    baseline: Measurement | None = None
    best: Kernel | None = None
    previous: Kernel | None = None
    bests: list[Kernel] = field(default_factory=list)
    """Every kernel that was the best, in order."""
    confirmed: bool | None = None
    """Of the best at the end: True when it was judged again and held, None when that was not done or not decided."""
    history: list[Attempt] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    """candidate_id -> role of the call that wrote it."""
    seeded: list[Kernel] = field(default_factory=list)
    """Every kernel that was the best when the seeds had ended, in order."""
    found: dict[str, list[Kernel]] = field(default_factory=dict)
    """The correct kernels of the seeds and of each stage that proposed, in the order in which they were promoted or
    not."""
    cut: set[str] = field(default_factory=set)
    """Stages that a budget ended before all their drafts were made."""
    gain: float = 1.0
    """Of the running stage: the product of the paired ratios with which its kernels replaced the best."""

    @property
    def task_id(self) -> str:
        return self.operator.task.task_id

    def scores(self) -> Scores:
        return scores(self.best, self.baseline)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a draft belongs: the stage (None for seeds), its metric rows, whether it is an audit."""

    name: str
    stage: Stage | None
    metrics: tuple[MetricRow, ...]
    repairs: int
    samples: int
    audit: bool
    known: int
    """Attempts of the history made before this step: its drafts see these and their own, never a sibling's."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a draft is not acceptable yet; `source` is None when there was no code at all."""

    reason: str
    message: str
    source: str | None
    candidate_id: str | None


class Drafter:
    """Makes drafts for one run; everything that costs goes through `paid`."""

    undecided: type[EngineError] = EngineError
    """What is raised where a `require` rule that must be known is not."""

    def __init__(
        self,
        settings: Settings,
        paid: Paid,
        prompts: Prompts,
        expressions: Mapping[str, Expression],
    ) -> None:
        self.settings = settings
        self.paid = paid
        self.prompts = prompts
        self.expressions = expressions

    def draft(self, state: TaskState, plan: Plan, sample: int) -> Kernel | None:
        """One draft with its repairs, also in `state.found`. None when nothing correct came out; the failures are in
        the journal and in `state.history`. Raises AwaitingReply and BudgetSpent."""
        role = SEED if plan.stage is None else "optimise"
        start = len(state.history)
        base = self._context(state, plan, sample)
        if plan.stage is not None and self.settings.search.strategy:
            base = replace(base, strategy=self._advice(state, plan, base, "strategy", STRATEGY_KEYS, 0))
        result = self._attempt(state, plan, base, role, 0, None)
        for attempt in range(1, plan.repairs + 1):
            if not isinstance(result, Failure):
                break
            result = self._repair(state, plan, base, result, attempt, start)
        return None if isinstance(result, Failure) else result

    def _repair(
        self, state: TaskState, plan: Plan, base: PromptContext, failure: Failure, attempt: int, start: int
    ) -> Kernel | Failure:
        search = self.settings.search
        context = replace(
            base,
            broken_source=failure.source,
            error=trim_error(f"{failure.reason}: {failure.message}", search.error_chars),
            # The last attempt is this failure, which the prompt shows in full.
            history=self._history(state, plan, state.history[start:-1]),
        )
        if search.error_analysis and failure.source is not None:
            advice = self._advice(state, plan, context, "error_analysis", ERROR_ANALYSIS_KEYS, attempt)
            context = replace(context, analysis=advice)
        return self._attempt(state, plan, context, "repair", attempt, failure)

    def _context(self, state: TaskState, plan: Plan, sample: int) -> PromptContext:
        back_end = self.settings.backends[self.settings.backend]
        contract = state.operator.task.contract
        view = state.scores()
        best = state.best if plan.stage is not None else None
        return PromptContext(
            operator=state.operator,
            category=state.category_name,
            category_settings=state.category,
            stage=plan.name if plan.stage is not None else None,
            stage_settings=plan.stage,
            device=self.paid.backend.device,
            dialect=back_end.dialect,
            precision=(contract.precision or self.settings.judge.precision).value,
            host_ops=contract.host_ops or self.settings.judge.host_ops,
            parent_source=best.source if best else None,
            broken_source=None,
            error=None,
            analysis=None,
            strategy=None,
            metrics=plan.metrics,
            scores=score_view(view) if best else None,
            history=self._history(state, plan, []),
            sample=sample,
            samples=plan.samples,
            trace=best.verdict.trace if best else None,
        )

    def _history(self, state: TaskState, plan: Plan, own: list[Attempt]) -> tuple[Attempt, ...]:
        # A sibling's attempts stay out: its reply may be awaited still, and an answered prompt must not change.
        shown = self.settings.search.history
        known = [*state.history[: plan.known], *own]
        return tuple(known[-shown:]) if shown else ()

    def _ask(self, state: TaskState, plan: Plan, context: PromptContext, role: str, attempt: int) -> Reply | LlmError:
        """The reply, or an error that is this call's alone; what concerns the whole run is raised."""
        slot = Slot(state.task_id, state.category_name, plan.name, role, attempt, context.sample)
        messages = self.prompts.render(role, context)
        try:
            return self.paid.reply(request_for(self.settings.llm, slot, messages, context.sample))
        except LlmError as error:
            if _ends_run(error):
                raise
            return error

    def _advice(
        self,
        state: TaskState,
        plan: Plan,
        context: PromptContext,
        role: str,
        keys: tuple[str, ...],
        attempt: int,
    ) -> Mapping[str, str] | None:
        """A JSON answer that helps the next prompt; unreadable or failed, the flow goes on without it."""
        reply = self._ask(state, plan, context, role, attempt)
        if isinstance(reply, LlmError):
            return None
        advice = extract_json(reply.text, keys)
        if advice is None:
            self.paid.journal.write(
                "advice_unreadable",
                task_id=state.task_id,
                stage=plan.name,
                role=role,
                attempt=attempt,
                sample=context.sample,
                expected=list(keys),
            )
        return advice

    def _attempt(
        self,
        state: TaskState,
        plan: Plan,
        context: PromptContext,
        role: str,
        attempt: int,
        broken: Failure | None,
    ) -> Kernel | Failure:
        reply = self._ask(state, plan, context, role, attempt)
        if isinstance(reply, LlmError):
            return self._failed(state, plan, role, Failure(reply.kind, str(reply), None, None))
        extracted = extract_code(reply)
        if extracted.code is None:
            self.paid.journal.write(
                "reply_unusable",
                task_id=state.task_id,
                stage=plan.name,
                role=role,
                attempt=attempt,
                sample=context.sample,
                problem=str(extracted.kind),
                message=extracted.message,
            )
            return self._failed(state, plan, role, Failure(str(extracted.kind), extracted.message, None, None))
        parent = broken.candidate_id if broken else (state.best.candidate_id if plan.stage and state.best else None)
        return self._judge(state, plan, role, attempt, context.sample, extracted.code, parent)

    def _judge(
        self,
        state: TaskState,
        plan: Plan,
        role: str,
        attempt: int,
        sample: int,
        source: str,
        parent: str | None,
    ) -> Kernel | Failure:
        name = candidate_id(state.operator, source)
        self.paid.journal.write(
            "candidate",
            task_id=state.task_id,
            stage=plan.name,
            candidate_id=name,
            parent_id=parent,
            role=role,
            proposer=plan.stage.proposer if plan.stage else "llm",
            audit=plan.audit,
            category=state.category_name,
            sample=sample,
            attempt=attempt,
            source_hash=digest_text(source),
        )
        self.paid.folder.write_source(state.task_id, name, source)
        state.roles[name] = role
        verdict = self.paid.verdict(state.operator, source)
        self._note_verdict(state, plan, name, verdict)
        if verdict.status is not Status.CORRECT:
            reason = str(verdict.reason or verdict.status)
            return self._failed(state, plan, role, Failure(reason, verdict.message, source, name))
        broken = self.violated(state, plan, name, source, verdict)
        if broken:
            return self._failed(state, plan, role, Failure(str(Reason.REQUIREMENT), broken, source, name))
        return self._timed(state, Kernel(name, source, plan.name, verdict, UNTIMED, timed=False))

    def _timed(self, state: TaskState, kernel: Kernel) -> Kernel:
        """The kernel with its time, in `state.found`, where it is first without one: no stop loses what was judged."""
        found = state.found[kernel.stage]
        found.append(kernel)
        try:
            measurement = self.paid.timing(state.operator, kernel.judged)
        except BudgetSpent as spent:
            found[-1] = replace(kernel, measurement=replace(UNTIMED, note=str(spent)))
            raise
        self.paid.note_measurement(state.task_id, kernel.stage, kernel.candidate_id, measurement)
        found[-1] = replace(kernel, measurement=measurement, timed=True)
        return found[-1]

    def _failed(self, state: TaskState, plan: Plan, role: str, failure: Failure) -> Failure:
        message = trim_error(failure.message, self.settings.search.error_chars // 4)
        state.history.append(Attempt(stage=plan.name, role=role, outcome=failure.reason, message=message, speedup=None))
        return failure

    def _note_verdict(self, state: TaskState, plan: Plan, name: str, verdict: Verdict) -> None:
        trace = verdict.trace
        self.paid.journal.write(
            "verdict",
            task_id=state.task_id,
            stage=plan.name,
            durable=True,
            candidate_id=name,
            status=verdict.status.value,
            reason=verdict.reason.value if verdict.reason else None,
            mode=verdict.mode.value,
            precision_class=verdict.precision_class,
            error_ratio=verdict.error_ratio,
            variant=verdict.variant,
            suite=verdict.suite,
            launches=trace.launch_count if trace else None,
            host_ops=[op.name for op in trace.host_ops] if trace else None,
            trace_error=verdict.trace_error,
            message=verdict.message,
            remarks=list(verdict.remarks),
            sandbox=list(verdict.sandbox),
            seed=verdict.seed,
            wall_s=verdict.wall_s,
            gpu_s=verdict.gpu_s,
            stages=dict(verdict.stages),
        )

    def violated(self, state: TaskState, plan: Plan, name: str, source: str, verdict: Verdict) -> str | None:
        """The `why` of the first `require` rule that does not hold, or None; raises `undecided`."""
        if plan.stage is None or not plan.stage.require:
            return None
        metrics: dict[str, Value | None] = dict(trace_metrics(verdict.trace, state.operator.facts))
        rules = {key: (rule, self.expressions[rule.when]) for key, rule in plan.stage.require.items()}
        known = operands(self.settings.metrics, self.settings.thresholds)
        names = {name for _, expression in rules.values() for name in expression.names}
        wanted = {name for name in names if known[name] is OperandKind.METRIC}
        if wanted - metrics.keys():
            values = self.paid.profile(state.operator, Judged(source, verdict.trace), sorted(wanted - metrics.keys()))
            metrics |= {value.metric: value.value for value in values}
        found = None
        for key, (rule, expression) in rules.items():
            evaluation = apply(key, "require", rule, expression, self.operands(state, metrics))
            broken = violates(evaluation)
            obeyed = broken and self.settings.search.rules == "obey"
            note_rule(
                self.paid,
                state.task_id,
                plan.name,
                evaluation,
                fired=broken,
                obeyed=obeyed,
                candidate=name,
                undecided=self.undecided,
            )
            if obeyed and found is None:
                found = f"The kernel is correct, but it breaks a requirement of this stage: {rule.why}\n"
                found += f"Rule: {rule.when}. Found: {_facts_of(evaluation)}."
        return found

    def operands(
        self,
        state: TaskState,
        metrics: Mapping[str, Value | None],
        extra: Mapping[str, Value | None] | None = None,
    ) -> Mapping[str, Value | None]:
        """Facts, scores, thresholds and the given metrics, under the names that rules use."""
        return {
            # First: a score or fact of the same name (headroom, intensity) wins over its metric.
            **metrics,
            **fact_operands(state.operator.facts),
            **counted(state.scores(), accept_estimates=accepts_estimates(self.settings)),
            **{f"thresholds.{name}": value for name, value in self.settings.thresholds.items()},
            **(extra or {}),
        }


def _ends_run(error: LlmError) -> bool:
    """Whether no other request can fare better: an awaited reply, a spent budget, a refused key, account, model or
    request form. A prompt that is too long or offends a policy is that draft's failure."""
    if isinstance(error, AwaitingReply | BudgetSpent):
        return True
    return isinstance(error, LlmRefused) and error.kind not in ("context_window", "content_policy")


def violates(evaluation: Evaluation) -> bool:
    """Whether a `require` rule is broken: false, or unknown where on_missing says so."""
    if evaluation.outcome == "unknown":
        return evaluation.fired
    return evaluation.outcome == "false"


def note_rule(
    paid: Paid,
    task_id: str,
    stage: str,
    evaluation: Evaluation,
    *,
    fired: bool,
    obeyed: bool,
    candidate: str | None,
    undecided: type[EngineError] = EngineError,
) -> None:
    """Journal one evaluation; a rule that must not be unknown raises `undecided` when it is."""
    paid.journal.write(
        "rule",
        task_id=task_id,
        stage=stage,
        rule=evaluation.rule,
        rule_kind=evaluation.kind,
        when=evaluation.when,
        outcome=evaluation.outcome,
        fired=fired,
        obeyed=obeyed,
        operands=dict(evaluation.operands),
        missing=list(evaluation.missing),
        why=evaluation.why,
        candidate_id=candidate,
    )
    if evaluation.failed and paid.settings.search.rules == "obey":
        absent = ", ".join(evaluation.missing)
        raise undecided(
            f"rule '{evaluation.rule}' of stage '{stage}' cannot be decided: no value for {absent}",
            hint="the rule says on_missing: fail; provide the metric, or declare ignore or fire",
        )


def _facts_of(evaluation: Evaluation) -> str:
    return ", ".join(f"{name} = {value}" for name, value in sorted(evaluation.operands.items()))
