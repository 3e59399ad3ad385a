"""The body of an OpenAI chat completion as text, finish reason and usage; and what its tokens cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.canonical import Json
from engine.codec import DecodeError, decode
from engine.errors import ConfigError, Fault
from engine.records import Usage

FINISHES = {"stop": "stop", "length": "length", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens; cached input costs as much as fresh input where `cached` is None."""

    input: float
    output: float
    cached: float | None = None

    def of(self, usage: Usage) -> float:
        """USD of one call. Reasoning tokens are part of the output tokens, cached ones of the input tokens."""
        cached = self.input if self.cached is None else self.cached
        fresh = usage.input_tokens - usage.cached_tokens
        return (fresh * self.input + usage.cached_tokens * cached + usage.output_tokens * self.output) / 1e6


def declared_price(rates: Mapping[str, float] | None) -> Price | None:
    """`llm.price_per_mtok` as a Price; ConfigError for a missing or unknown name."""
    if rates is None:
        return None
    try:
        return decode(Price, rates)
    except DecodeError as error:
        raise ConfigError(
            [Fault(f"llm.price_per_mtok.{fault.path}", fault.problem) for fault in error.faults]
        ) from error


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    finish: str
    usage: Usage
    model: str


def read_completion(body: Json, price: Price | None) -> Completion:
    """The first choice of a chat completion; ValueError says what of it is missing. Absent usage counts as zero."""
    choices = _field(body, "choices")
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"expected a chat completion with a list of choices, got choices = {choices!r}")
    content = _field(_field(choices[0], "message"), "content")
    reason = _field(choices[0], "finish_reason")
    usage = _usage(_field(body, "usage"))
    model = _field(body, "model")
    return Completion(
        text=content if isinstance(content, str) else "",
        finish="stop" if reason is None else FINISHES.get(reason, "error"),
        usage=usage if price is None else replace(usage, cost_usd=price.of(usage)),
        model=model if isinstance(model, str) else "",
    )


def _usage(tree: Json) -> Usage:
    return Usage(
        input_tokens=_count(tree, "prompt_tokens"),
        output_tokens=_count(tree, "completion_tokens"),
        cached_tokens=_count(_field(tree, "prompt_tokens_details"), "cached_tokens"),
        reasoning_tokens=_count(_field(tree, "completion_tokens_details"), "reasoning_tokens"),
    )


def _field(tree: Json, name: str) -> Json:
    return tree[name] if isinstance(tree, dict) and name in tree else None


def _count(tree: Json, name: str) -> int:
    value = _field(tree, name)
    return value if isinstance(value, int) else 0
