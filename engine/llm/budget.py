"""The declared limits of one run: USD, tokens, calls, wall time."""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.errors import BudgetSpent
from engine.records import Usage
from engine.settings import BudgetSettings


class Budget:
    """Adds up what replies cost and refuses the next call once a limit is reached.

    A call's size is known only afterwards, so the last one may pass a limit; `BudgetSpent` says by how much. Replies
    that a resumed run reads from the memo count like new ones. Under a limit in USD, a reply with tokens but no known
    price forbids the next call: it would be spending blindly.
    """

    def __init__(self, limits: BudgetSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.clock = clock
        self.started = clock()
        self.usd = 0.0
        self.tokens = 0
        self.calls = 0
        self.unpriced = 0

    def spend(self, usage: Usage) -> None:
        """Count one reply."""
        tokens = usage.input_tokens + usage.output_tokens
        self.calls += 1
        self.tokens += tokens
        if usage.cost_usd is not None:
            self.usd += usage.cost_usd
        elif tokens:
            self.unpriced += 1

    def check(self) -> None:
        """BudgetSpent names the limit, what was spent and what is allowed."""
        wall_s = self.clock() - self.started
        limits = self.limits
        _check("calls", self.calls, limits.calls, "{}")
        _check("tokens", self.tokens, limits.tokens, "{}")
        _check("usd", self.usd, limits.usd, "{:.4f} USD")
        _check("wall_s", wall_s, limits.wall_s, "{:.1f} s")
        if limits.usd is not None and self.unpriced:
            message = (
                f"search.budget.usd: {self.unpriced} replies have no known price, so a limit of {limits.usd:g} USD "
                "cannot be kept; set llm.price_per_mtok or remove the limit"
            )
            raise BudgetSpent(message, limit="usd")


def _check(limit: str, spent: float, allowed: float | None, form: str) -> None:
    if allowed is not None and spent >= allowed:
        message = f"search.budget.{limit}: {form.format(spent)} spent of {form.format(allowed)} allowed"
        raise BudgetSpent(message, limit=limit)
