"""Times a candidate paired with the baselines: this process owns the schedule and the statistics, two others own the
clocks. The candidate's clock is in a process that ran candidate Python, so its times are `unverified`.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.canonical import Json
from engine.errors import WorkerError
from engine.judging import timing
from engine.judging.children import Child, ChildEnded, ChildTimeout, ForkServerClient, new_scratch
from engine.judging.gpu_state import SmClock, lease, lock_path
from engine.judging.sandbox import Confinement
from engine.records import Measurement, Precision, Ratio, ScoreKind, Task, Timing
from engine.settings import CudaSettings, LimitSettings
from engine.worker import Worker, scrubbed_environment

PACKAGE = Path(__file__).resolve().parents[2]
BLOCK_TIMEOUT_S = 120.0
WARM_UP_BLOCKS = 2
"""Rounds thrown away: they raise the clocks and fill caches of the code, not of the data."""

NOTE_CHARS = 1000
CHILD_KIND = "time"
CANDIDATE, INCUMBENT = "candidate", "incumbent"


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how to time; `limits.run_s` bounds building one side."""

    cuda: CudaSettings
    limits: LimitSettings
    gpu_uuid: str
    environment: Mapping[str, str]
    scratch: Path


class _SideLostError(Exception):
    """A timed process failed; `who` is out of the comparison and `why` goes into the note."""

    def __init__(self, who: str, why: str) -> None:
        super().__init__(f"{who}: {why}")
        self.who, self.why = who, why


Ask = Callable[[Json, float], Json]
"""Sends one message to a timed process and waits so many seconds for the answer."""


class _Side:
    """One timed form, `who`, behind `ask`."""

    def __init__(self, who: str, ask: Ask) -> None:
        self.who, self._ask = who, ask

    def __call__(self, milliseconds: float) -> Sequence[float]:
        request = {"op": "time_block", "who": self.who, "ms": milliseconds}
        times = _answer(self._ask, self.who, request, BLOCK_TIMEOUT_S).get("times_us")
        if not (isinstance(times, list) and times and all(_is_time(value) for value in times)):
            raise _SideLostError(self.who, f"expected positive times in µs, got {str(times)[:200]}")
        return times


def _is_time(value: Json) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _answer(ask: Ask, who: str, request: Json, timeout_s: float) -> Mapping[str, Json]:
    try:
        answer = ask(request, timeout_s)
    except (WorkerError, ChildEnded, ChildTimeout) as error:
        raise _SideLostError(who, f"its timed process was lost: {error}") from error
    if not isinstance(answer, Mapping) or "error" in answer:
        raise _SideLostError(who, _complaint(answer))
    return answer


def _complaint(answer: Json) -> str:
    error = answer["error"] if isinstance(answer, Mapping) else answer
    if isinstance(error, Mapping) and "type" in error and "message" in error:
        return f"{error['type']}: {error['message']}"[:NOTE_CHARS]
    return str(error)[:NOTE_CHARS]


@dataclass(slots=True)
class _Reference:
    """The baseline process of one task, kept while the engine works on it: compiling is paid once."""

    key: tuple[str, Precision]
    worker: Worker
    sides: dict[str, _Side]
    settings: Mapping[str, str]
    notes: list[str] = field(default_factory=list)


