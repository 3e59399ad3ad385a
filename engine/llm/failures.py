"""litellm's exceptions as ours: what may be tried again, and after how long."""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import LlmError, LlmRefused, LlmRetryable

MESSAGE_CHARS = 600
CODES = {"insufficient_quota": "quota", "content_policy_violation": "content_policy"}
"""Codes in the body that litellm gives no class of their own."""
REFUSED = (
    ("ContextWindowExceededError", "context_window"),
    ("ContentPolicyViolationError", "content_policy"),
    ("AuthenticationError", "auth"),
    ("PermissionDeniedError", "auth"),
    ("NotFoundError", "model"),
    ("LiteLLMUnknownProvider", "model"),
    ("BadRequestError", "request"),
    ("UnprocessableEntityError", "request"),
)
RETRYABLE = (
    ("RateLimitError", "rate_limit"),
    ("Timeout", "timeout"),
    ("APIConnectionError", "connection"),
)
"""litellm's exception classes by kind, subclasses first; what is in neither table is judged by its status."""


def typed(error: Any, classes: Any, key: str | None) -> LlmError:
    """Our error for one of litellm's; the key never appears in the message."""
    text = str(error).strip() if not key else str(error).strip().replace(key, "***")
    message = text[:MESSAGE_CHARS]
    body = getattr(error, "body", None)
    code = body["code"] if isinstance(body, dict) and "code" in body else None
    if code in CODES:
        return LlmRefused(message, kind=CODES[code])
    for name, kind in REFUSED:
        if isinstance(error, getattr(classes, name)):
            return LlmRefused(message, kind=kind)
    after_s = retry_after_s(_headers(error), time.time())
    for name, kind in RETRYABLE:
        if isinstance(error, getattr(classes, name)):
            return LlmRetryable(message, kind=kind, retry_after_s=after_s)
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and status < 500:
        return LlmRefused(message, kind="auth" if status in (401, 403) else "request")
    # litellm reports a lost connection as an internal error with status 500; only its causes tell.
    lost = any(type(cause).__name__ == "APIConnectionError" for cause in _causes(error))
    return LlmRetryable(message, kind="connection" if lost else "server", retry_after_s=after_s)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds asked for by a Retry-After header, which holds seconds or an HTTP date; None without a readable one."""
    found = {name.lower(): value for name, value in headers.items()}
    if "retry-after" not in found:
        return None
    text = found["retry-after"]
    with contextlib.suppress(ValueError):
        return max(0.0, float(text))
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    return None


def _headers(error: Any) -> Mapping[str, str]:
    # `response` is sometimes one that litellm made up, without headers.
    return dict(getattr(error, "litellm_response_headers", None) or {})


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__ or error.__context__
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
