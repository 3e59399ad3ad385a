"""The engine on the fake device, with a delay a step: `python -m tests.support.fake_engine OVERRIDE…`."""

from __future__ import annotations

import sys

import engine.run
from engine.__main__ import main
from tests.support.fake_backend import FakeBackend

DELAY_S = 0.05

if __name__ == "__main__":
    engine.run.open_backend = lambda *_: FakeBackend(delay_s=DELAY_S)
    sys.exit(main())
