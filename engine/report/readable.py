"""The edge where journals are read: another program may have written one, or a hand changed it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jinja2

from engine.errors import StoreError

_FORM = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, jinja2.UndefinedError)
"""What a value of another type than docs/journal.md declares ends in."""


@contextmanager
def readable(journal: Path) -> Iterator[None]:
    """A StoreError of one line in the place of what a journal of another form ends in."""
    try:
        yield
    except _FORM as error:
        message = f"{journal}: a value of another form than docs/journal.md declares: {type(error).__name__}: {error}"
        raise StoreError(message, hint="move the run's folder away; if the engine wrote it, report it") from error
