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
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

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
from engine.judging.timed import TimedReplay
from engine.records import Measurement, Precision, Ratio, ScoreKind, Status, Task, Timing
from engine.settings import CudaSettings, LimitSettings
from engine.worker import Worker, scrubbed_environment

PACKAGE = Path(__file__).resolve().parents[2]
BLOCK_TIMEOUT_S = 120.0
WARM_UP_BLOCKS = 2
"""Rounds thrown away: they raise the clocks and fill caches of the code, not of the data."""

NOTE_CHARS = 1000
CHILD_KIND = "time"
CANDIDATE, INCUMBENT, EAGER = "candidate", "incumbent", "eager"
SCREEN_BLOCKS = 3
WARM_MS = 5.0
PYTHON_SHARE = 0.95
"""A candidate's own Python cannot be faster than its plan, which has no Python in it, beyond what clocks tell apart."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how to time; `limits.run_s` bounds building one side. `replays`: plans of candidates, or None where
    each is to be timed in its own process."""

    cuda: CudaSettings
    limits: LimitSettings
    gpu_uuid: str
    environment: Mapping[str, str]
    scratch: Path
    replays: Replays | None = None


class _SideLostError(Exception):
    """A timed process failed; `who` is out of the comparison and `why` goes into the note."""

    def __init__(self, who: str, why: str, *, refuted: bool = False) -> None:
        super().__init__(f"{who}: {why}")
        self.who, self.why, self.refuted = who, why, refuted


class Replays(Protocol):
    """Gives a candidate's plan in an executor, ready for the clock; Untraceable or NotReplayable when there is none."""

    def timed(self, task: Task, source: str, *, cold: bool) -> contextlib.AbstractContextManager[TimedReplay]: ...


Ask = Callable[[Json, float], Json]
"""Sends one message to a timed process and waits so many seconds for the answer."""


