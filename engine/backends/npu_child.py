"""Our side of a candidate's process on an NPU: started in torch_npu's environment, killed with all that it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from engine.canonical import Json
from engine.errors import MissingError
from engine.judging.children import Child, ChildEnded, ChildTimeout
from engine.judging.wire import Channel
from engine.settings import AscendSettings, LimitSettings
from engine.worker import scrubbed_environment

PACKAGE = Path(__file__).resolve().parents[2]
"""Folder that holds the engine package."""

WORKER = ("-P", "-m", "engine.backends.npu_worker")
OUTPUT = "output.txt"
HOST = "cpu"
END_S = 0.05


@dataclass(frozen=True, slots=True)
class Npu:
    """Where candidates run. `python`: the resolved interpreter; `scratch`: a folder whose content is ours."""

    python: str
    settings: AscendSettings
    limits: LimitSettings
    scratch: Path


def environment(home: Path) -> dict[str, str]:
    """For a process on the NPU: the scrubbed environment, with CANN's own Python packages where CANN is set up, which
    torch_npu's operator compiler needs."""
    kept = scrubbed_environment({"HOME": str(home), "TMPDIR": str(home)})
    places = [str(PACKAGE)]
    if "ASCEND_TOOLKIT_HOME" in kept:
        places.append(f"{kept['ASCEND_TOOLKIT_HOME']}/python/site-packages")
    if "ASCEND_OPP_PATH" in kept:
        places.append(f"{kept['ASCEND_OPP_PATH']}/built-in/op_impl/ai_core/tbe")
    return {**kept, "PYTHONPATH": os.pathsep.join(places)}


class NpuChild(Child):
    """One process; a context manager that leaves nothing running and no files. It is not confined: no layer of the
    sandbox has been tried with an NPU's device files."""

    def __init__(self, npu: Npu) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="npu-", dir=npu.scratch)).resolve()
        self.layers: tuple[str, ...] = ()
        self._status: int | None = None
        self._device = npu.settings.device
        ours, theirs = socket.socketpair()
        command = [npu.python, *WORKER, "serve", str(theirs.fileno()), npu.settings.device]
        with theirs, (self.scratch / OUTPUT).open("wb") as output:
            self._process = _start(command, environment(self.scratch), self.scratch, output.fileno(), theirs.fileno())
        self.channel = Channel(ours, hostile=True)

    def ready(self, timeout_s: float) -> None:
        """Wait until it has imported torch_npu. MissingError when it does not come to that."""
        try:
            self._receive(time.monotonic() + timeout_s, timeout_s)
        except (ChildEnded, ChildTimeout) as error:
            said = " ".join(self.output(400).split())
            raise MissingError(
                f"the NPU's process did not start: {error}: {said}",
                hint="python -m engine.doctor names what is missing",
            ) from error

    def ask(self, message: Json, timeout_s: float) -> Json:
        """As of any child. The judge expects results where its references are; those on the NPU count."""
        message = {**message, "device": self._device} if message["op"] == "load" else message
        answer = super().ask(message, timeout_s)
        outputs = answer["outputs"] if isinstance(answer, dict) and "outputs" in answer else {}
        for output in outputs.values() if isinstance(outputs, dict) else ():
            _seen(output, self._device.partition(":")[0])
        return answer

    def __enter__(self) -> Self:
        return self

    def end(self) -> int:
        """Kill it with all it started; its exit status, negative for a signal."""
        if self._status is None:
            self.channel.close()
            # One that ended by itself has its own status a moment after its socket closed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._status = self._process.wait()
        return self._status


def _start(
    command: Sequence[str], environ: Mapping[str, str], folder: Path, output: int, channel: int
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environ),
            cwd=folder,
            pass_fds=[channel],
            start_new_session=True,
        )
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise MissingError(f"{command[0]} does not start: {error}", hint="set backends.ascend.ascend.python") from error


def _seen(output: Json, device: str) -> None:
    rows = output["tensors"] if isinstance(output, dict) and "tensors" in output else []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and "device" in row:
            row["device"] = HOST if row["device"] == device else f"{row['device']}, not {device}"
