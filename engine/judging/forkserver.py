"""Trusted fork server: torch and Triton imported once, CUDA never initialised, one child per candidate.

`python -m engine.judging.forkserver <socket descriptor> [wrapped]`; `wrapped`: bubblewrap is around it. Messages, one
JSON line each: `{"op": "spawn", "kind": ..., "confinement": {...}, "environment": {...}}` with the child's end of a
socket pair attached, answered by `{"pid": n}`; kinds are `trace`, `run`, `time`, `compile` and `execute`, see CHILDREN.
`{"op": "end", "pid": n}` kills the child's group and what it detached and answers `{"status": n}`: the exit status,
negative for a signal. When the judge ends, however it does, the server kills all that it started, then itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from engine.canonical import Json
from engine.codec import decode
from engine.judging import sandbox
from engine.judging.wire import Channel, ChannelClosed

CHILDREN = {
    "trace": "engine.judging.child_trace",
    "run": "engine.judging.child_run",
    "time": "engine.judging.child_time",
    "compile": "engine.judging.child_compile",
    "execute": "engine.judging.executor",
}
"""Module of each kind; its `main(channel, layers)` serves until the channel closes."""

PRELOAD = (
    "torch",
    "torch.nn.functional",
    "torch.utils.flop_counter",
    "torch._subclasses.fake_tensor",
    "triton",
    "triton.language",
    "triton.language.extra",
    "triton.tools.tensor_descriptor",
    "triton.language.extra.libdevice",
    "triton.compiler",
    *CHILDREN.values(),
)
"""A child cannot read the project's folder, so what it may need later is imported before it is forked."""

WRAPPED = "wrapped"
ORPHANS_S = 5.0
"""For killing what a candidate detached: a process that forks faster than it is killed is left to the next end."""


class ForkServer:
    def __init__(self, end: socket.socket, *, wrapped: bool) -> None:
        self.socket, self.wrapped = end, wrapped
        self.children: set[int] = set()

    def serve(self) -> None:
        """Answer until the judge is gone."""
        channel = Channel(self.socket)
        channel.send({"ready": True})
        buffer = b""
        while True:
            chunk, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 1)
            if not chunk:
                return
            buffer += chunk
            line, newline, rest = buffer.partition(b"\n")
            if not newline:
                continue
            buffer = rest
            channel.send(self._answer(json.loads(line), descriptors))

    def end_all(self) -> None:
        """Kill every child and all that they left behind."""
        for pid in tuple(self.children):
            self._end(pid)
        self._kill_orphans()

    def _answer(self, message: Json, descriptors: list[int]) -> Json:
        if message["op"] == "spawn":
            return {"pid": self._spawn(message, descriptors[0])}
        return {"status": self._end(message["pid"])}

    def _spawn(self, message: Json, descriptor: int) -> int:
        pid = os.fork()
        if pid == 0:
            self._child(message, descriptor)
        os.close(descriptor)
        self.children.add(pid)
        return pid

    def _child(self, message: Json, descriptor: int) -> None:
        status = 1
        try:
            confinement = decode(sandbox.Confinement, message["confinement"], "confinement")
            layers = sandbox.confine(confinement, message["environment"], [descriptor], wrapped=self.wrapped)
            channel = Channel(socket.socket(fileno=descriptor))
            importlib.import_module(CHILDREN[message["kind"]]).main(channel, layers)
            status = 0
        finally:
            # Candidate code must never return into the fork server's own loop, whatever it raised.
            os._exit(status)

    def _end(self, pid: int) -> int:
        status = _reap(pid)
        if status is None:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        else:
            _kill_group(pid)
        self.children.discard(pid)
        self._kill_orphans()
        return os.waitstatus_to_exitcode(status)

    def _kill_orphans(self) -> None:
        """In rounds: the children of one that is killed come to us next."""
        listing = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
        deadline = time.monotonic() + ORPHANS_S
        while orphans := {int(word) for word in listing.read_text().split()} - self.children:
            for orphan in orphans:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(orphan, signal.SIGKILL)
                    os.waitpid(orphan, 0)
            if time.monotonic() > deadline:
                return


def _reap(pid: int) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    return status if done else None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _warm_compiler() -> None:
    """Start LLVM before forking: a second that every tracing child would pay again."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from engine.judging.warm import add_kernel

    if isinstance(add_kernel, triton.runtime.jit.JITFunction):
        source = ASTSource(add_kernel, {"x_ptr": "*fp32", "n": "i32", "BLOCK": "constexpr"}, {(2,): 128})
        triton.compile(source, target=GPUTarget("cuda", 90, 32))


def main() -> None:
    sandbox.adopt_orphans()
    for name in PRELOAD:
        importlib.import_module(name)
    _warm_compiler()
    import torch

    # Threads of a pool do not survive a fork; a child starts its own on first use.
    torch.set_num_threads(1)
    descriptor, *words = sys.argv[1:]
    server = ForkServer(socket.socket(fileno=int(descriptor)), wrapped=WRAPPED in words)
    try:
        with contextlib.suppress(ConnectionError, ChannelClosed):
            # A judge that is killed may reset the connection.
            server.serve()
    finally:
        server.end_all()
    # Without the teardown of torch: whoever closes the server waits for its end.
    os._exit(0)


if __name__ == "__main__":
    main()
