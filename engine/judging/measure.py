"""Times a candidate paired with the baselines: this process owns the schedule and the statistics, others own the
clocks. A candidate with a launch plan is timed by an executor and `measured`; one without in a process that ran its
Python, and stays `unverified`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import secrets
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.canonical import Json
from engine.errors import WorkerError
from engine.judging import timing
from engine.judging.children import Child, ChildEnded, ChildTimeout, ForkServerClient, new_scratch
from engine.judging.executors import ExecutorFault
from engine.judging.gpu_state import SmClock, lease, lock_path
from engine.judging.inputs import UnsupportedTask
from engine.judging.judge import Stop
from engine.judging.messages import is_memory
from engine.judging.planned import Untraceable
from engine.judging.replayed import NotReplayable
from engine.judging.sandbox import Confinement
from engine.judging.sides import (
    BLOCK_TIMEOUT_S,
    CANDIDATE,
    EAGER,
    INCUMBENT,
    Bench,
    Reference,
    Side,
    SideLostError,
    answer,
    check_outputs,
    open_reference,
    open_request,
    second_clock,
    warm_time,
)
from engine.judging.timed import TimedReplay
from engine.records import Measurement, Precision, Ratio, ScoreKind, Task, Timing
from engine.settings import CudaSettings

WARM_UP_BLOCKS = 2
"""Rounds thrown away: they raise the clocks and fill caches of the code, not of the data."""

CHILD_KIND = "time"
SCREEN_BLOCKS = 3
PLACEMENT_US = 0.3
"""What the same call takes more or less in another process and other memory, whatever its size (measured:
docs/measurements/judge_h200.md). Two plans exchange their executors; of a plan and a baseline no block shows it, so
their intervals are wider by it."""

EXCHANGED_US = 0.03
"""What is left of it after an exchange: a kernel against itself, reopened, at 10 and at 50 µs (measured there)."""

PYTHON_SHARE = 0.95
"""A candidate's own Python cannot be faster than its plan, which has no Python in it, beyond what clocks tell apart."""


class Stints:
    """Leases of the GPU, alone for the clock or beside others, and the seconds spent so."""

    def __init__(self, lock: Path) -> None:
        self._lock, self.alone_s, self.shared_s = lock, 0.0, 0.0

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with lease(self._lock):
            started = time.monotonic()
            try:
                yield
            finally:
                self.alone_s += time.monotonic() - started

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with lease(self._lock, shared=True):
            started = time.monotonic()
            try:
                yield
            finally:
                self.shared_s += time.monotonic() - started


@dataclass(slots=True)
class _Clocked:
    """What the clock said of `sides`, the candidate first where there is one. `seen`: for the record; `refuted`: why
    the candidate was found wrong, or empty."""

    paired: timing.Paired
    sides: dict[str, Side]
    seen: Mapping[str, str]
    refuted: str

    def verify(self, mine: Mapping[str, Side], notes: list[str]) -> None:
        """Take out sides whose timed outputs are wrong or cannot be read."""
        for who, side in mine.items():
            if who in self.sides:
                try:
                    check_outputs(side)
                except SideLostError as lost:
                    self.leave_out(who)
                    notes.append(str(lost))
                    self.refuted = _refuted(lost) or self.refuted

    def leave_out(self, who: str) -> None:
        """Its own time and what is stated over it."""
        del self.sides[who]
        medians = {side: found for side, found in self.paired.medians.items() if side != who}
        ratios = {side: found for side, found in self.paired.ratios.items() if side != who}
        self.paired = dataclasses.replace(self.paired, medians=medians, ratios=ratios)