class _Side:
    """One timed form, `who`, behind `ask`. `replay`: its plan in an executor; None for a process with its own clock."""

    def __init__(self, who: str, ask: Ask, kind: ScoreKind, replay: TimedReplay | None = None) -> None:
        self.who, self._ask, self.kind, self.replay = who, ask, kind, replay

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
    except (WorkerError, ChildEnded, ChildTimeout, ExecutorFault) as error:
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
    screened: dict[str, float] = field(default_factory=dict)
    """µs of each side, timed alone once: which is the fastest."""

    def paired(self) -> dict[str, _Side]:
        """Eager, which speed-ups are stated over, and the fastest."""
        fastest = min(self.screened, key=lambda who: self.screened[who], default=None)
        return {who: side for who, side in self.sides.items() if who in (EAGER, fastest)}


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
        sources = {CANDIDATE: source, INCUMBENT: incumbent}
        with contextlib.ExitStack() as stack:
            with lease(lock, shared=True):
                reference = self._reference_of(task, precision)
                mine: dict[str, _Side] = {}
                for who, text in sources.items():
                    if text is not None:
                        try:
                            mine[who] = self._side(stack, who, task, precision, text, notes)
                        except _SideLostError as lost:
                            notes.append(str(lost))
            with lease(lock):
                started = time.monotonic()
                measured = self._timed(mine, reference, notes, floor_us)
                measured = dataclasses.replace(measured, gpu_s=time.monotonic() - started)
        if source is not None and self._bench.cuda.python_probe and _is_new_best(measured):
            return self._probed(measured, task, precision, source)
        return measured

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
        except _SideLostError as lost:
            return dataclasses.replace(measured, note="; ".join(filter(None, [measured.note, f"python: {lost.why}"])))
        note = measured.note
        if call_us < PYTHON_SHARE * plan.median_us:
            text = f"its own Python takes {call_us:.4g} µs a call, less than its plan: they do not do the same"
            note = "; ".join(filter(None, [note, text]))
        settings = {**measured.settings, "python_call_us": f"{call_us:.4g}"}
        return dataclasses.replace(measured, settings=settings, note=note)

    def _side(
        self, stack: contextlib.ExitStack, who: str, task: Task, precision: Precision, source: str, notes: list[str]
    ) -> _Side:
        """From the candidate's plan, or where there is none in a process that the candidate owns."""
        replays = self._bench.replays
        if replays is not None:
            try:
                timed = stack.enter_context(replays.timed(task, source, cold=self._bench.cuda.flush_l2))
                return _Side(who, timed.ask, ScoreKind.MEASURED, timed)
            except (Untraceable, NotReplayable) as error:
                notes.append(f"{who} is timed in its own process: {error}")
            except (Stop, ExecutorFault, UnsupportedTask) as error:
                raise _SideLostError(who, str(error)) from error
            except RuntimeError as error:
                if not is_memory(error):
                    raise
                raise _SideLostError(who, f"no memory for its rotated inputs: {str(error).splitlines()[0]}") from error
        child = stack.enter_context(self._child())
        return self._open(who, child, task, precision, source)

    def _timed(
        self, mine: dict[str, _Side], reference: _Reference, notes: list[str], floor_us: float | None
    ) -> Measurement:
        self._screen(reference)
        sides, refuted = {**mine, **reference.paired()}, ""
        while sides:
            try:
                paired = self._exchanged(sides)
                for side in mine.values():
                    if side.who in sides:
                        _check_outputs(side)
                warm = _warm(sides)
            except _SideLostError as lost:
                del sides[lost.who]
                notes.append(str(lost))
                refuted = lost.why if lost.refuted and lost.who == CANDIDATE else refuted
                continue
            settings = {"throttle": self._clock.throttle(), **warm}
            measured = _measurement(paired, sides, reference, notes, floor_us, self._bench.cuda, settings)
            return dataclasses.replace(measured, refuted=refuted)
        raise WorkerError("nothing could be timed: " + "; ".join([*reference.notes, *notes]))

    def _screen(self, reference: _Reference) -> None:
        for who, side in list(reference.sides.items()):
            if who not in reference.screened:
                try:
                    times = [statistics.median(side(self._bench.cuda.block_ms / 2)) for _ in range(SCREEN_BLOCKS)]
                except _SideLostError as lost:
                    del reference.sides[who]
                    reference.notes.append(str(lost))
                    continue
                reference.screened[who] = statistics.median(times)

    def _exchanged(self, sides: Mapping[str, _Side]) -> timing.Paired:
        """The paired times; of two plans half of the blocks in each other's executor."""
        plans = [sides[who].replay for who in (CANDIDATE, INCUMBENT) if who in sides]
        replays = [replay for replay in plans if replay is not None]
        if len(replays) < 2:
            return self._paired(sides)
        one = self._paired(sides, share=0.5)
        for who in (CANDIDATE, INCUMBENT):
            _check_outputs(sides[who])
        try:
            replays[0].swap(replays[1])
        except (Stop, ExecutorFault, NotReplayable) as error:
            raise _SideLostError(INCUMBENT, f"could not change places: {error}") from error
        return timing.combined(one, self._paired(sides, share=0.5))

    def _paired(self, sides: Mapping[str, _Side], share: float = 1.0) -> timing.Paired:
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
        )
        return Child(self._server, CHILD_KIND, confinement)

    def _open(self, who: str, child: Child, task: Task, precision: Precision, source: str | None) -> _Side:
        request = _open_request(task, source, precision, str(child.scratch), self._bench.cuda.flush_l2)
        try:
            child.start()
        except (ChildEnded, ChildTimeout) as error:
            raise _SideLostError(who, f"its process did not start: {error}") from error
        _answer(child.ask, who, request, self._bench.limits.run_s)
        return _Side(who, child.ask, ScoreKind.UNVERIFIED)

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
                reference.sides[who] = _Side(who, worker.ask, ScoreKind.MEASURED)
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
    places = dict.fromkeys(("HOME", "TMPDIR"), folder)
    # What torch.compile made for one task serves whoever times the task again.
    caches = dict.fromkeys(("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"), str(bench.scratch / "baselines"))
    extra = {**places, **caches, **bench.environment, "PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-m", module]
    return Worker(command, environment=scrubbed_environment(extra), cwd=folder, log=str(Path(folder, "log.txt")))


def _measurement(
    paired: timing.Paired,
    sides: Mapping[str, _Side],
    reference: _Reference,
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
    screened = {f"{who}_alone_us": f"{value:.4g}" for who, value in reference.screened.items()}
    kept = ratios if CANDIDATE in sides else ()
    note = "; ".join([*reference.notes, *notes])
    return Measurement(timings, kept, floor_us, {**reference.settings, **protocol, **seen, **screened}, note)


def _is_new_best(measured: Measurement) -> bool:
    """Whether a plan was timed and nothing shows that the incumbent is as good."""
    plan, over = measured.timing(CANDIDATE), measured.ratio(INCUMBENT)
    return plan is not None and plan.score_kind is ScoreKind.MEASURED and (over is None or over.lo > 1.0)


def _check_outputs(side: _Side) -> None:
    if side.replay is not None:
        try:
            side.replay.check()
        except (Stop, ExecutorFault, NotReplayable) as error:
            why = f"outputs of timed calls: {error}"
            wrong = isinstance(error, Stop) and error.failure.status is Status.REJECTED
            raise _SideLostError(side.who, why, refuted=wrong) from error


def _warm(sides: Mapping[str, _Side]) -> dict[str, str]:
    """The candidate's time on one set again and again, where that fits into L2."""
    replay = sides[CANDIDATE].replay if CANDIDATE in sides else None
    if replay is None or not replay.cold_matters:
        return {}
    request = {"op": "time_block", "ms": WARM_MS, "cold": False}
    times = _answer(replay.ask, CANDIDATE, request, BLOCK_TIMEOUT_S)["times_us"]
    return {"candidate_warm_us": f"{statistics.median(times):.4g}"}
