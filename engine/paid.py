"""Every action that costs something, done at most once: model calls, verdicts, timings, promotions, profiles,
confirmations.

Each goes through the memo under the hash of all that it depends on, and leaves its outcome in the journal. What belongs
to each key, and what a change invalidates, is in docs/steps.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from shutil import which
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from engine.backends.floors import FLOOR_VERSION
from engine.backends.sanity import COUNTING
from engine.backends.seam import Backend
from engine.canonical import Json, digest, digest_text, short
from engine.codec import DecodeError, decode, encode
from engine.confirmation import Confirmation
from engine.errors import AwaitingReply, BudgetSpent, LlmError, StoreError
from engine.folder import RunFolder
from engine.journal import Journal
from engine.judging.sanitizer import find_sanitizer
from engine.llm.caller import Caller
from engine.llm.recordings import request_hash
from engine.llm.replay import prompt_difference
from engine.memo import Memo, Passing, Step
from engine.records import (
    Judged,
    Measurement,
    Message,
    MetricValue,
    Operator,
    Reason,
    Reply,
    Request,
    ScoreKind,
    Status,
    Verdict,
)
from engine.settings import Settings

T = TypeVar("T", Verdict, Measurement, Confirmation)

_COUNTING = COUNTING | {"torch_npu"}


def candidate_id(operator: Operator, source: str) -> str:
    """16 hex that name one source for one task."""
    return short(digest({"task": operator.task.task_hash, "source": source}))


class Paid:
    """Performs paid steps for one run. `free_replies`: replies are recorded and need no memo. `replies`: the
    addresses of replies that stay, by slot, while this run measures afresh. `own`: what this run paid for before it was
    interrupted, which counts in its budget once more; a step that has been counted is taken out."""

    def __init__(
        self,
        settings: Settings,
        *,
        backend: Backend,
        caller: Caller,
        memo: Memo,
        journal: Journal,
        folder: RunFolder,
        free_replies: bool,
        replies: Mapping[str, str] = MappingProxyType({}),
        own: dict[str, Json] | None = None,
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.caller = caller
        self.memo = memo
        self.journal = journal
        self.folder = folder
        self.free_replies = free_replies
        self.replies = replies
        self.own = {} if own is None else own
        self.answered: dict[str, Reply | LlmError] = {}
        self._noted: set[tuple[str, str]] = set()
        self._encoded: dict[str, Json] = {}
        journal.due = False

    def reply(self, request: Request) -> Reply:
        """The model's answer; a failed call is journalled and raised as LlmError."""
        slot = request.slot
        self.folder.write_exchange(slot, request.messages, None)
        try:
            reply, step = self._answer(request)
        except (AwaitingReply, BudgetSpent):
            raise
        except LlmError as error:
            self.answered[slot.path()] = error
            self.journal.write(
                "llm_failed",
                task_id=slot.task_id,
                stage=slot.stage,
                role=slot.role,
                attempt=slot.attempt,
                sample=slot.sample,
                failure=error.kind,
                message=str(error),
            )
            raise
        self.answered[slot.path()] = reply
        self.folder.write_exchange(slot, request.messages, reply)
        self.journal.write(
            "llm_call",
            task_id=slot.task_id,
            stage=slot.stage,
            durable=True,
            category=slot.category,
            role=slot.role,
            attempt=slot.attempt,
            sample=slot.sample,
            request_hash=request_hash(request),
            model=reply.model,
            provider=reply.provider,
            answered_by=reply.answered_by,
            finish=reply.finish,
            input_tokens=reply.usage.input_tokens,
            output_tokens=reply.usage.output_tokens,
            cached_tokens=reply.usage.cached_tokens,
            reasoning_tokens=reply.usage.reasoning_tokens,
            cost_usd=reply.usage.cost_usd,
            latency_s=reply.latency_s,
            attempts=reply.attempts,
            step=step,
        )
        if reply.drift:
            self.journal.write(
                "prompt_drift", task_id=slot.task_id, stage=slot.stage, slot=slot.path(), difference=reply.drift
            )
        return reply

    def _answer(self, request: Request) -> tuple[Reply, str | None]:
        """The reply and the address of its step, None where replies are recorded."""
        if self.free_replies:
            return self.caller.complete(request), None

        def call() -> tuple[Json, Json]:
            reply = self.caller.complete(request)
            return encode(reply), {"usage": encode(reply.usage), "latency_s": reply.latency_s}

        inputs = encode(request)
        del inputs["slot"]
        kept = self._kept(request)
        step = kept or self.memo.step("reply", inputs, call)
        self.journal.due = self.journal.due or step.ran
        reply: Reply = self._decoded("reply", step, Reply)
        if not step.ran and self._charged_now(step):
            self.caller.budget.spend(reply.usage)
        if kept is not None:
            asked = decode(tuple[Message, ...], kept.inputs["messages"], "stored request")
            reply = replace(reply, drift=prompt_difference(asked, request.messages))
        return reply, step.key

    def _kept(self, request: Request) -> Step | None:
        slot = request.slot.path()
        return self.memo.read("reply", self.replies[slot]) if slot in self.replies else None

    def verdict(self, operator: Operator, source: str) -> Verdict:
        inputs = {**self._subject(operator, source), **self._judging()}
        return self._measured("verdict", inputs, Verdict, lambda: self.backend.judge(operator, source))

    def _judging(self) -> dict[str, Json]:
        # What cannot change a verdict is kept out of its address: a sweep over promotion policy must not judge anew.
        if "judge" not in self._encoded:
            judge = encode(replace(self.settings.judge, allow_unverified=True, sandbox="best_effort"))
            del judge["confirm"]
            self._encoded["judge"] = judge
        judge = self._encoded["judge"]
        back_end = self.settings.backends[self.settings.backend]
        compiled = {"target": back_end.target, "compile": back_end.cpu is None or back_end.cpu.compile_kernels}
        return {"judge": judge, **compiled}

    def confirm(self, operator: Operator, winner: Judged) -> Confirmation:
        """The last look at a kernel before it is reported. Its address holds what a verdict's does and
        `judge.confirm`; where kernels are timed also the protocol, and whether there is a sanitizer."""
        asked = self.settings.judge.confirm
        inputs = {**self._subject(operator, winner.source), **self._judging(), "variants": asked.variants}
        if self.settings.backends[self.settings.backend].cuda is not None:
            tool = find_sanitizer() if asked.sanitizer == "auto" else None
            confirmed = {"repeats": asked.repeats, "sanitizer": tool, "sanitizer_s": asked.sanitizer_s}
            inputs = {**inputs, **confirmed, **self._protocol(operator)}
        if self.settings.backends[self.settings.backend].cpu is None:
            inputs |= self._fresh("timing")
        return self._measured("confirm", inputs, Confirmation, lambda: self.backend.confirm(operator, winner))

    def timing(self, operator: Operator, candidate: Judged | None) -> Measurement:
        """Times of a correct candidate beside the baselines; without one, the baselines and the floor."""
        inputs = {**self._timed(operator, candidate), **self._fresh("timing")}
        kind = "baseline" if candidate is None else "timing"
        free = candidate is not None and self._estimates()
        return self._measured(
            kind, inputs, Measurement, lambda: self.backend.measure(operator, candidate, None), free=free
        )

    def _estimates(self) -> bool:
        """Whether a candidate's times are worked out instead of measured: that costs nothing, and no budget forbids it,
        so that no kernel that was judged is left without its score."""
        return self.settings.backends[self.settings.backend].cpu is not None

    def _timed(self, operator: Operator, candidate: Judged | None) -> dict[str, Json]:
        return {**self._subject(operator, candidate.source if candidate else None), **self._protocol(operator)}

    def promotion(self, operator: Operator, candidate: Judged, incumbent: Judged) -> Measurement:
        """Times of a candidate paired with the incumbent; the step that decides which one is best."""
        paired = {"incumbent": digest_text(incumbent.source)}
        inputs = {**self._timed(operator, candidate), **paired, **self._fresh("timing")}
        return self._measured(
            "promotion",
            inputs,
            Measurement,
            lambda: self.backend.measure(operator, candidate, incumbent),
            free=self._estimates(),
        )

    def note_measurement(self, task_id: str, stage: str, name: str, measurement: Measurement) -> None:
        """Journal every timing and paired ratio of one candidate."""
        for timing in measurement.timings:
            self.journal.write(
                "timing",
                task_id=task_id,
                stage=stage,
                candidate_id=name,
                who=timing.who,
                score_kind=timing.score_kind.value,
                median_us=timing.median_us,
                lo_us=timing.lo_us,
                hi_us=timing.hi_us,
                n=timing.n,
                floor_us=measurement.floor_us,
                below_floor=measurement.below_floor and timing.who == "candidate",
            )
        for ratio in measurement.ratios:
            self.journal.write(
                "ratio",
                task_id=task_id,
                stage=stage,
                candidate_id=name,
                over=ratio.over,
                value=ratio.value,
                lo=ratio.lo,
                hi=ratio.hi,
                n=ratio.n,
            )

    def profile(self, operator: Operator, candidate: Judged | None, metrics: Sequence[str]) -> tuple[MetricValue, ...]:
        """Values of the named metrics of a candidate, or of the eager reference without one.

        Kept unless every value is None, or a metric lacks a counted value while a counting profiler of the back-end
        that spells it counted nothing in the whole profile: a permission, a tool or a free device may be there the
        next time. The key has `candidate.time_us`, which headroom, substitutes and contradictions are made from."""
        back_end = self.settings.backends[self.settings.backend]
        candidate = self._as_profiled(operator, candidate)
        inputs = {
            **self._timed(operator, candidate),
            **self._fresh("profile"),
            "time_us": candidate.time_us if candidate else None,
            "metrics": {name: self._metric(name) for name in sorted(metrics)},
            "profilers": encode(back_end.profilers),
            "tools": {name: which(tool.path) if tool.path else None for name, tool in back_end.profilers.items()},
        }

        def collect() -> tuple[Json, Json]:
            started = time.monotonic()
            values = self.backend.profile(operator, candidate, metrics)
            outcome, cost = [encode(value) for value in values], _spent(started)
            if values and (all(value.value is None for value in values) or self._uncounted(values)):
                raise Passing(outcome, cost)
            return outcome, cost

        step = self._step("profile", inputs, collect)
        values: tuple[MetricValue, ...] = self._decoded("profile", step, tuple[MetricValue, ...])
        return values

    def _as_profiled(self, operator: Operator, candidate: Judged | None) -> Judged | None:
        """With its remembered time where only times are fresh: a profile that is not asked for anew stays the one that
        was made beside that time."""
        asked = self.settings.search.fresh
        if candidate is None or candidate.time_us is None or "timing" not in asked or "profile" in asked:
            return candidate
        step = self.memo.lookup("timing", self._timed(operator, candidate))
        timing = None if step is None else self._decoded("timing", step, Measurement).timing("candidate")
        known = timing is not None and timing.score_kind is not ScoreKind.ESTIMATED
        return replace(candidate, time_us=timing.median_us) if timing and known else candidate

    def _uncounted(self, values: Sequence[MetricValue]) -> bool:
        answered = {value.source for value in values if value.value is not None}
        declared = self.settings.backends[self.settings.backend].profilers
        silent = _COUNTING.intersection(declared) - answered
        return any(
            _refused_by(value, silent.intersection(self.settings.metrics[value.metric].spellings))
            for value in values
            if value.value is None or value.source not in _COUNTING
        )

    def _measured(self, kind: str, inputs: Json, record: type[T], work: Callable[[], T], *, free: bool = False) -> T:
        def run() -> tuple[Json, Json]:
            started = time.monotonic()
            outcome = work()
            cost = {**_spent(started), "gpu_s": round(outcome.gpu_s, 3)}
            if _passing(outcome):
                raise Passing(encode(outcome), cost)
            return encode(outcome), cost

        made: T = self._decoded(kind, self._step(kind, inputs, run, free=free), record)
        return made

    def _step(self, kind: str, inputs: Json, work: Callable[[], tuple[Json, Json]], *, free: bool = False) -> Step:
        """A judge step, refused where the budget forbids it; what the memo knows from other runs costs nothing, nor
        does one that is `free`."""
        budget = self.caller.budget

        def allowed() -> tuple[Json, Json]:
            if not free:
                budget.check_gpu()
            return work()

        step = self.memo.step(kind, inputs, allowed)
        self.journal.due = self.journal.due or step.ran
        if step.ran or self._charged_now(step):
            budget.spend_gpu(step.cost["wall_s"])
        self._note(kind, step)
        return step

    def _note(self, kind: str, step: Step) -> None:
        """Journal once a task that the step was needed, where first, and what it took whoever made it."""
        task_id = self.caller.budget.inside("task")
        if task_id is not None and (task_id, step.key) not in self._noted:
            self._noted.add((task_id, step.key))
            stage = self.caller.budget.inside("stage")
            took = {"step_kind": kind, "step": step.key, "wall_s": step.cost["wall_s"]}
            self.journal.write("step", task_id=task_id, stage=stage, **took)

    def _charged_now(self, step: Step) -> bool:
        """Whether this run paid for a found step before it was interrupted; true once, however often it is found."""
        return self.own.pop(step.key, None) is not None

    def _decoded(self, kind: str, step: Step, record: Any) -> Any:
        try:
            return decode(record, step.outcome, f"stored {kind}")
        except DecodeError as error:
            message = f"{self.memo.path(kind, step.key)} is not a step of this version: {error}"
            raise StoreError(message, hint="delete that file; its step is done again") from error

    def _fresh(self, what: Literal["timing", "profile"]) -> dict[str, Json]:
        # The run's own name as salt: no other run finds these steps, and this one, killed, finds its own.
        return {"fresh": self.memo.run_id} if what in self.settings.search.fresh else {}

    def _subject(self, operator: Operator, source: str | None) -> dict[str, Json]:
        return {
            "task": operator.task.task_hash,
            "source": None if source is None else digest_text(source),
            "device": self._device(),
        }

    def _device(self) -> Json:
        # Ceilings move floors, never verdicts: `_protocol` has them.
        if "device" not in self._encoded:
            self._encoded["device"] = encode(replace(self.backend.device, ceilings=""))
            del self._encoded["device"]["ceilings"]
        return self._encoded["device"]

    def _metric(self, name: str) -> Json:
        key = f"metric {name}"
        if key not in self._encoded:
            self._encoded[key] = encode(self.settings.metrics[name])
        return self._encoded[key]

    def _facts(self, operator: Operator) -> Json:
        name = operator.task.task_hash
        if name not in self._encoded:
            self._encoded[name] = digest(encode(operator.facts))
        return self._encoded[name]

    def _protocol(self, operator: Operator) -> dict[str, Json]:
        back_end = self.settings.backends[self.settings.backend]
        return {
            "facts": self._facts(operator),
            "precision": (operator.task.contract.precision or self.settings.judge.precision).value,
            "protocol": encode(back_end.cuda) if back_end.cuda else encode(back_end.cpu),
            "floor": [FLOOR_VERSION, self.backend.device.ceilings],
        }


def _spent(started: float) -> Json:
    return {"wall_s": round(time.monotonic() - started, 3)}


def _refused_by(value: MetricValue, profilers: Iterable[str]) -> bool:
    """Whether the note has the reason of one of these for giving no value: `profiler: reason`, as the ladder writes."""
    starts = tuple(f"{name}: " for name in profilers)
    return any(part.startswith(starts) for part in value.note.split("; "))


def _passing(outcome: object) -> bool:
    """Whether an outcome may differ the next time with the same inputs: the judge lacked memory, or a process that was
    to be timed was lost."""
    if isinstance(outcome, Verdict):
        return outcome.status is Status.UNDECIDED and outcome.reason is Reason.OUT_OF_MEMORY
    if isinstance(outcome, Measurement):
        return outcome.passing
    if isinstance(outcome, Confirmation):
        untimed = [made for made in outcome.measurements if made.timing("candidate") is None and not made.refuted]
        return bool(untimed) or _passing(outcome.verdict)
    return False
