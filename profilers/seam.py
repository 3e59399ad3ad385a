"""The profiler seam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.records import Trace


@dataclass(frozen=True, slots=True)
class Job:
    """What to profile: a command that makes one warm call of the operator, the kernels that are the candidate's own,
    its launch record where there is one, and an environment for the command."""

    command: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str]
    kernels: tuple[str, ...]
    trace: Trace | None


@dataclass(frozen=True, slots=True)
class KernelSample:
    """Counters of one launch, under the tool's own names; durations in microseconds. A counter that the tool could
    not give is absent."""

    kernel: str
    duration_us: float | None
    counters: Mapping[str, float]


class Profiler(Protocol):
    """One tool. `available` says in a line why it cannot be used, or None; `collect` raises ProfilerError."""

    name: str

    def available(self) -> str | None: ...

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]: ...
