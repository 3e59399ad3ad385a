"""The judge's side of executors: started before they are needed, asked with deadlines, ended when anything is amiss."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.canonical import Json
from engine.errors import EngineError, MissingError
from engine.judging import arena
from engine.judging.children import Child, ChildEnded, ChildTimeout, ForkServerClient, new_scratch
from engine.judging.device_memory import fits, is_scarce, stays
from engine.judging.driver import DriverError
from engine.judging.gpu_state import is_short, lease
from engine.judging.messages import is_memory
from engine.judging.sandbox import Confinement
from engine.settings import LimitSettings

RECYCLE = 16
"""Candidates that one executor serves at most, as long as each left it intact."""

OPEN_S = 60.0
LEAST_ARENA_BYTES = 256 << 20
KEPT_ARENA_BYTES = 4 << 30


class ExecutorFault(EngineError):
    """A command failed. `kind`: timeout, ended (the process died), or the exception's type in the executor."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class NoRoom(ExecutorFault):
    """The device would hold an arena of that size if others left it; nothing of the candidate's has run."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where executors run: a torch device."""

    device: str


class Executor:
    """One executor process. After an ExecutorFault it is of no more use: `broken`."""

    def __init__(self, server: ForkServerClient, confinement: Confinement, seat: Seat) -> None:
        self.seat = seat
        self.uses = 0
        self.broken = False
        self.loaded: set[str] = set()
        self._arena: arena.Arena | None = None
        self._child = Child(server, "execute", confinement)
        try:
            self._child.start(OPEN_S)
            self.ask({"op": "open", "device": seat.device}, OPEN_S)
        except MissingError:
            self.end()
            raise
        except (ChildEnded, ChildTimeout, ExecutorFault) as error:
            output = self._child.output()
            self.end()
            raise ExecutorFault("ended", f"an executor did not start: {error}; {output[-400:]}") from error

    def ask(self, message: Json, timeout_s: float) -> Mapping[str, Json]:
        """One command and its answer; ExecutorFault when there is none."""
        # Until it has answered well: whoever asked may not be who gives it back.
        before, self.broken = self.broken, True
        try:
            answer: Mapping[str, Json] = self._child.ask(message, timeout_s)
        except ChildTimeout as error:
            raise ExecutorFault("timeout", f"no answer within {timeout_s:g} s; the executor was killed") from error
        except ChildEnded as error:
            text = f"the executor ended with status {error.status}: {self._child.output()[-400:]}"
            raise ExecutorFault("ended", text) from error
        if "fault" in answer:
            raise ExecutorFault(str(answer["fault"]["type"]), str(answer["fault"]["message"]))
        self.broken = before
        return answer

    @property
    def waited_s(self) -> float:
        """For its answers, so far."""
        return self._child.waited_s

    def memory(self, size: int, timeout_s: float) -> torch.Tensor:
        """The shared arena, of at least `size` bytes; a larger one takes the place of a smaller."""
        if self._arena is not None and self._arena.bytes.numel() >= size:
            return self._arena.bytes
        self._leave_arena()
        size = max(size, LEAST_ARENA_BYTES)
        try:
            token = str(self.ask({"op": "reserve", "bytes": size}, timeout_s)["token"])
        except ExecutorFault as fault:
            if is_memory(fault) and fits(size):
                raise NoRoom(fault.kind, str(fault)) from fault
            raise
        try:
            self._arena = arena.attach(self.seat.device, size, token)
        except DriverError as error:
            self.broken = True
            if is_memory(error):
                raise NoRoom(type(error).__name__, str(error)) from error
            raise
        return self._arena.bytes

    @property
    def shared_memory(self) -> tuple[str, int]:
        """Handle and bytes of the arena, for a third process to map."""
        if self._arena is None:
            raise EngineError("an executor without an arena has no memory to share")
        return self._arena.token, self._arena.bytes.numel()

    @property
    def arena_bytes(self) -> int:
        return 0 if self._arena is None else self._arena.bytes.numel()

    def slim(self) -> None:
        """Give a large arena back to the device, and what the last plan's operations made."""
        self.ask({"op": "forget"}, OPEN_S)
        if self.arena_bytes > KEPT_ARENA_BYTES:
            self._leave_arena()
            self.memory(LEAST_ARENA_BYTES, OPEN_S)

    def _leave_arena(self) -> None:
        if self._arena is not None:
            closed, self._arena = self._arena, None
            closed.close()

    def leave(self) -> None:
        """Unmap the arena, in a thread that has the device's context; `end` may then be called in any."""
        self._leave_arena()

    def end(self) -> None:
        try:
            self._leave_arena()
        finally:
            self._child.__exit__(None, None, None)


