"""NVIDIA Nsight Compute: hardware counters of the candidate's own kernels, one warm call, never as another user.

Counters come back in base units (ns, byte, byte/second, %), whatever unit the tool printed.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import ProfilerError
from profilers.ncu_csv import DURATION, parse
from profilers.running import loader_problem, run, written
from profilers.sampling import function_name, weighed, window
from profilers.seam import Job, KernelSample

__all__ = ["DURATION", "Ncu", "parse"]

MAX_LOG_BYTES = 32 << 20
RUNS = 3
"""Of the tool for one profile: more than one where the first launches of a long call miss a kernel."""

REFUSED = "ncu may not read the GPU's performance counters"
_PERMISSION_HINT = (
    "hardware counters are reserved for administrators here (NVreg_RestrictProfilingToAdminUsers=1); ask for access: "
    "https://developer.nvidia.com/ERR_NVGPUCTRPERM; metrics fall back to the next profiler meanwhile"
)
_DRIVER_PARAMETERS = Path("/proc/driver/nvidia/params")


@dataclass(frozen=True, slots=True)
class Ncu:
    """Runs `path` (an executable, or a name on PATH) for at most `timeout_s` over at most `max_launches` launches."""

    path: str
    timeout_s: float
    max_launches: int
    launcher: tuple[str, ...] = ()
    """Command put in front, such as one that confines what it starts."""
    name: str = "ncu"

    def available(self) -> str | None:
        """Whether the tool is there and the driver would let this user read counters; runs nothing."""
        if shutil.which(self.path) is None:
            return f"{self.path} is not an executable on PATH"
        if os.geteuid() != 0 and _counters_for_administrators_only(_DRIVER_PARAMETERS):
            return "the driver reserves hardware counters for administrators"
        return None

    def command(self, job: Job, counters: Sequence[str], log: str) -> tuple[str, ...]:
        """The command line: the launches of the job's kernels inside the range that it marks, each replayed once for
        every pass that the wanted counters need.

        Clocks are left as they are. Caches are emptied before each pass where the call was timed cold, else left."""
        functions = dict.fromkeys(map(function_name, job.kernels))
        names = "|".join(map(re.escape, functions))
        chosen = ("--kernel-name-base", "function", "--kernel-name", f"regex:^({names})$") if names else ()
        wanted = ",".join(dict.fromkeys((*counters, DURATION)))
        options = ("--csv", "--page", "raw", "--print-units", "base", "--metrics", wanted)
        skip, count = self._window(job)
        skipped = ("--launch-skip", str(skip)) if skip else ()
        bounds = ("--profile-from-start", "off", *skipped, "--launch-count", str(count))
        caches = "all" if job.workload is not None and job.workload.cold else "none"
        control = ("--clock-control", "none", "--cache-control", caches, "--replay-mode", "kernel")
        scope = ("--target-processes", "all", "--log-file", log)
        return (*self.launcher, self.path, *options, *chosen, *bounds, *control, *scope, *job.command)

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]:
        """The wanted counters and the duration of each measured launch, in launch order; ProfilerError when the tool
        gives none. A call of more than `max_launches` is sampled: see `KernelSample.launches`."""
        deadline = time.monotonic() + self.timeout_s
        found = list(self._once(job, counters, self.timeout_s))
        for _ in range(RUNS - 1):
            missed = _missed(job, found) if len(found) >= self.max_launches else ()
            left = deadline - time.monotonic()
            if not missed or left <= 0:
                break
            try:
                found += self._once(replace(job, kernels=missed, order=()), counters, left)
            except ProfilerError:
                # What the first run gave stands; the kernels that it missed stay without counters.
                break
        return tuple(replace(sample, workload=job.workload) for sample in weighed(found, job.trace))

    def _window(self, job: Job) -> tuple[int, int]:
        """Launches to skip and to measure, of those that the name filter lets pass."""
        order = [name for name in job.order if not job.kernels or name in job.kernels]
        return window(order, self.max_launches) if len(order) > self.max_launches else (0, self.max_launches)

    def _once(self, job: Job, counters: Sequence[str], timeout_s: float) -> tuple[KernelSample, ...]:
        with tempfile.TemporaryDirectory(dir=job.cwd, prefix="ncu-") as folder:
            log, output = Path(folder, "ncu.csv"), Path(folder, "output")
            status = run(self.command(job, counters, str(log)), job, timeout_s, output)
            # A candidate may write where the tool writes.
            text, printed = written(log, MAX_LOG_BYTES) or "", written(output, MAX_LOG_BYTES) or ""
        samples = parse(text, counters)
        if status != 0 or not samples:
            raise _problem(text + printed, status, job.kernels, len(samples))
        known = {function_name(kernel): kernel for kernel in job.kernels}
        return tuple(replace(sample, kernel=_own(sample.kernel, known)) for sample in samples)


def _own(printed: str, known: Mapping[str, str]) -> str:
    """The job's name for a kernel that the tool prints with its signature."""
    return known.get(function_name(printed)) or printed


def _missed(job: Job, samples: Sequence[KernelSample]) -> tuple[str, ...]:
    launched = {launch.kernel for launch in job.trace.launches} if job.trace is not None else set()
    seen = {sample.kernel for sample in samples}
    return tuple(kernel for kernel in job.kernels if kernel in launched - seen)


def _problem(text: str, status: int, kernels: Sequence[str], launches: int) -> ProfilerError:
    if "ERR_NVGPUCTRPERM" in text or "permission to access NVIDIA GPU Performance Counters" in text:
        return ProfilerError(REFUSED, hint=_PERMISSION_HINT)
    unloadable = loader_problem(text, status)
    if unloadable is not None:
        hint = "reinstall Nsight Compute, or set the profiler's path to an installation that runs `--version`"
        return ProfilerError(f"ncu does not start: {unloadable}", hint=hint)
    complaints = [line for line in text.splitlines() if line.startswith(("==ERROR==", "==WARNING=="))]
    said = "; ".join(complaints[-3:]) or " ".join(text.split())[-300:] or "nothing"
    if "No kernels were profiled" in text:
        names = ", ".join(kernels) or "any kernel"
        return ProfilerError(f"ncu saw no launch of {names} in the marked call; it said: {said}")
    if launches:
        return ProfilerError(f"the profiled call failed with status {status} after {launches} launches: {said}")
    return ProfilerError(f"ncu ended with status {status} and no table; it said: {said}")


def _counters_for_administrators_only(parameters: Path) -> bool:
    try:
        return re.search(r"^RmProfilingAdminOnly:\s*1\b", parameters.read_text(), re.MULTILINE) is not None
    except OSError:
        return False
