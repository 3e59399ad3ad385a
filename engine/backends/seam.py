"""The back-end seam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine.confirmation import Confirmation
from engine.records import Device, Judged, Measurement, MetricValue, Operator, Verdict


class Backend(Protocol):
    """One device and the processes that work on it. Candidate failures are data; EngineError means ours broke.

    `device` identifies it in step keys. A back-end is a context manager: leaving it ends its processes.
    """

    device: Device

    def judge(self, operator: Operator, source: str) -> Verdict:
        """Trace, compile and check one candidate against the fp64 reference."""
        ...

    def measure(self, operator: Operator, candidate: Judged | None, incumbent: Judged | None) -> Measurement:
        """Time a correct candidate paired with the baselines and, where given, the incumbent; without a candidate, the
        baselines and the floor alone. Never judges again: the launch records come with the candidates."""
        ...

    def confirm(self, operator: Operator, winner: Judged) -> Confirmation:
        """The last look at the kernel that is to be reported: judged on other seeds at other shapes; where there is a
        device also timed in fresh processes."""
        ...

    def profile(self, operator: Operator, candidate: Judged | None, metrics: Sequence[str]) -> tuple[MetricValue, ...]:
        """The named canonical metrics of a correct candidate (None: of the eager reference), one value each; a
        metric that no profiler of the ladder can give comes back with value None and a note."""
        ...
