"""Hardware counters inside a warm process: CUPTI's range profiler by ctypes, one range a kernel launch.

A group of counters that one pass cannot hold needs several, and the call is made again for each; nothing is saved and
restored, so memory of any size costs nothing. Clocks are as they are, unlike under ncu, which locks them by default.
Struct layouts: cupti_profiler_host.h and cupti_range_profiler.h of CUDA 12.6 and later.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.errors import ProfilerError
from profilers.cupti_host import places, struct_of
from profilers.seam import Job, KernelSample

DURATION = "gpu__time_duration.sum"
"""In nanoseconds; asked for with every group, as aggregation over launches is weighted by it."""

_AUTO_RANGE, _USER_REPLAY = 1, 1
_PRIVILEGES = 35
"""CUPTI_ERROR_INSUFFICIENT_PRIVILEGES."""

_MAX_PASSES = 64
_SIZE, _POINTER = ctypes.c_size_t, ctypes.c_void_p
_NAMES = ctypes.POINTER(ctypes.c_char_p)


_OBJECT = ("object", _POINTER)
_INITIALIZE = struct_of("Initialize")
_CHIP_NAME = struct_of("ChipName", ("device", _SIZE), ("chip", ctypes.c_char_p))
_HOST = struct_of(
    "Host", ("kind", ctypes.c_int), ("chip", ctypes.c_char_p), ("availability", _POINTER), ("object", _POINTER)
)
_HOST_END = struct_of("HostEnd", _OBJECT)
_ADD = struct_of("Add", _OBJECT, ("names", _NAMES), ("count", _SIZE))
_IMAGE_SIZE = struct_of("ImageSize", _OBJECT, ("size", _SIZE))
_IMAGE = struct_of("Image", _OBJECT, ("size", _SIZE), ("image", _POINTER))
_PASSES = struct_of("Passes", ("size", _SIZE), ("image", _POINTER), ("count", _SIZE))
_EVALUATE = struct_of(
    "Evaluate",
    _OBJECT,
    ("data", _POINTER),
    ("size", _SIZE),
    ("range", _SIZE),
    ("names", _NAMES),
    ("count", _SIZE),
    ("values", ctypes.POINTER(ctypes.c_double)),
)
_ENABLE = struct_of("Enable", ("context", _POINTER), _OBJECT)
_RANGE_OBJECT = struct_of("RangeObject", _OBJECT)
_DATA_SIZE = struct_of(
    "DataSize",
    _OBJECT,
    ("names", _NAMES),
    ("count", _SIZE),
    ("ranges", _SIZE),
    ("nodes", ctypes.c_uint32),
    ("size", _SIZE),
)
_DATA = struct_of("Data", _OBJECT, ("size", _SIZE), ("image", _POINTER))
_CONFIG = struct_of(
    "Config",
    _OBJECT,
    ("config_size", _SIZE),
    ("config", _POINTER),
    ("data_size", _SIZE),
    ("data", _POINTER),
    ("range", ctypes.c_int),
    ("replay", ctypes.c_int),
    ("ranges", _SIZE),
    ("nesting", ctypes.c_uint16),
    ("least_nesting", ctypes.c_uint16),
    ("pass_index", _SIZE),
    ("target", ctypes.c_uint16),
)
_STOP = struct_of("Stop", _OBJECT, ("pass_index", _SIZE), ("target", _SIZE), ("all_passes", ctypes.c_uint8))
_DECODE = struct_of("Decode", _OBJECT, ("dropped", _SIZE))
_INFO = struct_of("Info", ("image", _POINTER), ("size", _SIZE), ("count", _SIZE))


@functools.cache
def find_library() -> str | None:
    """libcupti as PyTorch's wheels bring it, else of a CUDA toolkit; torch is not imported."""
    return next((str(path) for path in places()), None)


class NoCounters(ProfilerError):
    """No call on this machine can be counted: the library is absent, or counters are for administrators."""


