"""Budgets: what counts, and what the refusal says."""

from __future__ import annotations

import pytest

from engine.errors import BudgetSpent
from engine.llm.budget import Budget
from engine.records import Usage
from tests.support.llm import limits


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


USAGE = Usage(700, 300, cached_tokens=600, reasoning_tokens=200, cost_usd=0.25)

CASES = [
    pytest.param({"calls": 3}, 3, "calls", "search.budget.calls: 3 spent of 3 allowed", id="calls"),
    pytest.param({"tokens": 2500}, 3, "tokens", "search.budget.tokens: 3000 spent of 2500 allowed", id="tokens"),
    pytest.param({"usd": 0.5}, 2, "usd", "search.budget.usd: 0.5000 USD spent of 0.5000 USD allowed", id="usd"),
    pytest.param({"calls": 0}, 0, "calls", "0 spent of 0 allowed", id="no-calls-at-all"),
    pytest.param({"usd": 0.0}, 0, "usd", "0.0000 USD spent of 0.0000 USD allowed", id="no-money-at-all"),
    pytest.param({"calls": 9, "tokens": 1000}, 1, "tokens", "1000 spent of 1000", id="the-first-that-is-reached"),
]


@pytest.mark.parametrize(("allowed", "calls", "limit", "message"), CASES)
def test_refuses_from_the_limit_on_and_not_before(allowed, calls, limit, message):
    budget = Budget(limits(**allowed))
    for _ in range(calls):
        budget.check()
        budget.spend(USAGE)
    with pytest.raises(BudgetSpent) as caught:
        budget.check()
    assert message in str(caught.value)
    assert (caught.value.limit, caught.value.exit_code) == (limit, 0)


def test_wall_time():
    clock = Clock()
    budget = Budget(limits(wall_s=60.0), clock)
    clock.now += 59.9
    budget.check()
    clock.now += 0.1
    with pytest.raises(BudgetSpent, match=r"wall_s: 60\.0 s spent of 60\.0 s allowed"):
        budget.check()


def test_no_limit_never_refuses():
    budget = Budget(limits())
    for _ in range(1000):
        budget.spend(USAGE)
    budget.check()
    assert (budget.calls, budget.tokens, budget.usd) == (1000, 1_000_000, 250.0)


def test_tokens_without_a_price_stop_a_run_that_is_limited_in_usd():
    budget = Budget(limits(usd=5.0))
    budget.spend(Usage(100, 20))
    with pytest.raises(BudgetSpent, match=r"1 replies have no known price.*llm\.price_per_mtok"):
        budget.check()


def test_a_reply_without_tokens_costs_nothing():
    budget = Budget(limits(usd=5.0))
    budget.spend(Usage(0, 0))
    budget.check()


def test_an_unknown_price_does_not_matter_without_a_limit_in_usd():
    budget = Budget(limits(calls=5))
    budget.spend(Usage(100, 20))
    budget.check()
    assert (budget.usd, budget.unpriced) == (0.0, 1)
