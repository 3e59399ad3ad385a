"""What the controller knows of a GPU without importing torch: identity, driver, SM clock, and the lease on it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import MissingError

LOCKS = Path("/tmp")
"""Not the process's own temporary folder: each judge has one of its own, and all must meet here."""

SHORT_S = 120.0
"""So long a lack of memory is taken to last: some candidates' time, while engines make room for each other."""

_SM_CLOCK = 1
_NAME_BYTES = 96
THROTTLE_REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""nvml.h, nvmlClocksThrottleReason*; idle and application clocks are not throttling."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device as the driver names it; `uuid` in the form GPU-xxxxxxxx-...."""

    ordinal: int
    name: str
    uuid: str
    driver: str


def find_gpu(ordinal: int) -> Gpu:
    """Device number `ordinal` of those visible to this process; MissingError when there is none."""
    hint = "python -m engine.doctor shows what the driver answers; backend=cpu needs no GPU"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise MissingError("no CUDA driver (libcuda.so.1) on this machine", hint=hint) from error
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(_NAME_BYTES)
    identity = (ctypes.c_ubyte * 16)()
    steps: tuple[Callable[[], int], ...] = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), ordinal),
        lambda: driver.cuDeviceGetName(name, _NAME_BYTES, device),
        lambda: driver.cuDeviceGetUuid(ctypes.byref(identity), device),
    )
    for step in steps:
        status = step()
        if status != 0:
            raise MissingError(f"CUDA device {ordinal} does not answer (driver status {status})", hint=hint)
    text = f"GPU-{uuid.UUID(bytes=bytes(identity))}"
    return Gpu(ordinal, name.value.decode(), text, _Nvml().driver_version())


class SmClock:
    """Reads the SM clock of one GPU in MHz; None where NVML does not answer."""

    def __init__(self, gpu_uuid: str) -> None:
        self._nvml = _Nvml()
        self._handle = self._nvml.handle(gpu_uuid)

        self._throttled = 0

    def __call__(self) -> float | None:
        self._throttled |= self._nvml.throttle_reasons(self._handle)
        return self._nvml.clock_mhz(self._handle)

    def throttle(self) -> str:
        """Why the clock was held back at any reading since the last call of this: names of NVML's reasons, or none."""
        seen, self._throttled = self._throttled, 0
        names = [name for bit, name in THROTTLE_REASONS.items() if seen & bit]
        return ", ".join(names) or "none"


class _Nvml:
    def __init__(self) -> None:
        try:
            self._library: ctypes.CDLL | None = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            self._library = None
        if self._library is not None and self._library.nvmlInit_v2() != 0:
            self._library = None

    def driver_version(self) -> str:
        text = ctypes.create_string_buffer(_NAME_BYTES)
        if self._library is None or self._library.nvmlSystemGetDriverVersion(text, _NAME_BYTES) != 0:
            return "unknown"
        return text.value.decode()

    def handle(self, gpu_uuid: str) -> ctypes.c_void_p | None:
        handle = ctypes.c_void_p()
        name = ctypes.c_char_p(gpu_uuid.encode())
        if self._library is None or self._library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) != 0:
            return None
        return handle

    def throttle_reasons(self, handle: ctypes.c_void_p | None) -> int:
        reasons = ctypes.c_ulonglong(0)
        if self._library is None or handle is None:
            return 0
        if self._library.nvmlDeviceGetCurrentClocksThrottleReasons(handle, ctypes.byref(reasons)) != 0:
            return 0
        return reasons.value

    def clock_mhz(self, handle: ctypes.c_void_p | None) -> float | None:
        clock = ctypes.c_uint(0)
        if self._library is None or handle is None:
            return None
        if self._library.nvmlDeviceGetClockInfo(handle, _SM_CLOCK, ctypes.byref(clock)) != 0:
            return None
        return float(clock.value)


def lock_path(gpu_uuid: str) -> Path:
    """The host-wide lock file of a GPU; every process of every engine on this machine agrees on it."""
    return LOCKS / f"kernel-engine-{gpu_uuid}.lock"


def tell_shortage(lock: Path) -> None:
    """Let the other engines on this machine know that the GPU of `lock` had no memory for this process."""
    # Another user's file cannot be written; its owner's last shortage is all that is known then.
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(lock.with_suffix(".short"), flags, 0o644)
        with os.fdopen(descriptor, "w") as file:
            file.write(str(os.getpid()))


def is_short(lock: Path) -> bool:
    """Whether another process lacked memory on that GPU within the last SHORT_S seconds."""
    return _short_since(lock) is not None


def _short_since(lock: Path) -> int | None:
    path = lock.with_suffix(".short")
    try:
        status = path.lstat()
        if not 0 <= time.time() - status.st_mtime < SHORT_S or path.read_bytes()[:20] == str(os.getpid()).encode():
            return None
        return status.st_mtime_ns
    except OSError:
        return None


class Shortages:
    """What others told of memory that they lacked on the GPU of `lock`."""

    def __init__(self, lock: Path) -> None:
        self._lock = lock
        self._seen: int | None = None

    def new(self) -> bool:
        """Whether there was one since this was last asked: what is given up once need not be given up again."""
        before, self._seen = self._seen, _short_since(self._lock)
        return self._seen is not None and self._seen != before


@contextlib.contextmanager
def lease(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the GPU: alone for timing and profiling, or with others for checking. Waits; a dead holder holds nothing."""
    descriptor = open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def share(path: Path, *, large: bool = False) -> Iterator[None]:
    """Hold the GPU with others. Of those that need a large part of its memory one at a time: together they would be no
    faster, for they wait for the same memory, and would lack it."""
    with contextlib.ExitStack() as stack:
        if large:
            stack.enter_context(lease(path.with_suffix(".large")))
        stack.enter_context(lease(path, shared=True))
        yield


def open_lock(path: Path) -> int:
    """Read-only, and created only when missing: in a sticky folder another user's file may be opened no other way."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644)
