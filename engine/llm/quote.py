"""The most that a call can take, known before it is made: its prompt and the longest answer that it allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from engine.llm.chat import Price, declared_price
from engine.llm.litellm_client import import_litellm
from engine.records import Message, Request, Usage
from engine.settings import LlmSettings

CHARS_PER_TOKEN = 4.0
"""OpenAI's rule of thumb for English (help.openai.com, "What are tokens"); an estimate for any other tokenizer."""
ANSWER_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Parameters that bound an answer; without one its price is not known before the call."""
FREE = ("replay", "mailbox")

Quote = Callable[[Request], Usage]


def prompt_tokens(messages: Sequence[Message]) -> int:
    """Estimated tokens of a prompt."""
    return math.ceil(sum(len(message.content) for message in messages) / CHARS_PER_TOKEN)


def quotes(settings: LlmSettings, *, priced: bool) -> Quote:
    """Estimates by the declared price, else, where `priced`, by litellm's; `cost_usd` is None where neither is known.
    Recorded and hand-written replies are quoted nothing."""
    declared = declared_price(settings.price_per_mtok)

    def most(request: Request) -> Usage:
        if settings.provider in FREE:
            return Usage(0, 0)
        bounds = [int(request.params[name]) for name in ANSWER_LIMITS if name in request.params]
        usage = Usage(prompt_tokens(request.messages), min(bounds, default=0))
        price = declared
        if price is None and priced and settings.provider == "litellm":
            price = _listed(request.model)
        return Usage(usage.input_tokens, usage.output_tokens, cost_usd=None if price is None else price.of(usage))

    return most


def _listed(model: str) -> Price | None:
    known = import_litellm().model_cost
    rates = next((known[name] for name in (model, model.partition("/")[2]) if name in known), None)
    if rates is None or "input_cost_per_token" not in rates or "output_cost_per_token" not in rates:
        return None
    return Price(rates["input_cost_per_token"] * 1e6, rates["output_cost_per_token"] * 1e6)
