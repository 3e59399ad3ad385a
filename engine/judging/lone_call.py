"""One call of a launch plan in a process without PyTorch, for ncu to watch: `python -m engine.judging.lone_call FILE`,
FILE holding the JSON of a `LoneCall`.

Trusted code. The buffers are copied from an executor's arena, which holds them as they are when the call is timed, into
memory of this process, as a tool that replays kernels saves and restores its own process's memory only. Warm-up calls
come first, then one call between cuProfilerStart and cuProfilerStop.
"""

from __future__ import annotations

import base64
import ctypes
import functools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.codec import decode
from engine.judging.driver import Driver, Function
from engine.judging.images import Image, packed
from engine.judging.plan import Argument

WARM_UP_CALLS = 2
_LIBRARY = "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class LoneLaunch:
    """`image`: key of its kernel; `offsets`: in the arena, of each argument that is a pointer's buffer, else -1."""

    image: str
    grid: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoneCall:
    """The launches of one call in order, and the handle and size of the arena that holds their buffers."""

    token: str
    bytes: int
    images: tuple[Image, ...]
    launches: tuple[LoneLaunch, ...]


class Process:
    """This process's context, memory and kernels for one call."""

    def __init__(self, call: LoneCall) -> None:
        self._library = ctypes.CDLL(_LIBRARY)
        context, device = ctypes.c_void_p(), ctypes.c_int()
        self._made("cuInit", 0)
        self._made("cuDeviceGet", ctypes.byref(device), 0)
        self._made("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._made("cuCtxSetCurrent", context)
        self._driver = Driver()
        self._base = self._copied(call)
        self._kernels = {image.key: (image, self._loaded(image)) for image in call.images}
        self._starts = [self._start(launch) for launch in call.launches]

    def _made(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name}: CUDA error {status}")

    def _copied(self, call: LoneCall) -> int:
        theirs = self._driver.open_handle(bytes.fromhex(call.token))
        mine = self._driver.allocate(call.bytes)
        self._made("cuMemcpyDtoD_v2", ctypes.c_uint64(mine), ctypes.c_uint64(theirs), ctypes.c_size_t(call.bytes))
        self._made("cuCtxSynchronize")
        self._driver.close_handle(theirs)
        return mine

    def _loaded(self, image: Image) -> Function:
        return self._driver.load(
            base64.b64decode(image.image),
            image.symbol,
            threads=image.threads,
            shared_bytes=image.shared_bytes,
            cluster=image.cluster,
            cooperative=image.cooperative,
        )

    def _start(self, launch: LoneLaunch) -> Callable[[], None]:
        image, function = self._kernels[launch.image]
        values = [
            packed(kind, argument, functools.partial(self._address, offset))
            for kind, argument, offset in zip(image.parameters, launch.arguments, launch.offsets, strict=True)
        ]
        size = image.scratch_bytes * math.prod(launch.grid) * math.prod(function.cluster)
        values += [ctypes.c_uint64(self._driver.allocate(size) if size else 0), ctypes.c_uint64(0)]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))

        # The values live as long as this closure, which the launch needs.
        def start(_alive: object = values) -> None:
            self._driver.launch(function, launch.grid, addresses, 0)

        return start

    def _address(self, offset: int, _: int) -> int:
        return self._base + offset

    def call(self) -> None:
        for start in self._starts:
            start()
        self._made("cuCtxSynchronize")

    def marked(self) -> None:
        """One call between the marks that a profiler waits for."""
        self._made("cuProfilerStart")
        self.call()
        self._made("cuProfilerStop")


def main() -> None:
    process = Process(decode(LoneCall, json.loads(Path(sys.argv[1]).read_text()), sys.argv[1]))
    for _ in range(WARM_UP_CALLS):
        process.call()
    process.marked()


if __name__ == "__main__":
    main()