class ExecutorPool:
    """Keeps `standby` executors warm from the first `warm` on, so that a judge whose candidates all fail before they
    reach the device never makes a context. `required`: an executor that lacks a layer of the sandbox is a MissingError.
    Safe to use from several threads."""

    def __init__(
        self,
        server: ForkServerClient,
        seat: Seat,
        limits: LimitSettings,
        scratch: Path,
        lock: Path,
        *,
        standby: int,
        required: bool = False,
    ) -> None:
        self._server, self._seat, self._limits, self._scratch = server, seat, limits, scratch
        self._workers = ThreadPoolExecutor(max_workers=max(1, standby), thread_name_prefix="executor")
        self._waiting: deque[Future[Executor]] = deque()
        self._lock = threading.Lock()
        self._standby, self._device_lock, self._required = standby, lock, required
        self._closed = False

    def warm(self) -> None:
        """Start what is to stand by."""
        with self._lock:
            while not self._closed and len(self._waiting) < self._standby:
                self._waiting.append(self._workers.submit(self._start))

    def take(self) -> Executor:
        """A warm executor, or one that starts now. The caller gives it back. EngineError once the pool is closed."""
        with self._lock:
            if self._closed:
                raise EngineError("an executor was asked of a closed pool: the judge is ending")
            self._drop_failed()
            future = self._waiting.popleft() if self._waiting else self._workers.submit(self._start)
        executor = future.result()
        self.warm()
        return executor

    def give_back(self, executor: Executor, *, intact: bool) -> None:
        """`intact`: no overwritten guard. With that and without a fault it serves again, RECYCLE times at most."""
        executor.uses += 1
        intact = intact and not executor.broken
        if intact and (not self._may_stay_large(executor) or is_scarce() or is_short(self._device_lock)):
            intact = _slimmed(executor)
        if intact and executor.uses < RECYCLE and self._wait(executor):
            return
        if not intact or not self._ended_later(executor):
            executor.end()
        self.warm()

    def make_room(self) -> None:
        """Those that stand by keep no large arena."""
        with self._lock:
            self._drop_failed()
            idle = [future for future in self._waiting if future.done()]
            self._waiting = deque(future for future in self._waiting if future not in idle)
        for executor in (future.result() for future in idle):
            if not (_slimmed(executor) and self._wait(executor)):
                executor.end()

    def _drop_failed(self) -> None:
        """Those that could not start, for want of memory perhaps: now they may."""
        self._waiting = deque(future for future in self._waiting if not future.done() or future.exception() is None)

    def _may_stay_large(self, executor: Executor) -> bool:
        """Whether its arena and those of all that stand by leave others enough of the device."""
        with self._lock:
            idle = [future.result() for future in self._waiting if future.done() and future.exception() is None]
        return stays(executor.arena_bytes + sum(other.arena_bytes for other in idle))

    def _wait(self, executor: Executor) -> bool:
        """It stands by, unless the pool is closed."""
        with self._lock:
            if not self._closed:
                kept: Future[Executor] = Future()
                kept.set_result(executor)
                self._waiting.appendleft(kept)
            return not self._closed

    def _ended_later(self, executor: Executor) -> bool:
        """Whether an idle thread ends it: that takes a tenth of a second, and disturbs whoever is being timed."""

        def end() -> None:
            with lease(self._device_lock, shared=True):
                executor.end()

        if is_scarce() or executor.arena_bytes > KEPT_ARENA_BYTES:
            return False
        try:
            executor.leave()
        except EngineError:
            return False
        with self._lock:
            if not self._closed:
                self._workers.submit(end)
            return not self._closed

    def close(self) -> None:
        with self._lock:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
        for future in waiting:
            if not future.cancel() and future.exception() is None:
                future.result().end()
        self._workers.shutdown()

    def _start(self) -> Executor:
        limits = self._limits
        confinement = Confinement(
            scratch=new_scratch(self._scratch),
            cpu_s=36000,
            memory_bytes=None,
            processes=limits.processes,
            file_bytes=1 << 40,
            gpu=True,
            required=self._required,
        )
        # Making a context disturbs whoever is being timed.
        with lease(self._device_lock, shared=True):
            return Executor(self._server, confinement, self._seat)


def _slimmed(executor: Executor) -> bool:
    """Whether it gave a large arena back and is still of use."""
    try:
        executor.slim()
    except EngineError:
        return False
    return True
