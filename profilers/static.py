"""Resource usage of compiled kernels, read by the tools inside the Triton wheel: no GPU, no CUDA toolkit.

`cuobjdump --dump-resource-usage kernel.cubin` prints per function `REG:32 STACK:0 SHARED:1024 LOCAL:0 ...`; `ptxas -v`
prints `0 bytes spill stores, 0 bytes spill loads` and `Used 32 registers`. Both are parsed here.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ProfilerError
from profilers.seam import Job, KernelSample

_FUNCTION = re.compile(r"^\s*Function\s+(\S+?):\s*$")
_FIELD = re.compile(r"\b(REG|STACK|SHARED|LOCAL):(\d+)")
_PTXAS_FUNCTION = re.compile(r"Compiling entry function '([^']+)'")
_PTXAS_SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_PTXAS_REGISTERS = re.compile(r"Used (\d+) registers")
_PTXAS_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one compiled function. `spill_bytes`: stack and local memory per thread, where spilled registers go."""

    kernel: str
    registers: int
    spill_bytes: int
    shared_bytes: int


def parse_resource_usage(text: str) -> tuple[Resources, ...]:
    """The functions of `cuobjdump --dump-resource-usage`, in order."""
    found: list[Resources] = []
    name = ""
    for line in text.splitlines():
        heading = _FUNCTION.match(line)
        if heading:
            name = heading.group(1)
            continue
        fields = {key: int(value) for key, value in _FIELD.findall(line)}
        if name and "REG" in fields:
            spill = fields["STACK"] + fields["LOCAL"]
            found.append(Resources(name, fields["REG"], spill, fields["SHARED"]))
            name = ""
    return tuple(found)


def parse_ptxas(text: str) -> tuple[Resources, ...]:
    """The entry functions of `ptxas -v`, in order; spills are the bytes of spill stores."""
    found: list[Resources] = []
    name, spill = "", 0
    for line in text.splitlines():
        heading = _PTXAS_FUNCTION.search(line)
        if heading:
            name, spill = heading.group(1), 0
        spilled = _PTXAS_SPILL.search(line)
        if spilled:
            spill = int(spilled.group(2))
        used = _PTXAS_REGISTERS.search(line)
        if used and name:
            shared = _PTXAS_SHARED.search(line)
            found.append(Resources(name, int(used.group(1)), spill, int(shared.group(1)) if shared else 0))
            name = ""
    return tuple(found)


def bundled_cuobjdump() -> str | None:
    """The tool inside the Triton wheel, None without one; Triton is not imported."""
    spec = importlib.util.find_spec("triton")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        tool = Path(folder) / "backends" / "nvidia" / "bin" / "cuobjdump"
        if tool.is_file() and os.access(tool, os.X_OK):
            return str(tool)
    return None


@dataclass(frozen=True, slots=True)
class Static:
    """Reads the cubins of a job's working folder. `path`: executable, the bundled one when it is not on PATH."""

    path: str
    timeout_s: float
    max_launches: int
    name: str = "static"

    def available(self) -> str | None:
        return None if self._tool() else f"{self.path} is neither on PATH nor inside the Triton package"

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]:
        tool = self._tool()
        if tool is None:
            raise ProfilerError(f"{self.path} not found")
        samples: list[KernelSample] = []
        for cubin in sorted(Path(job.cwd).glob("*.cubin"))[: self.max_launches]:
            samples.extend(self._read(tool, cubin, counters))
        return tuple(samples)

    def _tool(self) -> str | None:
        return shutil.which(self.path) or bundled_cuobjdump()

    def _read(self, tool: str, cubin: Path, counters: Sequence[str]) -> list[KernelSample]:
        command = [tool, "--dump-resource-usage", str(cubin)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise ProfilerError(f"{tool} gave no answer within {self.timeout_s:g} s") from error
        if done.returncode != 0:
            raise ProfilerError(f"{tool} failed on {cubin.name}: {done.stderr.strip()[:200]}")
        return [_sample(usage, counters) for usage in parse_resource_usage(done.stdout)]


def _sample(usage: Resources, counters: Sequence[str]) -> KernelSample:
    values = {
        "registers": float(usage.registers),
        "spill_bytes": float(usage.spill_bytes),
        "shared_bytes": float(usage.shared_bytes),
    }
    return KernelSample(usage.kernel, None, {name: values[name] for name in counters if name in values})
