"""Budgets: what counts, and what the refusal says."""

from __future__ import annotations

import contextlib
import re

import pytest

from engine.errors import BudgetSpent
from engine.llm.budget import Budget
from engine.llm.caller import Caller
from engine.llm.quote import quotes
from engine.records import Reply, Usage
from tests.support.llm import limits, llm_settings, request


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Llm:
    asked = 0

    def complete(self, request):
        self.asked += 1
        return Reply("text", "stop", Usage(1, 1), 0.1, "m", "test", "test")


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
    assert (budget.run.calls, budget.run.tokens, budget.run.usd) == (1000, 1_000_000, 250.0)


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
    assert (budget.run.usd, budget.run.unpriced) == (0.0, 1)


def test_the_next_call_must_fit_before_it_is_made():
    budget = Budget(limits(usd=1.0))
    budget.spend(Usage(700, 300, cost_usd=0.8))
    budget.check(Usage(10, 10, cost_usd=0.2))
    with pytest.raises(
        BudgetSpent, match=r"0\.8000 USD spent of 1\.0000 USD allowed, and the next call can take 0\.2100"
    ):
        budget.check(Usage(10, 10, cost_usd=0.21))


def test_a_stage_and_a_task_have_accounts_of_their_own():
    budget = Budget(limits(calls=5, task={"calls": 3}, stage={"calls": 2}))
    with budget.task("one"):
        with budget.stage("first"):
            budget.spend(USAGE)
            budget.spend(USAGE)
            with pytest.raises(
                BudgetSpent, match=r"search\.budget\.stage\.calls: 2 spent of 2 .* in stage first"
            ) as caught:
                budget.check()
            assert caught.value.level == "stage"
        with budget.stage("second"):
            budget.check()
            budget.spend(USAGE)
            with pytest.raises(BudgetSpent, match="in task one") as caught:
                budget.check()
            assert caught.value.level == "task"
    with budget.task("two"), budget.stage("first"):
        budget.check()
        budget.spend(USAGE)
        budget.spend(USAGE)
        with pytest.raises(BudgetSpent, match=r"search\.budget\.calls: 5 spent of 5 allowed$") as caught:
            budget.check()
        assert caught.value.level == "run"


def test_judge_seconds_forbid_judge_steps_and_no_calls():
    budget = Budget(limits(gpu_s=10.0))
    budget.spend_gpu(9.9)
    budget.check_gpu()
    budget.spend_gpu(0.2)
    budget.check()
    with pytest.raises(BudgetSpent, match=r"gpu_s: 10\.1 s spent of 10\.0 s allowed for judge steps \(wall clock\)$"):
        budget.check_gpu()


@pytest.mark.parametrize(
    ("allowed", "spent", "told"),
    [
        (0.05, 0.0512, "0.0512 s spent of 0.05 s allowed"),
        (0.5, 0.9996, "1 s spent of 0.5 s allowed"),
        (0.5, 1.26, "1.3 s spent of 0.5 s allowed"),
        (3600.0, 3725.04, "3725.0 s spent of 3600.0 s allowed"),
    ],
)
def test_seconds_are_told_so_that_the_limit_can_be_seen(allowed, spent, told):
    budget = Budget(limits(gpu_s=allowed))
    budget.spend_gpu(spent)
    with pytest.raises(BudgetSpent, match=re.escape(told)):
        budget.check_gpu()


@pytest.mark.parametrize(("free", "asked"), [(False, 0), (True, 1)])
def test_no_call_is_paid_whose_reply_could_not_be_judged(free, asked):
    llm = Llm()
    caller = Caller(llm, llm_settings("litellm").retry, Budget(limits(gpu_s=10.0)), free=free)
    caller.budget.spend_gpu(10.0)
    with contextlib.suppress(BudgetSpent):
        caller.complete(request())
    assert llm.asked == asked


def test_a_quote_is_the_prompt_and_the_longest_answer_at_the_declared_price():
    settings = llm_settings("litellm", price_per_mtok={"input": 2.0, "output": 10.0})
    most = quotes(settings, priced=True)(request("x" * 4000, params={"max_tokens": 500}))
    assert (most.output_tokens, most.input_tokens >= 1000) == (500, True)
    assert most.cost_usd == pytest.approx((most.input_tokens * 2 + 500 * 10) / 1e6)
    assert quotes(llm_settings("replay"), priced=True)(request()) == Usage(0, 0)