@dataclass(frozen=True, slots=True)
class Counted:
    """One call counted: its first launches in order, how many launches there were, passes needed, and counters that the
    chip does not have."""

    samples: tuple[KernelSample, ...]
    launches: int
    passes: int
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cupti:
    """Counters of a call in a process that is warm already: `count` asks that process for the wanted ones."""

    count: Callable[[Sequence[str]], Counted]
    name: str = "cupti"

    def available(self) -> str | None:
        """None: whether its process may read counters shows when it is asked."""
        return None

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]:
        """The wanted counters of each counted launch, which stands for its share of all, and what the job says of the
        workload where the process says nothing."""
        wanted = {*counters, DURATION}
        counted = self.count(counters)
        if not counted.samples:
            raise ProfilerError("the call launched no kernel, or none was counted")
        share = counted.launches / len(counted.samples)
        return tuple(
            replace(
                sample,
                launches=share,
                counters={name: value for name, value in sample.counters.items() if name in wanted},
                workload=sample.workload or job.workload,
            )
            for sample in counted.samples
        )


class Library:
    """The library, initialised in this process. ProfilerError says which call failed and why."""

    def __init__(self) -> None:
        path = find_library()
        if path is None:
            raise NoCounters("libcupti is neither beside torch nor in /usr/local/cuda*: install nvidia-cuda-cupti")
        self._library = ctypes.CDLL(path)
        self.call("cuptiProfilerInitialize", _INITIALIZE())

    def call(self, name: str, parameters: Any) -> Any:
        """Make a call; its struct, filled in."""
        fields = type(parameters)._fields_
        last = getattr(type(parameters), fields[-1][0])
        parameters.structSize = last.offset + last.size
        status = getattr(self._library, name)(ctypes.byref(parameters))
        if status != 0:
            text = ctypes.c_char_p()
            self._library.cuptiGetResultString(status, ctypes.byref(text))
            said = (text.value or b"unknown").decode()
            hint = (
                "counters are for administrators: NVreg_RestrictProfilingToAdminUsers=0"
                if status == _PRIVILEGES
                else ""
            )
            kind = NoCounters if status == _PRIVILEGES else ProfilerError
            raise kind(f"{name}: {said} (CUPTI error {status})", hint=hint)
        return parameters


def names_of(counters: Sequence[str]) -> Any:
    return (ctypes.c_char_p * len(counters))(*(name.encode() for name in counters))


@dataclass(frozen=True, slots=True)
class Preparation:
    """What each pass begins with: `before` it is watched, and `launch`, whose `launches` are left out of the result.
    Starting to watch leaves some 30 MB of written lines in L2, which launches after it must push out."""

    before: Callable[[], None]
    launch: Callable[[], None]
    launches: int


