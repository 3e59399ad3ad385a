"""Records of the last look at a task's best kernel, like those of `engine.records`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.records import Measurement, Status, Verdict


@dataclass(frozen=True, slots=True)
class SanitizerResult:
    """What one tool of compute-sanitizer said of one call from a plan."""

    tool: str
    """memcheck, racecheck or initcheck."""
    errors: int | None
    """None: it came to no end, `note` says why."""
    note: str = ""
    """The first error, with the kernel and the kind of access."""


@dataclass(frozen=True, slots=True)
class DropResult:
    """Whether outputs change when the launches of one kernel are left out of a call."""

    kernel: str
    effect: bool


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The last look at a task's best kernel. `verdict`: on new seeds, at shape variants that it was not judged at."""

    verdict: Verdict
    variants: Mapping[str, Mapping[str, int]]
    """The shape variants drawn, by name; the full size, judged too on a device, is not among them."""
    drops: tuple[DropResult, ...] = ()
    sanitizers: tuple[SanitizerResult, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    """Times in fresh processes, in order; none on a back-end that estimates, or of a kernel that is refused."""

    @property
    def refused(self) -> bool:
        return self.verdict.status in (Status.REJECTED, Status.FAILED)

    @property
    def confirmed(self) -> bool:
        return self.verdict.status is Status.CORRECT

    @property
    def gpu_s(self) -> float:
        """Seconds for which verdict and measurements held a GPU."""
        return self.verdict.gpu_s + sum(measured.gpu_s for measured in self.measurements)