class Stopwatch:
    """Measures candidates of one task after another; `close` ends the baseline process."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._reference: Reference | None = None
        self._server: ForkServerClient | None = None
        self._clock = SmClock(bench.gpu_uuid)

    def measure(
        self, task: Task, precision: Precision, source: str | None, incumbent: str | None, floor_us: float | None
    ) -> Measurement:
        """Medians and paired ratios; a side that fails is left out and noted, WorkerError only when none is left."""
        notes: list[str] = []
        sources = {CANDIDATE: source, INCUMBENT: incumbent}
        with contextlib.ExitStack() as stack:
            stints = Stints(lock_path(self._bench.gpu_uuid))
            with stints.shared():
                reference = self._reference_of(task, precision)
                mine: dict[str, Side] = {}
                for who, text in sources.items():
                    if text is not None:
                        try:
                            mine[who] = self._side(stack, who, task, precision, text, notes)
                        except SideLostError as lost:
                            notes.append(str(lost))
            clocked = self._clocked(mine, reference, notes, stints)
            with stints.shared():
                clocked.verify(mine, notes)
        if not clocked.paired.medians:
            raise WorkerError("nothing could be timed: " + "; ".join([*reference.notes, *notes]))
        seen = {**clocked.seen, "beside_others_s": f"{stints.shared_s:.3g}"}
        measured = _measurement(clocked.paired, clocked.sides, reference, notes, floor_us, self._bench.cuda, seen)
        measured = dataclasses.replace(measured, refuted=clocked.refuted, gpu_s=stints.alone_s)
        if source is not None and self._bench.cuda.python_probe and _is_new_best(measured):
            return self._probed(measured, task, precision, source)
        return measured

    def count_reference(self, task: Task, precision: Precision, counters: Sequence[str], limit: int) -> Json:
        """Hardware counters of one eager call of the reference, a `Counted`; SideLostError where it has none."""
        stints = Stints(lock_path(self._bench.gpu_uuid))
        with stints.shared():
            reference = self._reference_of(task, precision)
        request: Json = {"op": "count", "counters": list(counters), "limit": limit}
        with stints.alone():
            return answer(reference.worker.ask, EAGER, request, BLOCK_TIMEOUT_S)

    def _probed(self, measured: Measurement, task: Task, precision: Precision, source: str) -> Measurement:
        """What a call of the candidate's own Python takes, launches included, beside the time of its plan."""
        lock = lock_path(self._bench.gpu_uuid)
        plan = measured.timing(CANDIDATE)
        assert plan is not None
        try:
            with self._child() as child:
                with lease(lock, shared=True):
                    side = self._open(CANDIDATE, child, task, precision, source)
                with lease(lock):
                    call_us = statistics.median(side(self._bench.cuda.block_ms / 2))
        except SideLostError as lost:
            return dataclasses.replace(measured, note="; ".join(filter(None, [measured.note, f"python: {lost.why}"])))
        note = measured.note
        if call_us < PYTHON_SHARE * plan.median_us:
            text = f"its own Python takes {call_us:.4g} µs a call, less than its plan: they do not do the same"
            note = "; ".join(filter(None, [note, text]))
        settings = {**measured.settings, "python_call_us": f"{call_us:.4g}"}
        return dataclasses.replace(measured, settings=settings, note=note)

    def _side(
        self, stack: contextlib.ExitStack, who: str, task: Task, precision: Precision, source: str, notes: list[str]
    ) -> Side:
        """From the candidate's plan, or where there is none in a process that the candidate owns."""
        replays = self._bench.replays
        if replays is not None:
            try:
                timed = stack.enter_context(replays.timed(task, source, cold=self._bench.cuda.flush_l2))
                return Side(who, timed.ask, ScoreKind.MEASURED, timed)
            except (Untraceable, NotReplayable) as error:
                notes.append(f"{who} is timed in its own process: {error}")
            except (Stop, ExecutorFault, UnsupportedTask) as error:
                raise SideLostError(who, str(error)) from error
            except RuntimeError as error:
                if not is_memory(error):
                    raise
                raise SideLostError(who, f"no memory for its rotated inputs: {str(error).splitlines()[0]}") from error
        child = stack.enter_context(self._child())
        return self._open(who, child, task, precision, source)

    def _clocked(self, mine: Mapping[str, Side], reference: Reference, notes: list[str], stints: Stints) -> _Clocked:
        """Every side that can be timed, paired; nothing has been compared yet."""
        with stints.alone():
            self._screen(reference)
        sides, refuted = {**mine, **reference.paired()}, ""
        while sides:
            try:
                paired = self._exchanged(sides, stints)
                with stints.alone():
                    asked = warm_time(sides)
                    if CANDIDATE in sides:
                        asked |= second_clock(sides, paired.medians[CANDIDATE].value)
            except SideLostError as lost:
                for who in (lost.who, *lost.with_it):
                    sides.pop(who, None)
                notes.append(str(lost))
                refuted = _refuted(lost) or refuted
                continue
            return _Clocked(paired, sides, {"throttle": self._clock.throttle(), **asked}, refuted)
        raise WorkerError("nothing could be timed: " + "; ".join([*reference.notes, *notes]))

    def _screen(self, reference: Reference) -> None:
        for who, side in list(reference.sides.items()):
            if who not in reference.screened:
                try:
                    times = [statistics.median(side(self._bench.cuda.block_ms / 2)) for _ in range(SCREEN_BLOCKS)]
                except SideLostError as lost:
                    del reference.sides[who]
                    reference.notes.append(str(lost))
                    continue
                reference.screened[who] = statistics.median(times)

    def _exchanged(self, sides: Mapping[str, Side], stints: Stints) -> timing.Paired:
        """The paired times; of two plans half of the blocks in each other's executor."""
        plans = [sides[who].replay for who in (CANDIDATE, INCUMBENT) if who in sides]
        replays = [replay for replay in plans if replay is not None]
        with stints.alone():
            one = self._paired(sides, share=1.0 if len(replays) < 2 else 0.5)
        if len(replays) < 2:
            return one
        with stints.shared():
            for who in (CANDIDATE, INCUMBENT):
                check_outputs(sides[who])
            _swapped(replays[0], replays[1])
        with stints.alone():
            return timing.combined(one, self._paired(sides, share=0.5), EXCHANGED_US)

    def _paired(self, sides: Mapping[str, Side], share: float = 1.0) -> timing.Paired:
        """`share`: of the configured numbers of blocks and seconds."""
        cuda = self._bench.cuda
        protocol = timing.Protocol(
            math.ceil(cuda.min_blocks * share),
            math.ceil(cuda.max_blocks * share),
            cuda.block_ms / 2,
            cuda.ratio_halfwidth,
            cuda.timing_budget_s * share,
        )
        for _ in range(WARM_UP_BLOCKS):
            for side in sides.values():
                side(protocol.block_ms)
        seed = secrets.randbits(31)
        return timing.run_paired(sides, protocol, seed=seed, now=time.monotonic, clock_mhz=self._clock)

    def _child(self) -> Child:
        """A confined process, forked from a server that has imported torch already."""
        if self._server is None:
            self._server = ForkServerClient(self._bench.environment, self._bench.scratch / "clock.log")
        limits = self._bench.limits
        confinement = Confinement(
            scratch=new_scratch(self._bench.scratch),
            cpu_s=max(1, round(limits.run_s)),
            memory_bytes=None,
            processes=limits.processes,
            file_bytes=limits.file_mib << 20,
            gpu=True,
            required=self._bench.required,
        )
        return Child(self._server, CHILD_KIND, confinement)

    def _open(self, who: str, child: Child, task: Task, precision: Precision, source: str | None) -> Side:
        request = open_request(task, source, precision, str(child.scratch), self._bench.cuda.flush_l2)
        try:
            child.start()
        except (ChildEnded, ChildTimeout) as error:
            raise SideLostError(who, f"its process did not start: {error}") from error
        answer(child.ask, who, request, self._bench.limits.run_s)
        return Side(who, child.ask, ScoreKind.UNVERIFIED)

    def _reference_of(self, task: Task, precision: Precision) -> Reference:
        key = (task.task_hash, precision)
        kept = self._reference
        if kept is not None and kept.key == key and kept.worker.alive:
            return kept
        self._end_reference()
        sides = self._bench.cuda.baselines
        reference = open_reference(self._bench, key, task, sides)
        if not reference.worker.alive:
            # A compiler that hangs or crashes takes the process along; the eager reference alone is still a baseline.
            again = open_reference(self._bench, key, task, tuple(side for side in sides if side in reference.sides))
            reference = Reference(key, again.worker, again.sides, again.settings, reference.notes + again.notes)
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


