"""Ids as people type them: whole, or so much of the start that only one is meant."""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.errors import MissingError


def starting(word: str, known: Iterable[str], what: str) -> str | None:
    """The id that `word` is, or the only one that begins with its at least four hex digits; None where there is none.
    MissingError where several do; `what`: of what they are ids, in the plural."""
    ids = set(known)
    if word in ids or not re.fullmatch(r"[0-9a-f]{4,}", word):
        return word if word in ids else None
    found = sorted(name for name in ids if name.startswith(word))
    if len(found) > 1:
        raise MissingError(
            f"{len(found)} {what} begin with '{word}': {', '.join(found[:5])}", hint="give more of the id"
        )
    return found[0] if found else None
