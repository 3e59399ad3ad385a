"""Running a profiler's command: in a session of its own, with the job's environment only, ended with all it started."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from engine.errors import ProfilerError
from profilers.seam import Job


def run(command: Sequence[str], job: Job, timeout_s: float, output: Path) -> int:
    """The exit status of a command run in the job's folder; stdout and stderr go to `output`.

    Raises ProfilerError when it does not start or does not end in time; its process group is killed in every case."""
    tool = command[0]
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
            raise ProfilerError(f"{tool} does not start: {error}", hint="set the profiler's path") from error
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            hint = "raise the profiler's timeout_s, lower max_launches, or name fewer metrics in the stage"
            raise ProfilerError(f"{tool} did not finish within {timeout_s:g} s", hint=hint) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def loader_problem(printed: str, status: int) -> str | None:
    """What the dynamic loader said when a tool lacks a library or is of another machine; None when it started."""
    for line in printed.splitlines():
        if "error while loading shared libraries" in line or "cannot execute binary file" in line:
            return line.strip()[:300]
    return None if status != 127 else f"exit status 127: {' '.join(printed.split())[-200:] or 'nothing printed'}"


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def written(path: Path, most: int) -> str | None:
    """A regular file of at most `most` bytes; None for anything else, such as a link to another file or a pipe."""
    try:
        with open(path, "rb", opener=_no_link) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            content = file.read(most + 1)
    except OSError:
        return None
    return content.decode(errors="replace") if len(content) <= most else None
