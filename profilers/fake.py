"""A profiler that answers from a script: for tests, and for plans that are tried without a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from engine.errors import ProfilerError
from profilers.seam import Job, KernelSample

DURATION = "duration_us"
"""In the script: the kernel's duration, which is no counter."""


class Failure(Enum):
    """What the tool is to fail with; the values are message and hint."""

    ABSENT = ("the tool is not installed", "")
    PERMISSION = ("the tool may not read the device's counters", "ask for access")
    TIMEOUT = ("the tool did not finish in time", "raise the profiler's timeout_s")
    CRASH = ("the profiled call ended with status 139", "")


@dataclass(frozen=True, slots=True)
class Fake:
    """Answers with `script[kernel][counter]` for each of the job's kernels that it has, all of them where the job names
    none. ABSENT shows in `available`, as the tool's absence would; every failure is raised by `collect`."""

    script: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    failure: Failure | None = None
    name: str = "fake"

    def available(self) -> str | None:
        return Failure.ABSENT.value[0] if self.failure is Failure.ABSENT else None

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]:
        if self.failure is not None:
            message, hint = self.failure.value
            raise ProfilerError(message, hint=hint)
        kernels = [kernel for kernel in job.kernels or self.script if kernel in self.script]
        if not kernels:
            raise ProfilerError(f"no launch of {', '.join(job.kernels) or 'any kernel'} in the call")
        return tuple(_sample(kernel, self.script[kernel], counters, job) for kernel in kernels)


def _sample(kernel: str, values: Mapping[str, float], counters: Sequence[str], job: Job) -> KernelSample:
    given = {name: values[name] for name in counters if name in values}
    return KernelSample(kernel, values.get(DURATION), given, workload=job.workload)
