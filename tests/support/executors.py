"""Executors on the CPU: one fork server for all tests that replay plans, started once and ended with the test run."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.judging.children import ForkServerClient
from engine.judging.executors import Executor, ExecutorPool, Seat
from engine.settings import LimitSettings

CPU = Seat("cpu")
LIMITS = LimitSettings(10.0, 60.0, 2.0, 256, 64)
TIMEOUT_S = 60.0


@functools.cache
def scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="executor-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def server() -> ForkServerClient:
    # The interpreter's mode spares the server its warm-up of the compiler.
    started = ForkServerClient({"TRITON_INTERPRET": "1"}, scratch() / "server.log")
    atexit.register(started.close)
    return started


@contextmanager
def pool(seat: Seat = CPU, *, standby: int = 1) -> Iterator[ExecutorPool]:
    opened = ExecutorPool(server(), seat, LIMITS, scratch(), scratch() / "lock", standby=standby)
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def executor() -> Iterator[Executor]:
    with pool() as executors:
        taken = executors.take()
        try:
            yield taken
        finally:
            executors.give_back(taken, intact=False)


def pid_of(taken: Executor) -> int:
    return taken._child.pid


def is_gone(pid: int) -> bool:
    """Whether no such process is left, not even one that nobody has waited for."""
    return not Path(f"/proc/{pid}").exists()


def children() -> set[int]:
    """Processes that the fork server has now."""
    parent = server().process.pid
    listing = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii")
    return set(map(int, listing.split()))


def folders() -> set[str]:
    """Private folders of executors that are left."""
    return {path.name for path in scratch().iterdir() if path.is_dir()}
