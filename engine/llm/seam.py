"""The model seam."""

from __future__ import annotations

from typing import Protocol

from engine.records import Reply, Request


class Llm(Protocol):
    """Answers requests. `check` refuses a missing key, server or folder (MissingError) before anything is spent;
    `complete` raises LlmRetryable, LlmRefused, AwaitingReply or LlmError."""

    def check(self) -> None: ...

    def complete(self, request: Request) -> Reply: ...
