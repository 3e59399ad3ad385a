"""Our own worker processes, spoken to in JSON lines: spawned in a process group, killed as one.

`python -m engine.worker MODULE` runs a worker's module so that its group ends when nobody is left who could speak to
it, in the middle of an answer too."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from engine.canonical import Json
from engine.errors import WorkerError

ALLOWED_ENVIRONMENT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "TRITON_LIBCUDA_PATH",
    "TRITON_PTXAS_PATH",
    "CC",
    "ASCEND_HOME_PATH",
    "ASCEND_TOOLKIT_HOME",
    "ASCEND_OPP_PATH",
    "ASCEND_AICPU_PATH",
    "ASCEND_RT_VISIBLE_DEVICES",
)
"""What a worker inherits: no key, token, proxy or home folder ever does."""


def ascend_python(declared: str) -> str:
    """The interpreter of the environment with torch_npu: as declared, else as ASCEND_PYTHON names it."""
    return declared or os.environ.get("ASCEND_PYTHON") or "python3"


def scrubbed_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The allow-listed part of our environment plus `extra`."""
    kept = {name: os.environ[name] for name in ALLOWED_ENVIRONMENT if name in os.environ}
    return {**kept, **(extra or {})}


class Worker:
    """A process that answers one JSON line per JSON line. Its stderr goes to `log` (a path)."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], cwd: str, log: str) -> None:
        self.name = " ".join(command[:4])
        self.log = log
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=dict(environment),
                cwd=cwd,
                start_new_session=True,
            )
        self._buffer = b""

    def ask(self, message: Json, timeout_s: float) -> Json:
        """Send one message and return the answer; on time-out, death or garbage the group is killed and
        WorkerError raised."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise self._broken("closed its input") from error
        line = self._line(time.monotonic() + timeout_s, timeout_s)
        try:
            return json.loads(line)
        except ValueError as error:
            raise self._broken(f"answered {line[:200]!r}, expected a JSON line") from error

    def _line(self, deadline: float, timeout_s: float) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._broken(f"gave no answer within {timeout_s:g} s")
            if select.select([descriptor], [], [], min(left, 1.0))[0]:
                chunk = os.read(descriptor, 1 << 20)
                if not chunk:
                    raise self._broken(f"ended with status {self.process.wait()}")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _broken(self, what: str) -> WorkerError:
        self.close()
        return WorkerError(f"worker '{self.name}' {what}", hint=f"its log: {self.log}")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End the whole process group."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _end_with_writer() -> None:
    """Kill the own process group once the other end of stdin is closed, as it is when its process was killed."""
    hang_up = select.poll()
    hang_up.register(0, 0)
    hang_up.poll()
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    # A parent-death signal would come at the end of the thread that started this process, and lanes come and go.
    threading.Thread(target=_end_with_writer, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
