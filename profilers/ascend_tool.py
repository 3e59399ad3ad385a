"""Starting Ascend's profilers, in an output folder that they accept.

Never run on an NPU here: command lines are those of the vendor's documents, tested against stand-in scripts.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ProfilerError
from profilers import running
from profilers.seam import Job

TAIL_CHARS = 300


@dataclass(frozen=True, slots=True)
class Chip:
    """What stand-ins are relative to. A core runs one program at a time; `dram_gbps` in 10^9 bytes per second."""

    dram_gbps: float
    vector_cores: int
    cube_cores: int


@contextlib.contextmanager
def output_folder(parent: str) -> Iterator[Path]:
    """A folder for `--output` whose parent the tools accept, removed afterwards."""
    with tempfile.TemporaryDirectory(dir=Path(parent).resolve(), prefix="msprof-") as own:
        folder = Path(own, "output")
        folder.mkdir(mode=0o700)
        reason = refused_parent(folder)
        if reason is not None:
            raise ProfilerError(reason, hint="set the scratch folder to one that only you can write")
        yield folder


def refused_parent(output: Path) -> str | None:
    """Why the tools would refuse this output folder: its parent must be the user's own, not writable by group or
    others, and no symbolic link may lie on the way."""
    parent = output.parent
    status = parent.stat()
    if parent.resolve() != parent:
        return f"{parent}: expected a path without symbolic links"
    if status.st_uid != os.geteuid():
        return f"{parent}: expected a folder of user {os.geteuid()}, found one of user {status.st_uid}"
    if stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{parent}: expected a folder that group and others cannot write, found {stat.filemode(status.st_mode)}"
    return None


def run(command: Sequence[str], job: Job, timeout_s: float) -> str:
    """Run to the end and return the tail of what was printed, the exit status last. The status decides nothing: these
    tools end with 0 without having collected anything. ProfilerError when it does not start or takes too long."""
    output = Path(job.cwd, "msprof-output.txt")
    status = running.run(command, job, timeout_s, output)
    printed = output.read_text(errors="replace")
    problem = running.loader_problem(printed, status)
    if problem is not None:
        raise ProfilerError(f"{command[0]} does not start: {problem}", hint="source CANN's set_env.sh first")
    return f"{' '.join(printed[-TAIL_CHARS:].split()) or 'nothing'} (exit status {status})"


def texts(folder: Path, pattern: str = "*.csv") -> Mapping[str, str]:
    """The files below a folder that match, by relative path, in order of their paths."""
    found = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(errors="replace") for path in found}
