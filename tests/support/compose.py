"""Settings for tests, composed from conf/ as the command line composes them."""

from __future__ import annotations

from engine.__main__ import compose as compose_config
from engine.__main__ import decode_config
from engine.canonical import Json
from engine.codec import encode
from engine.settings import Settings


def compose(*overrides: str) -> tuple[Settings, Json]:
    """The settings of these overrides and the resolved tree that names the run."""
    settings = decode_config(compose_config(overrides))
    return settings, encode(settings)
