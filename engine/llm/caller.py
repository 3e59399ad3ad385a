"""Calls that survive bad luck: typed retries with back-off, each attempt allowed by the budget."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace

from engine.errors import LlmError, LlmRetryable
from engine.llm.budget import Budget
from engine.llm.quote import Quote
from engine.llm.seam import Llm
from engine.records import Reply, Request
from engine.settings import RetrySettings

__all__ = ["Budget", "Caller"]


class Caller:
    """`complete` tries again after LlmRetryable, `retry.attempts` calls in all; any other error passes through.

    The wait before attempt n + 1 is drawn evenly from 0 to min(max_s, base_s * 2**(n - 1)) (full jitter), and is never
    shorter than the server's Retry-After. A Retry-After beyond max_s ends the call at once: waiting less is refused
    again, and how long a run may stand still is max_s.
    """

    def __init__(
        self,
        llm: Llm,
        retry: RetrySettings,
        budget: Budget,
        sleep: Callable[[float], None] = time.sleep,
        seed: int | None = None,
        quote: Quote | None = None,
        free: bool = False,
    ) -> None:
        self.llm = llm
        self.retry = retry
        self.budget = budget
        self.sleep = sleep
        self.quote = quote
        self.free = free
        """Replies are found, not bought: what they cost when they were recorded is not charged again."""
        self._random = random.Random(seed)

    def complete(self, request: Request) -> Reply:
        """The reply, with the attempts it took. BudgetSpent before a call that a limit forbids, whose quoted price does
        not fit, or whose reply could not be judged; LlmError of the last attempt's kind when none succeeded."""
        most = self.quote(request) if self.quote is not None and self.budget.limited else None
        for attempt in range(1, self.retry.attempts + 1):
            self.budget.check(most)
            if not self.free:
                # A reply that no judge step may follow is money for nothing.
                self.budget.check_gpu()
            try:
                reply = self.llm.complete(request)
            except LlmRetryable as error:
                self._wait(error, attempt, request)
            else:
                self.budget.spend(replace(reply.usage, cost_usd=0.0) if self.free else reply.usage)
                return replace(reply, attempts=reply.attempts + attempt - 1)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _wait(self, error: LlmRetryable, attempt: int, request: Request) -> None:
        asked_s = 0.0 if error.retry_after_s is None else error.retry_after_s
        place = request.slot.path()
        if attempt == self.retry.attempts:
            message = f"{place}: gave up after {attempt} calls, the last: {error}"
            hint = "see whether the provider is up; llm.retry.attempts and llm.timeout_s decide how long to insist"
            raise LlmError(message, kind=error.kind, hint=hint) from error
        if asked_s > self.retry.max_s:
            message = (
                f"{place}: the server asks to wait {asked_s:g} s, llm.retry.max_s allows {self.retry.max_s:g}: {error}"
            )
            raise LlmError(
                message, kind=error.kind, hint="run the same command later, or raise llm.retry.max_s"
            ) from error
        longest_s = min(self.retry.max_s, self.retry.base_s * 2 ** (attempt - 1))
        self.sleep(max(asked_s, self._random.uniform(0.0, longest_s)))
