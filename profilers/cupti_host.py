"""What counters a chip has, asked of libcupti's profiler host API by ctypes: no GPU, no driver, nothing is profiled.

Struct layouts: cupti_profiler_host.h of CUDA 12.6 and later. Of the wheels nvidia-cuda-cupti, 13.0 and 13.1 answer
without a driver; 13.2 crashes and 13.3 to 13.5 want libcuda.so.1 first.
"""

from __future__ import annotations

import ctypes
import difflib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.errors import ProfilerError

INSTALL = "pip install 'nvidia-cuda-cupti>=13.0,<13.2' (Linux on x86_64 or ARM; it needs no GPU)"

HOST_LIBRARY = "libnvperf_host.so"
PROBE_S = 60.0
_PROBE = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
version = ctypes.c_uint32()
ctypes.CDLL(sys.argv[2]).cuptiGetVersion(ctypes.byref(version))
sys.exit(version.value == 0)
"""

_INVALID_METRIC = (1, 17)
"""CUPTI_ERROR_INVALID_PARAMETER and INVALID_METRIC_NAME: how versions refuse a counter that the chip does not have."""

COUNTER, RATIO, THROUGHPUT = 0, 1, 2

_SIZE, _POINTER, _TEXT = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
_TEXTS = ctypes.POINTER(_TEXT)


def struct_of(name: str, *fields: tuple[str, Any]) -> type[ctypes.Structure]:
    """Every parameter struct of this API starts with its own size and a reserved pointer."""
    return type(name, (ctypes.Structure,), {"_fields_": [("structSize", _SIZE), ("reserved", _POINTER), *fields]})


_OBJECT = ("object", _POINTER)
_INITIALIZE = struct_of("Initialize", ("kind", ctypes.c_int), ("chip", _TEXT), ("availability", _POINTER), _OBJECT)
_DEINITIALIZE = struct_of("Deinitialize", _OBJECT)
_CHIPS = struct_of("Chips", ("count", _SIZE), ("names", _TEXTS))
_BASE = struct_of("BaseMetrics", _OBJECT, ("type", ctypes.c_int), ("names", _TEXTS), ("count", _SIZE))
_SUB = struct_of("SubMetrics", _OBJECT, ("type", ctypes.c_int), ("name", _TEXT), ("count", _SIZE), ("names", _TEXTS))
_ADD = struct_of("AddMetrics", _OBJECT, ("names", _TEXTS), ("count", _SIZE))

RENAMED: Mapping[str, tuple[str, ...]] = {
    "memory_dependency": ("long_scoreboard",),
    "memory_throttle": ("lg_throttle",),
    "exec_dependency": ("wait",),
    "pipe_busy": ("math_pipe_throttle",),
    "per_issue_active": ("per_warp_active",),
    "pipe_fp32": ("pipe_fma",),
    "pipe_int": ("pipe_alu",),
    "smsp__inst_executed_op": ("smsp__sass_inst_executed_op",),
    "dram__bytes_read": ("dram__bytes_op_read",),
    "dram__bytes_write": ("dram__bytes_op_write",),
    "dram__bytes_op_read": ("dram__bytes_read",),
    "dram__bytes_op_write": ("dram__bytes_write",),
}
"""Words of older tools, and of names that are copied around, with what the counter is called now. A suggestion made by
one of them means the same; one by spelling alone need not."""


def places() -> Iterator[Path]:
    """Each libcupti of Python packages, then of toolkits, newest first. It looks where they are put and nowhere else:
    going through a whole toolkit costs a profile as much as its counters do."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        yield from _newest(Path(folder), "*/lib")
    for inside in ("lib64", "targets/*/lib", "extras/CUPTI/lib64"):
        yield from _newest(Path("/usr/local"), f"cuda*/{inside}")


def _newest(root: Path, folders: str) -> list[Path]:
    return sorted(root.glob(f"{folders}/libcupti.so.1[0-9]"), key=_version, reverse=True)


def find_libraries() -> tuple[Path, ...]:
    """Those of `places` that lie with libnvperf_host beside them."""
    return tuple(path for path in places() if (path.parent / HOST_LIBRARY).is_file())


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", str(path)))


