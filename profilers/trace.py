"""Launches of one call and how long each took: CUPTI's activity records, through the chrome trace of torch's profiler.

No counter permission is needed. The job's command makes the warm call under `torch.profiler.profile` with CUDA activity
and exports its chrome trace to `TRACE_FILE` in its folder; this module runs it and reads the file. The
candidate's code runs there, so nothing that it leaves is taken to be well-formed.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.canonical import Json
from engine.errors import ProfilerError
from profilers.running import run, written
from profilers.sampling import function_name
from profilers.seam import Job, KernelSample

TRACE_FILE = "kernel_trace.json"
MESSAGE_CHARS = 300
MAX_TRACE_BYTES = 32 << 20
MAX_OUTPUT_BYTES = 1 << 20
MAX_EVENTS = 200_000
"""Pieces of work on the device in one call."""
MAX_VALUE = 1e18
"""Of any number in a trace: in microseconds far beyond the epoch's, and sums over all events stay finite."""
MAX_EXTENT = 2**31 - 1
"""CUDA's for a grid's first dimension, the largest of all."""
KERNEL = "kernel"
DEVICE_WORK = frozenset({KERNEL, "gpu_memcpy", "gpu_memset"})
"""Categories of events that take time on the device."""


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """One piece of work on the device, times in microseconds. None: the trace does not say."""

    name: str
    category: str
    start_us: float
    duration_us: float
    stream: int | None
    grid: tuple[int, int, int] | None
    block: tuple[int, int, int] | None
    registers: float | None
    shared_bytes: float | None
    occupancy_pct: float | None
    """As Kineto estimates it from the launch's resources; nothing is measured."""


@dataclass(frozen=True, slots=True)
class KernelTotal:
    """All launches of one kernel in a call. `share_pct`: of the time of all work on the device, copies included."""

    name: str
    count: int
    sum_us: float
    min_us: float
    max_us: float
    share_pct: float


def parse(text: str) -> tuple[DeviceEvent, ...]:
    """The device's events in a chrome trace, in order of their starts; ProfilerError for what is no such trace."""
    try:
        tree = json.loads(text)
        events = tree["traceEvents"] if isinstance(tree, dict) else tree
        chosen = [event for event in events if _on_device(event)]
        if len(chosen) > MAX_EVENTS:
            raise ValueError(f"{len(chosen)} events of the device, expected at most {MAX_EVENTS}")
        found = [_event(event) for event in chosen]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ProfilerError(
            f"no chrome trace: {repr(error)[:MESSAGE_CHARS]}; expected traceEvents with name, ts and dur of each event"
        ) from error
    return tuple(sorted(found, key=lambda event: event.start_us))


def totals(events: Iterable[DeviceEvent]) -> tuple[KernelTotal, ...]:
    """The kernels by name, longest total first."""
    durations: defaultdict[str, list[float]] = defaultdict(list)
    whole = 0.0
    for event in events:
        whole += event.duration_us
        if event.category == KERNEL:
            durations[function_name(event.name)].append(event.duration_us)
    found = [
        KernelTotal(
            name, len(each), math.fsum(each), min(each), max(each), 100.0 * math.fsum(each) / whole if whole else 0.0
        )
        for name, each in durations.items()
    ]
    return tuple(sorted(found, key=lambda total: (-total.sum_us, total.name)))