def _measurement(
    paired: timing.Paired,
    sides: Mapping[str, Side],
    reference: Reference,
    notes: Sequence[str],
    floor_us: float | None,
    cuda: CudaSettings,
    seen: Mapping[str, str],
) -> Measurement:
    timings = tuple(
        Timing(who, sides[who].kind, estimate.value, estimate.lo, estimate.hi, estimate.n)
        for who, estimate in paired.medians.items()
    )
    ratios = tuple(
        Ratio(over, estimate.value, estimate.lo / unsure, estimate.hi * unsure, estimate.n)
        for over, estimate in paired.ratios.items()
        for unsure in (1.0 + _placement(paired, over),)
    )
    protocol = {
        "protocol": "paired blocks in random order, median of log-ratios, bootstrap 95 %",
        "block_ms": f"{cuda.block_ms:g}",
        "flush_l2": str(cuda.flush_l2),
        "dropped_blocks": str(paired.dropped),
        "sm_clock_mhz": "unknown" if paired.clock_mhz is None else f"{paired.clock_mhz:g}",
        "stopped": paired.stopped,
    }
    screened = {f"{who}_alone_us": f"{value:.4g}" for who, value in reference.screened.items()}
    kept = ratios if CANDIDATE in sides else ()
    note = "; ".join([*reference.notes, *notes])
    return Measurement(timings, kept, floor_us, {**reference.settings, **protocol, **seen, **screened}, note)


def _placement(paired: timing.Paired, over: str) -> float:
    """PLACEMENT_US relative to the shorter time of a ratio; 0 where places were exchanged."""
    times = [paired.medians[who].value for who in (CANDIDATE, over) if who in paired.medians]
    return 0.0 if over == INCUMBENT or not times else PLACEMENT_US / min(times)


def _is_new_best(measured: Measurement) -> bool:
    """Whether a plan was timed and nothing shows that the incumbent is as good."""
    plan, over = measured.timing(CANDIDATE), measured.ratio(INCUMBENT)
    return plan is not None and plan.score_kind is ScoreKind.MEASURED and (over is None or over.lo > 1.0)


def _swapped(one: TimedReplay, other: TimedReplay) -> None:
    """Exchange their executors. Where that fails neither can be asked: an executor may still hold the other's plan."""
    try:
        one.swap(other)
    except (Stop, ExecutorFault, NotReplayable, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_memory(error):
            raise
        text = f"could not change places: {str(error).splitlines()[0]}"
        one.spoil()
        other.spoil()
        raise SideLostError(INCUMBENT, text, with_it=(CANDIDATE,)) from error


def _refuted(lost: SideLostError) -> str:
    return lost.why if lost.refuted and lost.who == CANDIDATE else ""
