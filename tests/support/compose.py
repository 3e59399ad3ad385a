"""Settings for tests, composed from conf/ as the command line composes them."""

from __future__ import annotations

import contextlib

from engine.__main__ import compose as compose_config
from engine.__main__ import decode_config
from engine.canonical import Json
from engine.codec import encode
from engine.settings import Settings
from engine.sweeping import shared_compositions

# For the whole process of the tests: a composition takes a third of a second, and hundreds differ in values alone. The
# name keeps it from being collected, which would end it.
_SHARED = contextlib.ExitStack()
_SHARED.enter_context(shared_compositions())


def compose(*overrides: str) -> tuple[Settings, Json]:
    """The settings of these overrides and the resolved tree that names the run."""
    settings = decode_config(compose_config(overrides))
    return settings, encode(settings)
