"""Settings and requests for tests of the model seam."""

from __future__ import annotations

from engine.records import Message, Reply, Request, Slot, Usage
from engine.settings import BudgetSettings, Limits, LlmSettings, RetrySettings

SLOT = Slot("level1/matmul", "some_category", "first", "seed", 0, 0)


def llm_settings(provider="scripted", **changes):
    fields = {
        "provider": provider,
        "model": "openai/served",
        "api_base": None,
        "key_env": None,
        "params": {"max_tokens": 100},
        "roles": {},
        "timeout_s": 5.0,
        "retry": RetrySettings(3, 0.0, 0.0),
        "match": "slot",
        "recordings": None,
        "record": None,
        "mailbox": None,
        "script": None,
        "answered_by": "tester",
        "price_per_mtok": None,
    }
    return LlmSettings(**{**fields, **changes})


def request(prompt="write a kernel", *, slot=SLOT, model="openai/served", params=None, sample=0):
    messages = (Message("system", "You write Triton."), Message("user", prompt))
    return Request(slot, model, messages, {"max_tokens": 100} if params is None else params, sample)


def reply(text="a reply", **changes):
    fields = {
        "finish": "stop",
        "usage": Usage(10, 5, cost_usd=0.5),
        "latency_s": 1.5,
        "model": "served",
        "provider": "fake",
    }
    return Reply(text, **{**fields, **changes})


def limits(**changes):
    none = {"usd": None, "tokens": None, "calls": None, "gpu_s": None, "wall_s": None}
    levels = {level: Limits(**{**none, **changes.pop(level, {})}) for level in ("task", "stage")}
    return BudgetSettings(**{**none, **levels, **changes})
