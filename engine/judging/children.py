"""The judge's side of candidates' processes: fork servers, and one `Child` per candidate."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
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
from engine.errors import MissingError, WorkerError
from engine.judging import sandbox
from engine.judging.bubblewrap import Bubblewrap, bubblewrap, command
from engine.judging.forkserver import WRAPPED
from engine.judging.wire import Channel, ChannelClosed
from engine.worker import scrubbed_environment

START_S = 120.0
"""Seconds that a fork server may take to import torch and Triton."""

END_S = 10.0
"""For a fork server that has been told to end, or killed, to be gone with its children."""

NAMED_SIGNALS = frozenset(signal.Signals)
GENERATION = 1 << 32
"""Above every pid."""


class ChildEnded(Exception):
    """The candidate's process ended or broke its protocol; `status` is negative for a signal."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class ChildTimeout(Exception):
    """The candidate's process gave no answer in time and was killed."""


class ForkServerClient:
    """Starts `engine.judging.forkserver` and asks it for children. Safe to use from several threads.

    `gpu`: its children may use one; a server without goes behind bubblewrap where that works, and its children can
    write below the log's folder only. A server that a candidate killed is replaced when the next child is asked for."""

    def __init__(self, environment: Mapping[str, str], log: Path, *, gpu: bool = True) -> None:
        self.log, self.gpu = log, gpu
        self._lock = threading.Lock()
        self._environment = {**scrubbed_environment(), **environment}
        self._replaced = 0
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        # PYTHONPATH: the server runs from the log's folder, and the package may be a checkout that is not installed.
        package_root = str(Path(__file__).resolve().parents[2])
        words = [sys.executable, "-P", "-m", "engine.judging.forkserver", str(theirs.fileno())]
        folder = self.log.parent.resolve()
        offered = Bubblewrap(None) if self.gpu else bubblewrap()
        if offered.program is not None and offered.works:
            words = [*command(offered.program, folder, self._environment), *words, WRAPPED]
        with self.log.open("ab") as stderr:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={**self._environment, "PYTHONPATH": package_root, "TRITON_CACHE_DIR": str(folder / "warm")},
                cwd=folder,
                pass_fds=[theirs.fileno()],
                # Whoever kills the judge's group leaves the server the moment that it needs to end its children.
                start_new_session=True,
            )
        theirs.close()
        self._channel = Channel(ours)
        self._ready = False

    def spawn(self, kind: str, confinement: sandbox.Confinement) -> tuple[int, Channel]:
        """Fork a confined child; its number, for `end`, and our end of its channel. The number is the pid in the first
        server's namespace, and other than those before once the server was replaced."""
        message = {
            "op": "spawn",
            "kind": kind,
            "confinement": encode(confinement),
            "environment": self._environment,
        }
        with self._lock:
            if self._ready and self.process.poll() is not None:
                self._channel.close()
                self._replaced += 1
                self._start()
            self._await_ready()
            ours, theirs = socket.socketpair()
            try:
                answer = self._ask(message, [theirs.fileno()])
            except WorkerError:
                ours.close()
                raise
            finally:
                theirs.close()
            return self._replaced * GENERATION + int(answer["pid"]), Channel(ours, hostile=True)

    def end(self, number: int) -> int:
        """Kill a child with all it started; its exit status, negative for a signal. Children end with their server."""
        with self._lock:
            replaced, pid = divmod(number, GENERATION)
            if replaced != self._replaced:
                return -signal.SIGKILL
            try:
                return int(self._ask({"op": "end", "pid": pid}, [])["status"])
            except WorkerError:
                if not self._has_ended():
                    raise
                return -signal.SIGKILL

    def close(self) -> None:
        """End it and all its children."""
        self._channel.close()
        if not self._ready or not self._has_ended():
            self.process.kill()
            self.process.wait()

    def _has_ended(self) -> bool:
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            return False
        return True

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

    waited_s = 0.0
    """For its answers, so far."""

    def __init__(self, server: ForkServerClient, kind: str, confinement: sandbox.Confinement) -> None:
        self.server, self.confinement = server, confinement
        self.scratch = Path(confinement.scratch)
        self.pid, self.channel = server.spawn(kind, confinement)
        self.layers: tuple[str, ...] = ()
        self._status: int | None = None

    def start(self, timeout_s: float = 30.0) -> None:
        """Wait until it is confined; `layers` then names what holds. MissingError when that is less than required."""
        self.layers = tuple(self._receive(time.monotonic() + timeout_s, timeout_s)["sandbox"])
        broken = self.confinement.required and not self.confinement.gpu and bubblewrap().broken
        missing = sandbox.missing_layers(self.confinement, self.layers, broken_bubblewrap=broken)
        if missing:
            raise MissingError(
                f"judge.sandbox=required, but {', '.join(missing)} is not available here",
                hint="judge.sandbox=best_effort uses what there is; python -m engine.doctor names the remedies",
            )

    def ask(self, message: Json, timeout_s: float) -> Json:
        """One message and its answer; ChildTimeout and ChildEnded leave the process dead."""
        started = time.monotonic()
        try:
            self.channel.send(message, timeout_s)
            return self._receive(started + timeout_s, timeout_s)
        except TimeoutError as error:
            self.end()
            raise ChildTimeout(f"it did not read within {timeout_s:g} s") from error
        except ChannelClosed as error:
            raise ChildEnded(self.end(), str(error)) from error
        finally:
            self.waited_s += time.monotonic() - started

    def _receive(self, deadline: float, timeout_s: float) -> Json:
        try:
            return self.channel.receive(max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            self.end()
            raise ChildTimeout(f"no answer within {timeout_s:g} s") from error
        except ChannelClosed as error:
            # The exit status is only there a moment after the socket closes.
            time.sleep(0.02)
            raise ChildEnded(self.end(), str(error)) from error

    def end(self) -> int:
        """Kill it with all it started; its exit status: negative for a signal that has a name, above 128 for one that
        has none, as a shell says it."""
        if self._status is None:
            self.channel.close()
            status = self.server.end(self.pid)
            self._status = status if status >= 0 or -status in NAMED_SIGNALS else 128 - status
        return self._status

    def output(self, limit: int = 2000) -> str:
        """The tail of what it printed; empty for what it made unreadable."""
        try:
            descriptor = os.open(self.scratch / "output.txt", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return ""
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return ""
            return os.pread(descriptor, limit, max(0, status.st_size - limit)).decode(errors="replace")
        finally:
            os.close(descriptor)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.end()
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)


def new_scratch(root: Path) -> str:
    """A private empty folder below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    return tempfile.mkdtemp(prefix="c", dir=root)