class Host:
    """The host side of one libcupti; ProfilerError says why there is none that answers. `path`: the library, looked for
    where it is None."""

    def __init__(self, path: Path | None = None) -> None:
        places = find_libraries() if path is None else (path,)
        if not places:
            raise ProfilerError("libcupti is neither in a Python package nor in /usr/local/cuda*", hint=INSTALL)
        refused: list[str] = []
        for place in places:
            try:
                self._open(place)
                return
            except (OSError, ProfilerError) as error:
                refused.append(f"{place}: {error}")
        raise ProfilerError(f"no libcupti here answers without a GPU: {'; '.join(refused)}", hint=INSTALL)

    def _open(self, path: Path) -> None:
        if not _has_driver() and not _answers_alone(path):
            raise ProfilerError("wants the driver's libcuda.so.1")
        # libcupti looks for this library by name alone, and finds it once it is loaded.
        ctypes.CDLL(str(path.parent / HOST_LIBRARY), ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(path))
        version = ctypes.c_uint32()
        self._library.cuptiGetVersion(ctypes.byref(version))
        self.version, self.path = version.value, path
        self.chips = self._names(self.call("cuptiProfilerHostGetSupportedChips", _CHIPS()))

    def call(self, name: str, parameters: Any) -> Any:
        """Make a call; its struct, filled in."""
        status = self.status(name, parameters)
        if status != 0:
            text = _TEXT()
            self._library.cuptiGetResultString(status, ctypes.byref(text))
            raise ProfilerError(f"{name}: {(text.value or b'unknown').decode()} (CUPTI error {status})")
        return parameters

    def status(self, name: str, parameters: Any) -> int:
        """Make a call; its result code."""
        last = getattr(type(parameters), type(parameters)._fields_[-1][0])
        parameters.structSize = last.offset + last.size
        return int(getattr(self._library, name)(ctypes.byref(parameters)))

    @staticmethod
    def _names(listed: Any) -> tuple[str, ...]:
        return tuple(listed.names[index].decode() for index in range(listed.count))

    def chip(self, name: str) -> Chip:
        """The lists of one chip, e.g. GH100; ProfilerError with the nearest name for an unknown one."""
        if name not in self.chips:
            near = difflib.get_close_matches(name, self.chips, 3, 0.4)
            said = f", did you mean {', '.join(near)}?" if near else ""
            raise ProfilerError(
                f"CUPTI {self.version} knows no chip {name}{said}", hint=f"known: {' '.join(self.chips)}"
            )
        return Chip(self, name)


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _answers_alone(path: Path) -> bool:
    """Whether this version knows itself without a driver; asked of another process, for one version crashes."""
    asked = [sys.executable, "-I", "-c", _PROBE, str(path.parent / HOST_LIBRARY), str(path)]
    return subprocess.run(asked, capture_output=True, timeout=PROBE_S, check=False).returncode == 0


class Chip:
    """The counters of one chip. A context manager; `bases` are names without their rollups, by kind of metric."""

    def __init__(self, host: Host, name: str) -> None:
        self._host, self.name = host, name
        self._object = self._new()
        self.bases: dict[str, int] = {}
        for kind in (COUNTER, RATIO, THROUGHPUT):
            listed = host.call("cuptiProfilerHostGetBaseMetrics", _BASE(object=self._object, type=kind))
            self.bases |= dict.fromkeys(host._names(listed), kind)
        self._known: dict[str, bool] = {}

    def _new(self) -> int:
        opened = self._host.call("cuptiProfilerHostInitialize", _INITIALIZE(kind=0, chip=self.name.encode()))
        return int(opened.object)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host.call("cuptiProfilerHostDeinitialize", _DEINITIALIZE(object=self._object))

    def submetrics(self, base: str) -> tuple[str, ...]:
        """Suffixes of a base name, such as `.sum` and `.avg.pct_of_peak_sustained_elapsed`; empty where CUPTI 12 does
        not list them."""
        listed = _SUB(object=self._object, type=self.bases[base], name=base.encode())
        status = self._host.status("cuptiProfilerHostGetSubMetrics", listed)
        return self._host._names(listed) if status == 0 else ()

    def knows(self, name: str) -> bool:
        """Whether the chip has this counter, suffix included: the library would schedule it."""
        if name not in self._known:
            # After a refusal an object accepts nothing more, so each question has its own.
            asked = self._new()
            names = (_TEXT * 1)(name.encode())
            try:
                parameters = _ADD(object=asked, names=names, count=1)
                status = self._host.status("cuptiProfilerHostConfigAddMetrics", parameters)
                if status not in (0, *_INVALID_METRIC):
                    self._host.call("cuptiProfilerHostConfigAddMetrics", parameters)
                self._known[name] = status == 0
            finally:
                self._host.call("cuptiProfilerHostDeinitialize", _DEINITIALIZE(object=asked))
        return self._known[name]

    def suggest(self, name: str) -> str | None:
        """The nearest name that the chip has, by renamed words first, by spelling else; None when nothing is near."""
        base, dot, suffix = name.partition(".")
        for renamed in _renamed(base):
            found = self._completed(renamed, dot + suffix)
            if found is not None:
                return found
        if base in self.bases:
            return self._completed(base, dot + suffix)
        near = difflib.get_close_matches(base, [known for known in self.bases if "." not in known], 5, 0.7)
        found_near = (self._completed(known, dot + suffix) for known in near)
        return next((full for full in found_near if full is not None), None)

    def _completed(self, base: str, suffix: str) -> str | None:
        """`base` with `suffix`, or with the nearest suffix that it has."""
        if base not in self.bases:
            return None
        if suffix and self.knows(base + suffix):
            return base + suffix
        near = difflib.get_close_matches(suffix, self.submetrics(base), 1, 0.6)
        return next((base + known for known in [*near, *DEFAULT_SUFFIX] if self.knows(base + known)), None)


DEFAULT_SUFFIX: Sequence[str] = (".sum", ".pct", ".avg.pct_of_peak_sustained_elapsed")


def _renamed(base: str) -> list[str]:
    """`base` with each known word replaced, then with all of them."""
    single = [base.replace(old, new) for old, news in RENAMED.items() if old in base for new in news]
    whole = base
    for old, news in RENAMED.items():
        whole = whole.replace(old, news[0]) if news[0] not in whole else whole
    return list(dict.fromkeys(name for name in [*single, whole] if name != base))
