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
from collections.abc import Callable, Mapping, Sequence

from engine.canonical import Json
from engine.errors import WorkerError
from engine.judging import timing
from engine.judging.children import Child, ChildEnded, ChildTimeout, ForkServerClient, new_scratch
from engine.judging.clocked import Clocked, Notes, Stints, is_new_best, measurement_of, refuted_by
from engine.judging.device_memory import await_room
from engine.judging.executors import ExecutorFault
from engine.judging.gpu_state import Shortages, SmClock, lease, lock_path, tell_shortage
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
from engine.records import Measurement, Precision, ScoreKind, Task

WARM_UP_S = 0.04
"""Of rounds thrown away, one at least: they raise the clocks and fill caches of the code, not of the data."""

CHILD_KIND = "time"
SCREEN_BLOCKS = 3
EXCHANGED_US = 0.03
"""What is left of it after an exchange: a kernel against itself, reopened, at 10 and at 50 µs (measured there)."""

PYTHON_SHARE = 0.95
"""A candidate's own Python cannot be faster than its plan, which has no Python in it, beyond what clocks tell apart."""


class _NoMemoryError(Exception):
    """A side could not be built, for others hold the memory that it needs."""


class Stopwatch:
    """Measures candidates of one task after another; `close` ends the baseline process."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._reference: Reference | None = None
        self._server: ForkServerClient | None = None
        self._clock = SmClock(bench.gpu_uuid)
        self._shortages = Shortages(lock_path(bench.gpu_uuid))
        self._idle_shortages = Shortages(lock_path(bench.gpu_uuid))

    def measure(
        self, task: Task, precision: Precision, source: str | None, incumbent: str | None, floor_us: float | None
    ) -> Measurement:
        """Medians and paired ratios; a side that fails is left out and noted, WorkerError only when none is left."""
        asked = {CANDIDATE: source, INCUMBENT: incumbent}
        sources = {who: text for who, text in asked.items() if text is not None}
        stints = Stints(lock_path(self._bench.gpu_uuid))
        try:
            reference, clocked, notes = self._timed(task, precision, sources, stints, alone=False)
        except _NoMemoryError:
            tell_shortage(stints.lock)
            self.make_room()
            await_room()
            reference, clocked, notes = self._timed(task, precision, sources, stints, alone=True)
        if self._shortages.new():
            self.forget_baseline()
        if not clocked.paired.medians:
            raise WorkerError("nothing could be timed: " + "; ".join([*reference.notes, *notes.said]))
        seen = {**clocked.seen, "beside_others_s": f"{stints.shared_s:.3g}"}
        measured = measurement_of(clocked.paired, clocked.sides, reference, notes, floor_us, self._bench.cuda, seen)
        measured = dataclasses.replace(measured, refuted=clocked.refuted, gpu_s=stints.alone_s)
        if source is not None and self._bench.cuda.python_probe and is_new_best(measured):
            return self._probed(measured, task, precision, source)
        return measured

    def make_room_if_short(self) -> None:
        """Of a process that waits for work: make room for one that lacks memory."""
        if self._idle_shortages.new():
            self.make_room()

    def make_room(self) -> None:
        """Give up what is kept only to save time."""
        self.forget_baseline()
        if self._bench.replays is not None:
            self._bench.replays.free()

    def _timed(
        self, task: Task, precision: Precision, sources: Mapping[str, str], stints: Stints, *, alone: bool
    ) -> tuple[Reference, Clocked, Notes]:
        """Everything timed and compared. `alone`: memory lacked before, so nobody else is let in while sides are
        built; otherwise _NoMemoryError says that it lacks."""
        notes = Notes(["built again alone on the GPU, for memory lacked"] if alone else [])
        with contextlib.ExitStack() as stack:
            # Before the lease: an executor that starts now takes a share of it, which nobody has while one is alone.
            seats = self._seats(stack, task, sources, notes)
            stints.large = any(seat is not None and seat.is_large for seat in seats.values())
            with stints.alone() if alone else stints.shared():
                reference = self._reference_of(task, precision, alone=alone)
                mine: dict[str, Side] = {}
                for who, seat in seats.items():
                    try:
                        mine[who] = self._side(stack, who, seat, task, precision, sources[who], notes)
                    except SideLostError as lost:
                        notes.lost(lost)
            if not alone and (notes.lacks_memory or reference.lacks_memory):
                raise _NoMemoryError
            clocked = self._clocked(mine, reference, notes, stints)
            if not alone and (notes.lacks_memory or reference.lacks_memory):
                raise _NoMemoryError
            if clocked is None:
                raise WorkerError("nothing could be timed: " + "; ".join([*reference.notes, *notes.said]))
            if self._shortages.new():
                self.forget_baseline()
            clocked.verify(mine, notes, self._compared_with(stints))
        return reference, clocked, notes

    def _compared_with(self, stints: Stints) -> Callable[[Side], None]:
        """Compares a side's timed outputs beside others; once more alone when memory lacked. SideLostError."""

        def compare(side: Side) -> None:
            try:
                with stints.shared():
                    check_outputs(side)
                return
            except SideLostError as lost:
                if lost.refuted or not is_memory(lost):
                    raise
            tell_shortage(stints.lock)
            if self._bench.replays is not None:
                self._bench.replays.free()
            await_room()
            with stints.alone():
                check_outputs(side)

        return compare

    def count_reference(self, task: Task, precision: Precision, counters: Sequence[str], limit: int) -> Json:
        """Hardware counters of one eager call of the reference, a `Counted`; SideLostError where it has none."""
        stints = Stints(lock_path(self._bench.gpu_uuid))
        with stints.shared():
            reference = self._reference_of(task, precision, alone=False)
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
            note = "; ".join(filter(None, [measured.note, f"python: {lost.why}"]))
            return dataclasses.replace(measured, note=note, passing=measured.passing or lost.ended)
        note = measured.note
        if call_us < PYTHON_SHARE * plan.median_us:
            text = f"its own Python takes {call_us:.4g} µs a call, less than its plan: they do not do the same"
            note = "; ".join(filter(None, [note, text]))
        settings = {**measured.settings, "python_call_us": f"{call_us:.4g}"}
        return dataclasses.replace(measured, settings=settings, note=note)

    def _seats(
        self, stack: contextlib.ExitStack, task: Task, sources: Mapping[str, str], notes: Notes
    ) -> dict[str, TimedReplay | None]:
        """Who can be timed: each with its plan beside an executor, None where there is no plan."""
        seats: dict[str, TimedReplay | None] = {}
        for who, source in sources.items():
            try:
                replays = self._bench.replays
                seats[who] = None if replays is None else stack.enter_context(replays.timed(task, source, who))
            except (Untraceable, NotReplayable) as error:
                notes.said.append(f"{who} is timed in its own process: {error}")
                seats[who] = None
            except (Stop, ExecutorFault, UnsupportedTask) as error:
                notes.lost(SideLostError(who, str(error)))
            except RuntimeError as error:
                if not is_memory(error):
                    raise
                text = f"no memory for its reference: {str(error).splitlines()[0]}"
                notes.lost(SideLostError(who, text))
        return seats

    def _side(
        self,
        stack: contextlib.ExitStack,
        who: str,
        seat: TimedReplay | None,
        task: Task,
        precision: Precision,
        source: str,
        notes: Notes,
    ) -> Side:
        """From the candidate's plan, or where there is none in a process that the candidate owns."""
        if seat is not None:
            try:
                seat.open(cold=self._bench.cuda.flush_l2)
                return Side(who, seat.ask, ScoreKind.MEASURED, seat)
            except NotReplayable as error:
                seat.spoil()
                notes.said.append(f"{who} is timed in its own process: {error}")
            except (Stop, ExecutorFault, UnsupportedTask) as error:
                seat.spoil()
                raise SideLostError(who, str(error)) from error
            except RuntimeError as error:
                if not is_memory(error):
                    raise
                seat.spoil()
                raise SideLostError(who, f"no memory for its rotated inputs: {str(error).splitlines()[0]}") from error
        child = stack.enter_context(self._child())
        return self._open(who, child, task, precision, source)

    def _clocked(self, mine: Mapping[str, Side], reference: Reference, notes: Notes, stints: Stints) -> Clocked | None:
        """Every side that can be timed, paired; nothing has been compared yet. None where none can be."""
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
                notes.lost(lost)
                refuted = refuted_by(lost) or refuted
                continue
            return Clocked(paired, sides, {"throttle": self._clock.throttle(), **asked}, refuted)
        return None

    def _screen(self, reference: Reference) -> None:
        for who, side in list(reference.sides.items()):
            if who not in reference.screened:
                try:
                    times = [statistics.median(side(self._bench.cuda.block_ms / 2)) for _ in range(SCREEN_BLOCKS)]
                except SideLostError as lost:
                    del reference.sides[who]
                    reference.absent(str(lost), passing=lost.ended)
                    continue
                reference.screened[who] = statistics.median(times)
        try:
            reference.drop_slow()
        except SideLostError as lost:
            # Its process is gone, and all sides with it, which the first block will say of each.
            reference.absent(str(lost), passing=True)

    def _exchanged(self, sides: Mapping[str, Side], stints: Stints) -> timing.Paired:
        """The paired times; of two plans half of the blocks in each other's executor."""
        plans = [sides[who].replay for who in (CANDIDATE, INCUMBENT) if who in sides]
        replays = [replay for replay in plans if replay is not None]
        with stints.alone():
            one = self._paired(sides, share=1.0 if len(replays) < 2 else 0.5)
        if len(replays) < 2:
            return one
        compare = self._compared_with(stints)
        for who in (CANDIDATE, INCUMBENT):
            compare(sides[who])
        with stints.shared():
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
        begun = time.monotonic()
        while True:
            for side in sides.values():
                side(protocol.block_ms)
            if time.monotonic() - begun >= WARM_UP_S:
                break
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

    def _reference_of(self, task: Task, precision: Precision, *, alone: bool) -> Reference:
        key = (task.task_hash, precision)
        kept = self._reference
        if kept is not None and kept.key == key and kept.worker.alive:
            return kept
        self.forget_baseline()
        sides = self._bench.cuda.baselines
        reference = open_reference(self._bench, key, task, sides)
        if not reference.worker.alive:
            # A compiler that hangs or crashes takes the process along; the eager reference alone is still a baseline.
            again = open_reference(self._bench, key, task, tuple(side for side in sides if side in reference.sides))
            again.notes[:0], again.passing = reference.notes, True
            reference = again
        reference.alone = alone
        self._reference = reference
        return reference

    def close(self) -> None:
        self.forget_baseline()
        if self._server is not None:
            self._server.close()
            self._server = None

    def forget_baseline(self) -> None:
        """End the process that is kept; the next measurement starts one."""
        if self._reference is not None:
            self._reference.worker.close()
            self._reference = None


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
