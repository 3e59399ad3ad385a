"""Retries: which errors, how long, and the budget before each attempt."""

from __future__ import annotations

import pytest

from engine.errors import AwaitingReply, BudgetSpent, LlmError, LlmRefused, LlmRetryable
from engine.llm.caller import Budget, Caller
from engine.llm.failures import retry_after_s
from engine.settings import RetrySettings
from tests.support.llm import limits, reply, request


class Fake:
    """Raises or answers what it was given, in order."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.calls = 0

    def check(self):
        pass

    def complete(self, request):
        self.calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def retryable(retry_after_s=None, kind="rate_limit"):
    return LlmRetryable("busy", kind=kind, retry_after_s=retry_after_s)


def caller(llm, *, retry=None, budget=None, slept=None, seed=0):
    slept = [] if slept is None else slept
    return Caller(llm, retry or RetrySettings(4, 1.0, 30.0), budget or Budget(limits()), slept.append, seed)


def test_a_reply_says_how_many_attempts_it_took():
    llm = Fake(retryable(), retryable(kind="timeout"), reply())
    assert caller(llm).complete(request()).attempts == 3
    assert llm.calls == 3


def test_a_recorded_number_of_attempts_is_kept():
    assert caller(Fake(reply(attempts=4))).complete(request()).attempts == 4


@pytest.mark.parametrize(
    "error",
    [
        LlmRefused("no", kind="auth"),
        LlmError("no", kind="no_recording"),
        AwaitingReply("wait", where="in/x.md"),
        BudgetSpent("no", limit="usd"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_pass_through_at_once(error):
    llm = Fake(error, reply())
    with pytest.raises(type(error)) as caught:
        caller(llm).complete(request())
    assert caught.value is error
    assert llm.calls == 1


def test_waits_are_jittered_doubling_and_capped():
    bounds = [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    draws = []
    for seed in range(200):
        slept = []
        llm = Fake(*[retryable()] * 6, reply())
        caller(llm, retry=RetrySettings(7, 1.0, 5.0), slept=slept, seed=seed).complete(request())
        assert all(0 <= wait <= bound for wait, bound in zip(slept, bounds, strict=True))
        draws.append(slept)
    # Full jitter: over 200 draws each wait comes near both ends of its range.
    for number, bound in enumerate(bounds):
        waits = [slept[number] for slept in draws]
        assert min(waits) < 0.05 * bound
        assert max(waits) > 0.95 * bound


def test_waits_can_be_repeated_by_seed():
    def waits():
        slept = []
        caller(Fake(retryable(), retryable(), reply()), slept=slept, seed=7).complete(request())
        return slept

    assert waits() == waits()


def test_retry_after_is_the_least_wait():
    slept = []
    caller(Fake(retryable(20.0), retryable(0.0), reply()), slept=slept).complete(request())
    assert slept[0] == 20.0
    assert 0.0 < slept[1] <= 2.0


def test_a_longer_retry_after_than_allowed_ends_the_call():
    slept = []
    llm = Fake(retryable(31.0), reply())
    with pytest.raises(LlmError, match=r"asks to wait 31 s, llm\.retry\.max_s allows 30") as caught:
        caller(llm, slept=slept).complete(request())
    assert (slept, llm.calls, caught.value.kind) == ([], 1, "rate_limit")


def test_gives_up_with_the_last_kind_and_place():
    slept = []
    llm = Fake(*[retryable()] * 3, retryable(kind="timeout"))
    with pytest.raises(LlmError, match=r"level1__matmul.*gave up after 4 calls, the last: busy") as caught:
        caller(llm, slept=slept).complete(request())
    assert caught.value.kind == "timeout"
    assert not isinstance(caught.value, LlmRetryable)
    assert len(slept) == 3


def test_the_budget_is_asked_before_each_attempt():
    now = [0.0]
    budget = Budget(limits(wall_s=10.0), lambda: now[0])

    def sleep(_):
        now[0] += 6.0

    llm = Fake(*[retryable()] * 3, reply())
    with pytest.raises(BudgetSpent, match="wall_s"):
        Caller(llm, RetrySettings(4, 1.0, 30.0), budget, sleep, 0).complete(request())
    assert llm.calls == 2


def test_a_spent_budget_forbids_the_first_attempt():
    llm = Fake(reply(), reply())
    called = caller(llm, budget=Budget(limits(calls=1)))
    called.complete(request())
    with pytest.raises(BudgetSpent, match="calls"):
        called.complete(request())
    assert llm.calls == 1


def test_failed_attempts_spend_nothing():
    called = caller(Fake(retryable(), reply()))
    called.complete(request())
    assert (called.budget.run.calls, called.budget.run.tokens, called.budget.run.usd) == (1, 15, 0.5)


NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "12"}, 12.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"RETRY-AFTER": "-3"}, 0.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:00:00 GMT"}, 0.0),
        ({"retry-after": "later"}, None),
        ({}, None),
    ],
    ids=["seconds", "fraction", "negative", "date", "past-date", "unreadable", "absent"],
)
def test_retry_after(headers, seconds):
    assert retry_after_s(headers, NOW) == seconds
