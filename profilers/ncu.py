"""NVIDIA Nsight Compute: hardware counters of the candidate's own kernels, one warm call, never as another user.

Counters come back in base units (ns, byte, byte/second, %), whatever unit the tool printed.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ProfilerError
from profilers.seam import Job, KernelSample

DURATION = "gpu__time_duration.sum"

_PREFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNIT_SCALE = {
    **dict.fromkeys(("ns", "nsecond"), 1.0),
    **dict.fromkeys(("us", "usecond"), 1e3),
    **dict.fromkeys(("ms", "msecond"), 1e6),
    **dict.fromkeys(("s", "second"), 1e9),
    **{f"{prefix}byte{per}": scale for prefix, scale in _PREFIXES.items() for per in ("", "/second", "/s")},
}
"""Factor from a printed unit to the base unit; every other unit is a base unit already."""

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
        """The command line: one replayed pass set for each of the job's kernels inside the range that it marks.

        Clocks and caches are left as they are, so that counters describe the workload that was timed.
        """
        names = "|".join(re.escape(kernel) for kernel in job.kernels)
        chosen = ("--kernel-name-base", "function", "--kernel-name", f"regex:^({names})$") if names else ()
        wanted = ",".join(dict.fromkeys((*counters, DURATION)))
        options = ("--csv", "--page", "raw", "--print-units", "base", "--metrics", wanted)
        bounds = ("--profile-from-start", "off", "--launch-count", str(self.max_launches))
        control = ("--clock-control", "none", "--cache-control", "none", "--replay-mode", "kernel")
        scope = ("--target-processes", "all", "--log-file", log)
        return (*self.launcher, self.path, *options, *chosen, *bounds, *control, *scope, *job.command)

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]:
        """Counters of each launch in launch order; ProfilerError when the tool gives none."""
        with tempfile.TemporaryDirectory(dir=job.cwd, prefix="ncu-") as folder:
            log, output = Path(folder, "ncu.csv"), Path(folder, "output")
            status = self._run(self.command(job, counters, str(log)), job, output)
            text = log.read_text(errors="replace") if log.exists() else ""
            printed = output.read_text(errors="replace")
        samples = parse(text)
        if not samples:
            raise _no_samples(text + printed, status, job.kernels)
        return samples

    def _run(self, command: Sequence[str], job: Job, output: Path) -> int:
        with output.open("wb") as stream:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    cwd=job.cwd,
                    env=dict(job.environment),
                    start_new_session=True,
                )
            except OSError as error:
                raise ProfilerError(f"{self.path} does not start: {error}", hint="set the profiler's path") from error
            try:
                return process.wait(self.timeout_s)
            except subprocess.TimeoutExpired:
                hint = "raise the profiler's timeout_s, lower max_launches, or name fewer metrics in the stage"
                raise ProfilerError(f"{self.path} did not finish within {self.timeout_s:g} s", hint=hint) from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def parse(text: str) -> tuple[KernelSample, ...]:
    """The launches in ncu's CSV, wide (`--page raw`) or long, among whatever else was printed."""
    samples: dict[tuple[str, str], _Launch] = {}
    for row in _rows(text):
        key = (row["Process ID"], row["ID"])
        launch = samples.setdefault(key, _Launch(row["Kernel Name"], {}))
        launch.counters.update(row.values)
    return tuple(launch.sample() for launch in samples.values())


@dataclass(slots=True)
class _Launch:
    kernel: str
    counters: dict[str, float]

    def sample(self) -> KernelSample:
        duration = self.counters[DURATION] / 1e3 if DURATION in self.counters else None
        return KernelSample(self.kernel, duration, self.counters)


@dataclass(frozen=True, slots=True)
class _Row:
    cells: Mapping[str, str]
    values: Mapping[str, float]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


_IDENTITY = frozenset(
    [
        "ID",
        "Process ID",
        "Process Name",
        "Host Name",
        "Kernel Name",
        "Context",
        "Stream",
        "Block Size",
        "Grid Size",
        "Device",
        "CC",
    ]
)


def _rows(text: str) -> Iterator[_Row]:
    """Data rows with their numbers in base units; a header starts a table and a row without ID gives its units."""
    header: list[str] = []
    units: Mapping[str, str] = {}
    for cells in csv.reader(line for line in text.splitlines() if line.startswith('"')):
        if cells[0] == "ID" and "Kernel Name" in cells and "Process ID" in cells:
            header, units = cells, dict.fromkeys(cells, "")
        elif len(cells) == len(header) and cells[0] == "":
            units = dict(zip(header, cells, strict=True))
        elif len(cells) == len(header) and cells[0].isdecimal():
            row = dict(zip(header, cells, strict=True))
            yield _Row(row, _long_value(row) if "Metric Name" in row else _wide_values(row, units))


def _long_value(row: Mapping[str, str]) -> Mapping[str, float]:
    return _numbers([(row["Metric Name"], row["Metric Value"], row["Metric Unit"])])


def _wide_values(row: Mapping[str, str], units: Mapping[str, str]) -> Mapping[str, float]:
    named = ((name, cell, units[name]) for name, cell in row.items() if name not in _IDENTITY)
    return _numbers(named)


def _numbers(cells: Iterable[tuple[str, str, str]]) -> Mapping[str, float]:
    """Cells that are numbers; `n/a`, words and blanks are left out, for they mean that there is no value."""
    found = {}
    for name, cell, unit in cells:
        plain = cell.replace(",", "")
        if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", plain):
            factor = _UNIT_SCALE.get(unit)
            found[name] = float(plain) * (1.0 if factor is None else factor)
    return found


def _no_samples(text: str, status: int, kernels: Sequence[str]) -> ProfilerError:
    if "ERR_NVGPUCTRPERM" in text or "permission to access NVIDIA GPU Performance Counters" in text:
        return ProfilerError("ncu may not read the GPU's performance counters", hint=_PERMISSION_HINT)
    complaints = [line for line in text.splitlines() if line.startswith(("==ERROR==", "==WARNING=="))]
    said = "; ".join(complaints[-3:]) or text.strip()[-300:] or "nothing"
    if "No kernels were profiled" in text:
        names = ", ".join(kernels) or "any kernel"
        return ProfilerError(f"ncu saw no launch of {names} in the marked call; it said: {said}")
    return ProfilerError(f"ncu ended with status {status} and no table; it said: {said}")


def _counters_for_administrators_only(parameters: Path) -> bool:
    try:
        return re.search(r"^RmProfilingAdminOnly:\s*1\b", parameters.read_text(), re.MULTILINE) is not None
    except OSError:
        return False
