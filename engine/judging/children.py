"""The judge's side of candidates' processes: fork servers, and one `Child` per candidate."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from engine.canonical import Json
from engine.codec import encode
from engine.errors import WorkerError
from engine.judging import sandbox
from engine.judging.wire import Channel, ChannelClosed
from engine.worker import scrubbed_environment

START_S = 120.0
"""Seconds that a fork server may take to import torch and Triton."""


class ChildEnded(Exception):
    """The candidate's process ended or broke its protocol; `status` is negative for a signal."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class ChildTimeout(Exception):
    """The candidate's process gave no answer in time and was killed."""


class ForkServerClient:
    """Starts `engine.judging.forkserver` and asks it for children. Safe to use from several threads."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        ours, theirs = socket.socketpair()
        self.log = log
        self._lock = threading.Lock()
        self._environment = {**scrubbed_environment(), **environment}
        # PYTHONPATH: the server runs from the log's folder, and the package may be a checkout that is not installed.
        package_root = str(Path(__file__).resolve().parents[2])
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "engine.judging.forkserver", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={**self._environment, "PYTHONPATH": package_root, "TRITON_CACHE_DIR": str(log.parent / "warm")},
                cwd=log.parent,
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        self._channel = Channel(ours)
        self._ready = False

    def spawn(self, kind: str, confinement: sandbox.Confinement) -> tuple[int, Channel]:
        """Fork a confined child; its pid and our end of its channel."""
        with self._lock:
            self._await_ready()
            ours, theirs = socket.socketpair()
            message = {
                "op": "spawn",
                "kind": kind,
                "confinement": encode(confinement),
                "environment": self._environment,
            }
            answer = self._ask(message, [theirs.fileno()])
            theirs.close()
        return int(answer["pid"]), Channel(ours)

    def end(self, pid: int) -> int:
        """Kill a child with all it started; its exit status, negative for a signal."""
        with self._lock:
            return int(self._ask({"op": "end", "pid": pid}, [])["status"])

    def close(self) -> None:
        self._channel.close()
        self.process.kill()
        self.process.wait()

    def _await_ready(self) -> None:
        if not self._ready:
            try:
                self._channel.receive(START_S)
            except (TimeoutError, ChannelClosed) as error:
                raise self._broken(error) from error
            self._ready = True

    def _ask(self, message: Json, descriptors: list[int]) -> Json:
        try:
            socket.send_fds(self._channel.socket, [json.dumps(message).encode() + b"\n"], descriptors)
            return self._channel.receive(30.0)
        except (OSError, TimeoutError, ChannelClosed) as error:
            raise self._broken(error) from error

    def _broken(self, error: BaseException) -> WorkerError:
        return WorkerError(f"the fork server does not answer: {error!r}", hint=f"its log: {self.log}")


class Child:
    """One confined candidate process; a context manager that leaves nothing running and no files."""

    def __init__(self, server: ForkServerClient, kind: str, confinement: sandbox.Confinement) -> None:
        self.server = server
        self.scratch = Path(confinement.scratch)
        self.pid, self.channel = server.spawn(kind, confinement)
        self.layers: tuple[str, ...] = ()
        self._status: int | None = None

    def start(self, timeout_s: float = 30.0) -> None:
        """Wait until it is confined; `layers` then names what holds."""
        self.layers = tuple(self._receive(timeout_s)["sandbox"])

    def ask(self, message: Json, timeout_s: float) -> Json:
        """One message and its answer; ChildTimeout and ChildEnded leave the process dead."""
        try:
            self.channel.send(message)
        except ChannelClosed as error:
            raise ChildEnded(self.end(), str(error)) from error
        return self._receive(timeout_s)

    def _receive(self, timeout_s: float) -> Json:
        try:
            return self.channel.receive(timeout_s)
        except TimeoutError as error:
            self.end()
            raise ChildTimeout(f"no answer within {timeout_s:g} s") from error
        except ChannelClosed as error:
            # The exit status is only there a moment after the socket closes.
            time.sleep(0.02)
            raise ChildEnded(self.end(), str(error)) from error

    def end(self) -> int:
        if self._status is None:
            self.channel.close()
            self._status = self.server.end(self.pid)
        return self._status

    def output(self, limit: int = 2000) -> str:
        """The tail of what it printed."""
        log = self.scratch / "output.txt"
        if not log.is_file() or log.is_symlink():
            return ""
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read(limit).decode(errors="replace")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.end()
        shutil.rmtree(self.scratch, ignore_errors=True)


def new_scratch(root: Path) -> str:
    """A private empty folder below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(prefix="c", dir=root)
