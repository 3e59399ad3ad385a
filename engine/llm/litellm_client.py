"""Models over the network through litellm: one request, one typed error; retries and budgets are the caller's."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from dataclasses import replace
from typing import Any

from engine.errors import MissingError
from engine.llm.chat import Price, read_completion
from engine.llm.failures import typed
from engine.llm.reach import require_reachable
from engine.records import Reply, Request
from engine.settings import LlmSettings


def import_litellm() -> Any:
    """litellm without its price-map download, .env reading, telemetry and debug print-outs. Takes seconds."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"
    litellm: Any = importlib.import_module("litellm")
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return litellm


class LiteLlm:
    """One provider or OpenAI-compatible server. `must_price`: with a limit in USD `check` refuses unknown prices."""

    def __init__(self, settings: LlmSettings, price: Price | None, *, must_price: bool) -> None:
        self.settings = settings
        self.price = price
        self.must_price = must_price

    def check(self) -> None:
        """The key, the server where it is a local one, and the price, each with its remedy in one line."""
        settings = self.settings
        if importlib.util.find_spec("litellm") is None:
            raise MissingError("the package litellm is not installed", hint="pip install litellm, or choose llm=replay")
        if settings.key_env and not os.environ.get(settings.key_env):
            hint = f"export {settings.key_env}=..., or choose llm=replay or llm=mailbox, which need no key"
            raise MissingError(f"llm.key_env: the environment variable {settings.key_env} is not set", hint=hint)
        if settings.api_base:
            require_reachable(settings.api_base)
        if self.must_price and self.price is None:
            self._check_prices()

    def _check_prices(self) -> None:
        known = import_litellm().model_cost
        models = {self.settings.model, *(role.model for role in self.settings.roles.values() if role.model)}
        unknown = sorted(model for model in models if not {model, model.partition("/")[2]} & set(known))
        if unknown:
            hint = "set llm.price_per_mtok={input: ..., output: ...}, or remove search.budget.usd"
            raise MissingError(f"search.budget.usd: the price of {', '.join(unknown)} is unknown", hint=hint)

    def complete(self, request: Request) -> Reply:
        """One attempt. LlmRetryable: rate_limit, timeout, server, connection. LlmRefused: auth, quota, model, request,
        content_policy, context_window."""
        litellm = import_litellm()
        key = os.environ.get(self.settings.key_env) if self.settings.key_env else None
        started = time.monotonic()
        try:
            response = litellm.completion(
                model=request.model,
                messages=[{"role": message.role, "content": message.content} for message in request.messages],
                api_base=self.settings.api_base,
                # The OpenAI client insists on a key even where the server wants none.
                api_key=key or ("none" if self.settings.api_base else None),
                timeout=self.settings.timeout_s,
                max_retries=0,
                drop_params=True,
                **request.params,
            )
        except importlib.import_module("openai").OpenAIError as error:
            raise typed(error, litellm.exceptions, key) from error
        completion = read_completion(response.model_dump(), self.price)
        usage = completion.usage
        if self.price is None:
            usage = replace(usage, cost_usd=response._hidden_params.get("response_cost"))
        return Reply(
            text=completion.text,
            finish=completion.finish,
            usage=usage,
            latency_s=round(time.monotonic() - started, 3),
            model=completion.model or request.model,
            provider="litellm",
        )
