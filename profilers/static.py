"""What compiled kernels are made of, read by the tools inside the Triton wheel: no GPU, no CUDA toolkit, nothing runs.

`cuobjdump --dump-resource-usage kernel.cubin` prints per function `REG:32 STACK:0 SHARED:1024 LOCAL:0 ...`, which is
parsed here; `nvdisasm -c` prints the machine code, which `profilers.sass` counts.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.canonical import Json
from engine.errors import ProfilerError
from profilers.running import loader_problem, run
from profilers.sass import PREFIX, parse_sass
from profilers.seam import Job, KernelSample

USAGE_TOOL, CODE_TOOL = "cuobjdump", "nvdisasm"
USAGE = ("registers", "spill_bytes", "static_shared_bytes")
"""Counters that a cubin's own header gives."""

_FUNCTION = re.compile(r"^\s*Function\s+(\S+?):\s*$")
_FIELD = re.compile(r"\b(REG|STACK|SHARED|LOCAL):(\d+)")


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one compiled function. `spill_bytes`: stack and local memory per thread, where spilled registers go;
    `shared_bytes`: shared memory of fixed size. What Triton asks for at a launch is in no cubin."""

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
        if name and fields.keys() >= {"REG", "STACK", "SHARED", "LOCAL"}:
            spill = fields["STACK"] + fields["LOCAL"]
            found.append(Resources(name, fields["REG"], spill, fields["SHARED"]))
            name = ""
    return tuple(found)


def bundled(tool: str) -> str | None:
    """A tool inside the Triton wheel, None without one; Triton is not imported."""
    spec = importlib.util.find_spec("triton")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "backends" / "nvidia" / "bin" / tool
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    return None


def bundled_cuobjdump() -> str | None:
    return bundled(USAGE_TOOL)


@dataclass(frozen=True, slots=True)
class _Compiled:
    """One compiled file: its machine code and what was noted when it was compiled, by counter."""

    file: str
    image: bytes
    noted: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Static:
    """Reads a job's compiled kernels: `Job.cubins`, else the cubins in its folder, at most `max_launches` of them.

    `path`: folder of cuobjdump and nvdisasm, or either of them; those of the Triton wheel where it names none.
    Counters: registers, spill_bytes, static_shared_bytes, shared_bytes (from an entry of the compile cache only) and
    sass_* of `profilers.sass`. A sample is of one compiled function, not of a launch, and has no duration."""

    path: str
    timeout_s: float
    max_launches: int
    launcher: tuple[str, ...] = ()
    """Command put in front, such as one that confines the tools."""
    name: str = "static"

    def available(self) -> str | None:
        missing = [tool for tool in (USAGE_TOOL, CODE_TOOL) if self._tool(tool) is None]
        where = f"neither at {self.path!r} nor inside the Triton package"
        return f"{' and '.join(missing)}: {where}" if missing else None

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]:
        """The wanted counters of each compiled function that the job names, all where it names none."""
        deadline = time.monotonic() + self.timeout_s
        paths = [Path(name) for name in job.cubins] or sorted(Path(job.cwd).glob("*.cubin"))
        if not paths:
            raise ProfilerError("no compiled kernel to read: the job names none and its folder holds none")
        samples: list[KernelSample] = []
        for path in paths[: self.max_launches]:
            functions = self._read(_compiled(path), job, counters, deadline)
            for name, values in functions.items():
                given = {counter: values[counter] for counter in counters if counter in values}
                if not job.kernels or name in job.kernels:
                    samples.append(KernelSample(name, None, given, workload=job.workload))
        if not samples:
            raise ProfilerError(f"no compiled kernel is one of {', '.join(job.kernels)}")
        return tuple(samples)

    def _tool(self, tool: str) -> str | None:
        beside = Path(self.path, tool) if Path(self.path).is_dir() else Path(self.path).with_name(tool)
        return (shutil.which(str(beside)) if self.path else None) or bundled(tool)

    def _read(
        self, compiled: _Compiled, job: Job, counters: Sequence[str], deadline: float
    ) -> Mapping[str, Mapping[str, float]]:
        """Counters by function, of those groups that something is wanted of."""
        with tempfile.TemporaryDirectory(dir=job.cwd, prefix="static-") as folder:
            image = Path(folder, "kernel.cubin")
            image.write_bytes(compiled.image)
            usage = self._run(USAGE_TOOL, ("--dump-resource-usage",), image, compiled, job, deadline)
            found = {
                resources.kernel: {**_values(resources), **compiled.noted} for resources in parse_resource_usage(usage)
            }
            if not found:
                raise ProfilerError(f"{USAGE_TOOL} found no function in {compiled.file}")
            if any(counter.startswith(PREFIX) for counter in counters):
                code = parse_sass(self._run(CODE_TOOL, ("-c",), image, compiled, job, deadline))
                found = {name: {**values, **code[name]} if name in code else values for name, values in found.items()}
        return found

    def _run(
        self, tool: str, options: Sequence[str], image: Path, compiled: _Compiled, job: Job, deadline: float
    ) -> str:
        path, output = self._tool(tool), image.with_suffix(".txt")
        if path is None:
            raise ProfilerError(self.available() or f"{tool} not found")
        left = max(0.0, deadline - time.monotonic())
        status = run((*self.launcher, path, *options, str(image)), job, left, output)
        text = output.read_text(errors="replace")
        if status != 0:
            said = loader_problem(text, status) or " ".join(text.split())[:200]
            raise ProfilerError(f"{tool} failed on {compiled.file}: {said}")
        return text


def _values(resources: Resources) -> Mapping[str, float]:
    values = (resources.registers, resources.spill_bytes, resources.shared_bytes)
    return dict(zip(USAGE, map(float, values), strict=True))


def _compiled(path: Path) -> _Compiled:
    """A cubin, or the machine code in an entry of the compile cache with what it notes of shared memory."""
    try:
        if path.suffix != ".json":
            return _Compiled(path.name, path.read_bytes(), {})
        entry: Json = json.loads(path.read_text(encoding="utf-8"))
        shared = float(entry["facts"]["shared_bytes"])
        return _Compiled(path.name, base64.b64decode(entry["cubin"], validate=True), {"shared_bytes": shared})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProfilerError(f"{path.name} is no compiled kernel: {error!r}") from error
