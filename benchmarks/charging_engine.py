"""The engine with a model that charges for every call it takes, answered or not: `python -m benchmarks.charging_engine
OVERRIDE…` with llm=scripted.

The environment names the meter (CHARGES, a file that gets one line a call the moment the call is taken, like a
provider's bill) and how long a call takes (CALL_S).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import engine.run
from engine.__main__ import main
from engine.llm import open_llm
from engine.llm.recordings import request_hash
from engine.llm.seam import Llm
from engine.records import Reply, Request

CHARGES, CALL_S = "CHARGES", "CALL_S"


class Charging:
    """`inner`, billed: a call that is killed before its reply came has been paid all the same."""

    def __init__(self, inner: Llm, meter: Path, call_s: float) -> None:
        self.inner = inner
        self.meter = meter
        self.call_s = call_s

    def check(self) -> None:
        self.inner.check()

    def complete(self, request: Request) -> Reply:
        reply = self.inner.complete(request)
        line = {"slot": request.slot.path(), "request": request_hash(request), "usd": reply.usage.cost_usd}
        descriptor = os.open(self.meter, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        finally:
            os.close(descriptor)
        time.sleep(self.call_s)
        return reply


def charge() -> None:
    """Put the meter between every run of this process and its model."""
    opened = open_llm
    meter, call_s = Path(os.environ[CHARGES]), float(os.environ[CALL_S])
    # As run.py looks it up.
    setattr(engine.run, "open_llm", lambda *given, **named: Charging(opened(*given, **named), meter, call_s))  # noqa: B010


if __name__ == "__main__":
    charge()
    sys.exit(main())