class RangeProfiler:
    """Reads `counters` of each launch of a call in the current context, of the first `launches` at most. Counters that
    the chip does not have are in `unknown` and absent from the samples. A context manager, one at a time."""

    def __init__(self, counters: Sequence[str], launches: int) -> None:
        self._cupti, self._launches = Library(), launches
        self._chip = self._cupti.call("cuptiDeviceGetChipName", _CHIP_NAME()).chip
        wanted = list(dict.fromkeys([DURATION, *counters]))
        known, host = wanted, self._host_with(wanted)
        if host is None:
            known = [name for name in wanted if self._has(name)]
            host = self._host_with(known) if known else None
        if host is None:
            raise ProfilerError(f"the chip has none of {', '.join(wanted)}")
        self.unknown = tuple(name for name in wanted if name not in known)
        self.counters = tuple(known)
        self._names, self._host = names_of(known), host
        size = self._cupti.call("cuptiProfilerHostGetConfigImageSize", _IMAGE_SIZE(object=self._host)).size
        self._config = (ctypes.c_uint8 * size)()
        image = ctypes.cast(self._config, _POINTER)
        self._cupti.call("cuptiProfilerHostGetConfigImage", _IMAGE(object=self._host, size=size, image=image))
        self.passes = int(self._cupti.call("cuptiProfilerHostGetNumOfPasses", _PASSES(size=size, image=image)).count)
        self._object: int | None = None

    def _host_with(self, counters: Sequence[str]) -> int | None:
        host = self._cupti.call("cuptiProfilerHostInitialize", _HOST(kind=0, chip=self._chip)).object
        try:
            add = _ADD(object=host, names=names_of(counters), count=len(counters))
            self._cupti.call("cuptiProfilerHostConfigAddMetrics", add)
        except ProfilerError:
            self._host_end(host)
            return None
        return int(host)

    def _has(self, counter: str) -> bool:
        host = self._host_with([counter])
        if host is not None:
            self._host_end(host)
        return host is not None

    def _host_end(self, host: int) -> None:
        self._cupti.call("cuptiProfilerHostDeinitialize", _HOST_END(object=host))

    def __enter__(self) -> RangeProfiler:
        context = _POINTER()
        if ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context)) != 0 or not context.value:
            raise ProfilerError("this thread has no CUDA context to profile")
        self._object = self._cupti.call("cuptiRangeProfilerEnable", _ENABLE(context=context)).object
        size = _DATA_SIZE(
            object=self._object,
            names=self._names,
            count=len(self.counters),
            ranges=self._launches,
            nodes=self._launches,
        )
        self._size = self._cupti.call("cuptiRangeProfilerGetCounterDataSize", size).size
        self._data = (ctypes.c_uint8 * self._size)()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._end()
        except ProfilerError:
            # After a fault of the call itself nothing can be put back, and that fault is what counts.
            if kind is None:
                raise

    def _end(self) -> None:
        self._cupti.call("cuptiRangeProfilerDisable", _RANGE_OBJECT(object=self._object))
        self._host_end(self._host)

    def collect(
        self, call: Callable[[], None], preparation: Preparation | None = None
    ) -> tuple[list[Mapping[str, float]], int]:
        """Counters of each launch in order, and how many launches were left out. `call` makes the call and waits for
        its end; it is made once a pass."""
        prepared = preparation or Preparation(lambda: None, lambda: None, 0)
        data = ctypes.cast(self._data, _POINTER)
        init = _DATA(object=self._object, size=self._size, image=data)
        self._cupti.call("cuptiRangeProfilerCounterDataImageInitialize", init)
        config = _CONFIG(
            object=self._object,
            config_size=len(self._config),
            config=ctypes.cast(self._config, _POINTER),
            data_size=self._size,
            data=data,
            range=_AUTO_RANGE,
            replay=_USER_REPLAY,
            ranges=self._launches,
            nesting=1,
            least_nesting=1,
        )
        self._cupti.call("cuptiRangeProfilerSetConfig", config)
        for _ in range(_MAX_PASSES):
            prepared.before()
            self._cupti.call("cuptiRangeProfilerStart", _RANGE_OBJECT(object=self._object))
            prepared.launch()
            call()
            if self._cupti.call("cuptiRangeProfilerStop", _STOP(object=self._object)).all_passes:
                break
        else:
            raise ProfilerError(f"{len(self.counters)} counters need more than {_MAX_PASSES} passes")
        dropped = int(self._cupti.call("cuptiRangeProfilerDecodeData", _DECODE(object=self._object)).dropped)
        info = self._cupti.call("cuptiRangeProfilerGetCounterDataInfo", _INFO(image=data, size=self._size))
        return [self._values(data, index) for index in range(prepared.launches, info.count)], dropped

    def _values(self, data: Any, index: int) -> Mapping[str, float]:
        values = (ctypes.c_double * len(self.counters))()
        parameters = _EVALUATE(
            object=self._host,
            data=data,
            size=self._size,
            range=index,
            names=self._names,
            count=len(self.counters),
            values=values,
        )
        self._cupti.call("cuptiProfilerHostEvaluateToGpuValues", parameters)
        return {name: value for name, value in zip(self.counters, values, strict=True) if math.isfinite(value)}
