"""Every action that costs something, done at most once: model calls, verdicts, timings, promotions, profiles,
confirmations.

Each goes through the memo under the hash of all that it depends on, and leaves its outcome in the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from shutil import which
from typing import TypeVar

from engine.backends.floors import FLOOR_VERSION
from engine.backends.sanity import COUNTING
from engine.backends.seam import Backend
from engine.canonical import Json, digest, digest_text, short
from engine.codec import decode, encode
from engine.confirmation import Confirmation
from engine.errors import AwaitingReply, BudgetSpent, LlmError
from engine.folder import RunFolder
from engine.journal import Journal
from engine.judging.sanitizer import find_sanitizer
from engine.llm.caller import Caller
from engine.llm.recordings import request_hash
from engine.memo import Memo, Passing
from engine.records import (
    Judged,
    Measurement,
    MetricValue,
    Operator,
    Reason,
    Reply,
    Request,
    Status,
    Verdict,
)
from engine.settings import Settings

T = TypeVar("T")

_COUNTING = COUNTING | {"torch_npu"}


def candidate_id(operator: Operator, source: str) -> str:
    """16 hex that name one source for one task."""
    return short(digest({"task": operator.task.task_hash, "source": source}))


class Paid:
    """Performs paid steps for one run. `free_replies`: replies are read from recordings and need no memo."""

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
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.caller = caller
        self.memo = memo
        self.journal = journal
        self.folder = folder
        self.free_replies = free_replies

    def reply(self, request: Request) -> Reply:
        """The model's answer; a failed call is journalled and raised as LlmError."""
        slot = request.slot
        self.folder.write_exchange(slot, request.messages, None)
        try:
            reply = self._answer(request)
        except (AwaitingReply, BudgetSpent):
            raise
        except LlmError as error:
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
        )
        if reply.drift:
            self.journal.write(
                "prompt_drift", task_id=slot.task_id, stage=slot.stage, slot=slot.path(), difference=reply.drift
            )
        return reply

    def _answer(self, request: Request) -> Reply:
        if self.free_replies:
            return self.caller.complete(request)

        def call() -> tuple[Json, Json]:
            reply = self.caller.complete(request)
            return encode(reply), {"usage": encode(reply.usage), "latency_s": reply.latency_s}

        inputs = encode(request)
        del inputs["slot"]
        step = self.memo.step("reply", inputs, call)
        reply = decode(Reply, step.outcome, "stored reply")
        if not step.ran:
            self.caller.budget.spend(reply.usage)
        return reply

    def verdict(self, operator: Operator, source: str) -> Verdict:
        inputs = {**self._subject(operator, source), **self._judging()}
        return self._measured("verdict", inputs, Verdict, lambda: self.backend.judge(operator, source))

    def _judging(self) -> dict[str, Json]:
        # What cannot change a verdict is kept out of its address: a sweep over promotion policy must not judge anew.
        judge = encode(replace(self.settings.judge, allow_unverified=True, sandbox="best_effort"))
        del judge["confirm"]
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
        return self._measured("confirm", inputs, Confirmation, lambda: self.backend.confirm(operator, winner))

    def timing(self, operator: Operator, candidate: Judged | None) -> Measurement:
        """Times of a correct candidate beside the baselines; without one, the baselines and the floor."""
        inputs = {**self._subject(operator, candidate.source if candidate else None), **self._protocol(operator)}
        kind = "baseline" if candidate is None else "timing"
        return self._measured(kind, inputs, Measurement, lambda: self.backend.measure(operator, candidate, None))

    def promotion(self, operator: Operator, candidate: Judged, incumbent: Judged) -> Measurement:
        """Times of a candidate paired with the incumbent; the step that decides which one is best."""
        inputs = {
            **self._subject(operator, candidate.source),
            **self._protocol(operator),
            "incumbent": digest_text(incumbent.source),
        }
        return self._measured(
            "promotion", inputs, Measurement, lambda: self.backend.measure(operator, candidate, incumbent)
        )

    def profile(self, operator: Operator, candidate: Judged | None, metrics: Sequence[str]) -> tuple[MetricValue, ...]:
        """Values of the named metrics of a candidate, or of the eager reference without one.

        Kept unless every value is None, or a metric lacks a counted value while a counting profiler of the back-end
        that spells it counted nothing in the whole profile: a permission, a tool or a free device may be there the
        next time. The key has `candidate.time_us`, which headroom, substitutes and contradictions are made from."""
        back_end = self.settings.backends[self.settings.backend]
        inputs = {
            **self._subject(operator, candidate.source if candidate else None),
            **self._protocol(operator),
            "time_us": candidate.time_us if candidate else None,
            "metrics": {name: encode(self.settings.metrics[name]) for name in sorted(metrics)},
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

        step = self.memo.step("profile", inputs, collect)
        return tuple(decode(MetricValue, value, "stored metric") for value in step.outcome)

    def _uncounted(self, values: Sequence[MetricValue]) -> bool:
        answered = {value.source for value in values if value.value is not None}
        declared = self.settings.backends[self.settings.backend].profilers
        silent = _COUNTING.intersection(declared) - answered
        return any(
            _refused_by(value, silent.intersection(self.settings.metrics[value.metric].spellings))
            for value in values
            if value.value is None or value.source not in _COUNTING
        )

    def _measured(self, kind: str, inputs: Json, record: type[T], work: Callable[[], T]) -> T:
        def run() -> tuple[Json, Json]:
            started = time.monotonic()
            outcome = work()
            if _passing(outcome):
                raise Passing(encode(outcome), _spent(started))
            return encode(outcome), _spent(started)

        return decode(record, self.memo.step(kind, inputs, run).outcome, f"stored {kind}")

    def _subject(self, operator: Operator, source: str | None) -> dict[str, Json]:
        return {
            "task": operator.task.task_hash,
            "source": None if source is None else digest_text(source),
            "device": self._device(),
        }

    def _device(self) -> Json:
        # Ceilings move floors, never verdicts: `_protocol` has them.
        device = encode(self.backend.device)
        del device["ceilings"]
        return device

    def _protocol(self, operator: Operator) -> dict[str, Json]:
        back_end = self.settings.backends[self.settings.backend]
        return {
            "facts": digest(encode(operator.facts)),
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
        return bool(outcome.note)
    if isinstance(outcome, Confirmation):
        untimed = [made for made in outcome.measurements if made.timing("candidate") is None and not made.refuted]
        return bool(untimed) or _passing(outcome.verdict)
    return False
