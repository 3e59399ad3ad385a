"""The profiler seam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.records import Trace


@dataclass(frozen=True, slots=True)
class Workload:
    """What runs under the profiler, to be compared with what was timed."""

    plan: str
    """Key of the launch plan that is replayed; empty where the candidate's own Python runs."""
    shape: str
    """The shape variant's name, or the inputs' sizes."""
    dtype: str
    precision: str
    """Declared arithmetic of fp32 products: ieee, tf32 or reduced."""
    cold: bool = False
    """The call was timed with an emptied L2, so a tool that replays a launch empties the caches before each pass."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to profile: a command that makes one warm call of the operator, the kernels that are the candidate's own,
    its launch record where there is one, and an environment for the command."""

    command: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str]
    kernels: tuple[str, ...]
    trace: Trace | None
    workload: Workload | None = None
    cubins: tuple[str, ...] = ()
    """Files of the compiled kernels: a cubin, or an entry of the compile cache."""
    order: tuple[str, ...] = ()
    """Kernels of the call's launches in their order, where the plan tells it."""


@dataclass(frozen=True, slots=True)
class KernelSample:
    """Counters of one launch, under the tool's own names; durations in microseconds. A counter that the tool could
    not give is absent.

    `launches` of the call are taken to be like this one: 1 where each was measured, more where they were sampled or
    averaged. A sum over the call adds value x `launches`; a mean over time weights by duration x `launches`."""

    kernel: str
    duration_us: float | None
    counters: Mapping[str, float]
    launches: float = 1.0
    seen: int = 1
    """Launches behind the values: 1, or how many the tool averaged."""
    grid: tuple[int, int, int] | None = None
    workload: Workload | None = None


class Profiler(Protocol):
    """One tool. `available` says in a line why it cannot be used, or None; `collect` raises ProfilerError."""

    name: str

    def available(self) -> str | None: ...

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]: ...


def absent(samples: Sequence[KernelSample], counters: Sequence[str]) -> tuple[str, ...]:
    """The counters that were asked for and that no sample has, each once."""
    given = {name for sample in samples for name in sample.counters}
    return tuple(name for name in dict.fromkeys(counters) if name not in given)


def coverage(samples: Sequence[KernelSample]) -> str:
    """How much of the call was measured, in a line; empty when every launch was."""
    seen = sum(sample.seen for sample in samples)
    launches = round(sum(sample.launches for sample in samples))
    if seen >= launches:
        return ""
    kernels = len({sample.kernel for sample in samples})
    return f"{seen} of {launches} launches were measured, of {kernels} kernel{'s' if kernels > 1 else ''}"