class Stopwatch:
    """Measures candidates of one task after another; `close` ends the baseline process."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._reference: _Reference | None = None
        self._server: ForkServerClient | None = None
        self._clock = SmClock(bench.gpu_uuid)

    def measure(
        self, task: Task, precision: Precision, source: str | None, incumbent: str | None, floor_us: float | None
    ) -> Measurement:
        """Medians and paired ratios; a side that fails is left out and noted, WorkerError only when none is left."""
        lock = lock_path(self._bench.gpu_uuid)
        notes: list[str] = []
        mine: dict[str, _Side] = {}
        sources = {CANDIDATE: source, INCUMBENT: incumbent}
        with self._children([who for who, text in sources.items() if text is not None]) as children:
            with lease(lock, shared=True):
                reference = self._reference_of(task, precision)
                for who, child in children.items():
                    try:
                        mine[who] = self._open(who, child, task, precision, sources[who])
                    except _SideLostError as lost:
                        notes.append(str(lost))
            with lease(lock):
                return self._timed(mine, reference, notes, floor_us)

    def _timed(
        self, mine: dict[str, _Side], reference: _Reference, notes: list[str], floor_us: float | None
    ) -> Measurement:
        sides = {**mine, **reference.sides}
        while sides:
            try:
                paired = self._paired(sides)
            except _SideLostError as lost:
                del sides[lost.who]
                notes.append(str(lost))
                continue
            return _measurement(paired, sides, reference, notes, floor_us, self._bench.cuda)
        raise WorkerError("nothing could be timed: " + "; ".join([*reference.notes, *notes]))

    def _paired(self, sides: Mapping[str, _Side]) -> timing.Paired:
        cuda = self._bench.cuda
        protocol = timing.Protocol(
            cuda.min_blocks, cuda.max_blocks, cuda.block_ms / 2, cuda.ratio_halfwidth, cuda.timing_budget_s
        )
        for _ in range(WARM_UP_BLOCKS):
            for side in sides.values():
                side(protocol.block_ms)
        seed = secrets.randbits(31)
        return timing.run_paired(sides, protocol, seed=seed, now=time.monotonic, clock_mhz=self._clock)

    @contextlib.contextmanager
    def _children(self, names: Sequence[str]) -> Iterator[dict[str, Child]]:
        """A confined process for each candidate, forked from a server that has imported torch already."""
        if names and self._server is None:
            self._server = ForkServerClient(self._bench.environment, self._bench.scratch / "clock.log")
        with contextlib.ExitStack() as stack:
            yield {who: stack.enter_context(self._child()) for who in names}

    def _child(self) -> Child:
        assert self._server is not None
        limits = self._bench.limits
        confinement = Confinement(
            scratch=new_scratch(self._bench.scratch),
            cpu_s=max(1, round(limits.run_s)),
            memory_bytes=None,
            processes=limits.processes,
            file_bytes=limits.file_mib << 20,
            gpu=True,
        )
        return Child(self._server, CHILD_KIND, confinement)

    def _open(self, who: str, child: Child, task: Task, precision: Precision, source: str | None) -> _Side:
        request = _open_request(task, source, precision, str(child.scratch), self._bench.cuda.flush_l2)
        try:
            child.start()
        except (ChildEnded, ChildTimeout) as error:
            raise _SideLostError(who, f"its process did not start: {error}") from error
        _answer(child.ask, who, request, self._bench.limits.run_s)
        return _Side(who, child.ask)

    def _reference_of(self, task: Task, precision: Precision) -> _Reference:
        key = (task.task_hash, precision)
        kept = self._reference
        if kept is not None and kept.key == key and kept.worker.alive:
            return kept
        self._end_reference()
        sides = self._bench.cuda.baselines
        reference = _open_reference(self._bench, key, task, sides)
        if not reference.worker.alive:
            # A compiler that hangs or crashes takes the process along; the eager reference alone is still a baseline.
            again = _open_reference(self._bench, key, task, tuple(side for side in sides if side in reference.sides))
            reference = _Reference(key, again.worker, again.sides, again.settings, reference.notes + again.notes)
        self._reference = reference
        return reference

    def close(self) -> None:
        self._end_reference()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _end_reference(self) -> None:
        if self._reference is not None:
            self._reference.worker.close()
            self._reference = None


def _open_reference(bench: Bench, key: tuple[str, Precision], task: Task, sides: Sequence[str]) -> _Reference:
    folder = tempfile.mkdtemp(prefix="baseline-", dir=bench.scratch)
    worker = _spawn(bench, "engine.judging.baseline", folder)
    reference = _Reference(key, worker, {}, {})
    try:
        request = _open_request(task, None, key[1], folder, bench.cuda.flush_l2)
        opened = _answer(worker.ask, "reference", request, bench.limits.run_s)
        reference.settings = {**opened["settings"], "input_sets": str(opened["sets"])}
        for who in sides:
            absent = _answer(worker.ask, who, {"op": "build", "who": who}, bench.limits.run_s)["absent"]
            if absent is None:
                reference.sides[who] = _Side(who, worker.ask)
            else:
                reference.notes.append(f"{who} is absent: {absent}")
    except _SideLostError as lost:
        reference.notes.append(f"{lost.who} is absent: {lost.why}")
    return reference


def _open_request(task: Task, source: str | None, precision: Precision, folder: str, flush_l2: bool) -> Json:
    return {
        "op": "open",
        "task_source": task.source,
        "source": source,
        "precision": precision.value,
        "seed": secrets.randbits(31),
        "folder": folder,
        "flush_l2": flush_l2,
    }


def _spawn(bench: Bench, module: str, folder: str) -> Worker:
    """A Python process of its own group with nothing of ours in its environment but what it needs to compute."""
    places = dict.fromkeys(("HOME", "TMPDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"), folder)
    extra = {**places, **bench.environment, "PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-m", module]
    return Worker(command, environment=scrubbed_environment(extra), cwd=folder, log=str(Path(folder, "log.txt")))


def _measurement(
    paired: timing.Paired,
    sides: Mapping[str, _Side],
    reference: _Reference,
    notes: Sequence[str],
    floor_us: float | None,
    cuda: CudaSettings,
) -> Measurement:
    timings = tuple(
        Timing(who, _kind(who), estimate.value, estimate.lo, estimate.hi, estimate.n)
        for who, estimate in paired.medians.items()
    )
    ratios = tuple(
        Ratio(over, estimate.value, estimate.lo, estimate.hi, estimate.n) for over, estimate in paired.ratios.items()
    )
    protocol = {
        "protocol": "paired blocks in random order, median of log-ratios, bootstrap 95 %",
        "block_ms": f"{cuda.block_ms:g}",
        "flush_l2": str(cuda.flush_l2),
        "dropped_blocks": str(paired.dropped),
        "sm_clock_mhz": "unknown" if paired.clock_mhz is None else f"{paired.clock_mhz:g}",
        "stopped": paired.stopped,
    }
    kept = ratios if CANDIDATE in sides else ()
    note = "; ".join([*reference.notes, *notes])
    return Measurement(timings, kept, floor_us, {**reference.settings, **protocol}, note)


def _kind(who: str) -> ScoreKind:
    return ScoreKind.UNVERIFIED if who in (CANDIDATE, INCUMBENT) else ScoreKind.MEASURED
