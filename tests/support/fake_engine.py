"""The engine on the fake device, with a delay a step: `python -m tests.support.fake_engine OVERRIDE…`.

Where the environment names a meter, its model charges for each call (benchmarks/charging_engine.py)."""

from __future__ import annotations

import os
import sys

import engine.run
from benchmarks.charging_engine import CHARGES, charge
from engine.__main__ import main
from tests.support.fake_backend import FakeBackend

DELAY_S = 0.05

if __name__ == "__main__":
    engine.run.open_backend = lambda *_: FakeBackend(delay_s=DELAY_S)
    if CHARGES in os.environ:
        charge()
    sys.exit(main())
