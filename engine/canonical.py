"""Canonical JSON and the content hashes that name everything: configs, requests, candidates, steps."""

from __future__ import annotations

import hashlib
import json
from typing import Any

Json = Any
"""A JSON tree: None, bool, int, float, str, list or dict with str keys."""


def canonical(tree: Json) -> str:
    """One text per JSON value: sorted keys, no spaces, UTF-8; NaN and infinity raise ValueError."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(tree: Json) -> str:
    """sha256 of the canonical JSON, 64 hex characters."""
    return hashlib.sha256(canonical(tree).encode()).hexdigest()


def digest_text(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, 64 hex characters."""
    return hashlib.sha256(text.encode()).hexdigest()


def short(full: str) -> str:
    """The 16-hex prefix used for ids that people read."""
    return full[:16]