def samples(events: Sequence[DeviceEvent], kernels: Sequence[str]) -> tuple[KernelSample, ...]:
    """One sample for each kernel (of `kernels`, where there are any): means over its launches, which `launches` counts.

    Counters of one launch: launches (1), grid_programs, registers, shared_bytes, est_occupancy_pct; of the kernel:
    duration_min_us, duration_max_us, time_share_pct."""
    known = {function_name(kernel): kernel for kernel in kernels}
    launched: defaultdict[str, list[DeviceEvent]] = defaultdict(list)
    for event in events:
        if event.category == KERNEL:
            launched[function_name(event.name)].append(event)
    found = []
    for total in totals(events):
        if known and total.name not in known:
            continue
        name = known[total.name] if known else total.name
        found.append(_sample(name, total, launched[total.name]))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class KernelTrace:
    """Runs the job's command for at most `timeout_s`; `path` and `max_launches` have no meaning here."""

    path: str
    timeout_s: float
    max_launches: int
    launcher: tuple[str, ...] = ()
    """Command put in front, such as one that confines what it starts."""
    name: str = "trace"

    def available(self) -> str | None:
        """None: whether the job's Python has torch and a device shows when it runs."""
        return None

    def collect(self, job: Job, counters: Sequence[str]) -> tuple[KernelSample, ...]:
        """The wanted counters of each of the job's kernels, aggregated by name; ProfilerError without any."""
        exported = Path(job.cwd, TRACE_FILE)
        exported.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=job.cwd, prefix="trace-", ignore_cleanup_errors=True) as folder:
            output = Path(folder, "output")
            status = run((*self.launcher, *job.command), job, self.timeout_s, output)
            printed = written(output, MAX_OUTPUT_BYTES)
            said = " ".join((printed or "").split())[-MESSAGE_CHARS:] or "nothing"
        if status != 0:
            raise ProfilerError(f"the traced call ended with status {status}: {said}")
        text = written(exported, MAX_TRACE_BYTES)
        if text is None:
            limit = MAX_TRACE_BYTES >> 20
            raise ProfilerError(f"expected a chrome trace of at most {limit} MiB in {TRACE_FILE}; it said: {said}")
        found = samples(parse(text), job.kernels)
        if not found:
            names = ", ".join(job.kernels) or "any kernel"
            raise ProfilerError(f"the trace has no launch of {names}; the profiler saw no activity of the device")
        return tuple(_wanted(sample, counters, job) for sample in found)


def _wanted(sample: KernelSample, counters: Sequence[str], job: Job) -> KernelSample:
    kept = {name: sample.counters[name] for name in counters if name in sample.counters}
    return KernelSample(
        sample.kernel, sample.duration_us, kept, sample.launches, sample.seen, sample.grid, job.workload
    )


def _sample(name: str, total: KernelTotal, events: Sequence[DeviceEvent]) -> KernelSample:
    programs = [None if event.grid is None else float(math.prod(event.grid)) for event in events]
    known = {
        "launches": 1.0,
        "grid_programs": _mean(programs),
        "registers": _mean([event.registers for event in events]),
        "shared_bytes": _mean([event.shared_bytes for event in events]),
        "est_occupancy_pct": _mean([event.occupancy_pct for event in events]),
        "duration_min_us": total.min_us,
        "duration_max_us": total.max_us,
        "time_share_pct": total.share_pct,
    }
    counters = {counter: value for counter, value in known.items() if value is not None}
    grids = {event.grid for event in events}
    grid = grids.pop() if len(grids) == 1 else None
    return KernelSample(name, total.sum_us / total.count, counters, float(total.count), total.count, grid)


def _mean(values: Sequence[float | None]) -> float | None:
    """None where a launch does not say: a mean of the rest would be of another call."""
    given = [value for value in values if value is not None]
    return math.fsum(given) / len(given) if given and len(given) == len(values) else None


def _on_device(event: Json) -> bool:
    return "cat" in event and event["cat"] in DEVICE_WORK and "dur" in event


def _event(event: Json) -> DeviceEvent:
    details: Mapping[str, Json] = event.get("args") or {}
    stream = _number(details, "stream")
    name, start, duration = str(event["name"]), float(event["ts"]), float(event["dur"])
    if not 0 <= start <= MAX_VALUE or not 0 <= duration <= MAX_VALUE:
        raise ValueError(f"ts {start:g} and dur {duration:g} of {name[:MESSAGE_CHARS]}, expected 0 to {MAX_VALUE:g}")
    return DeviceEvent(
        name,
        str(event["cat"]),
        start,
        duration,
        None if stream is None else int(stream),
        _extent(details, "grid"),
        _extent(details, "block"),
        _number(details, "registers per thread"),
        _number(details, "shared memory"),
        _number(details, "est. achieved occupancy %"),
    )


def _number(details: Mapping[str, Json], name: str) -> float | None:
    value: object = details.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_VALUE:
        return None
    return float(value)


def _extent(details: Mapping[str, Json], name: str) -> tuple[int, int, int] | None:
    value = details.get(name)
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(type(extent) is int and 1 <= extent <= MAX_EXTENT for extent in value):
        raise ValueError(f"expected a {name} of three integers from 1 to {MAX_EXTENT}")
    return value[0], value[1], value[2]
