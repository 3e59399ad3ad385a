"""What is timed, and in which process: a candidate's plan in an executor, a candidate in its own process, the task's
reference in the baseline's. Whatever fails takes its side out of the comparison, nothing else."""

from __future__ import annotations

import contextlib
import math
import secrets
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from engine.canonical import Json
from engine.errors import WorkerError
from engine.judging.children import ChildEnded, ChildTimeout
from engine.judging.executors import ExecutorFault
from engine.judging.judge import Stop
from engine.judging.messages import is_memory
from engine.judging.replayed import NotReplayable
from engine.judging.timed import TimedReplay
from engine.records import Precision, ScoreKind, Status, Task
from engine.settings import CudaSettings, LimitSettings
from engine.worker import Worker, scrubbed_environment

PACKAGE = Path(__file__).resolve().parents[2]
BLOCK_TIMEOUT_S = 120.0
NOTE_CHARS = 1000
WARM_MS = 5.0
SECOND_CLOCK_MS, CLOCKS_AGREE, CLOCK_TRIES = 20.0, 0.03, 3
"""One run of replays by two clocks; starting it and noticing its end take tens of µs of these milliseconds."""

SUSTAINED = 0.15
"""By so much calls in a row may be slower than measured ones: clocks fall under load, and graphs start one by one."""
CANDIDATE, INCUMBENT, EAGER = "candidate", "incumbent", "eager"


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
    required: bool = False
    """judge.sandbox=required: a process of a candidate's must have every layer."""


class SideLostError(Exception):
    """A timed process failed; `who` is out of the comparison, and `with_it` too; `why` goes into the note. `ended`: the
    process is gone, which another time it may not be."""

    def __init__(
        self, who: str, why: str, *, refuted: bool = False, with_it: tuple[str, ...] = (), ended: bool = False
    ) -> None:
        super().__init__(f"{who}: {why}")
        self.who, self.why, self.refuted, self.with_it, self.ended = who, why, refuted, with_it, ended


class Replays(Protocol):
    """Gives a candidate's plan beside an executor, to be opened; Untraceable or NotReplayable when there is none."""

    def timed(self, task: Task, source: str, who: str) -> contextlib.AbstractContextManager[TimedReplay]: ...

    def free(self) -> None:
        """Give up memory that is kept only to save time."""


Ask = Callable[[Json, float], Json]
"""Sends one message to a timed process and waits so many seconds for the answer."""


class Side:
    """One timed form, `who`, behind `ask`. `replay`: its plan in an executor; None for a process with its own clock."""

    def __init__(self, who: str, ask: Ask, kind: ScoreKind, replay: TimedReplay | None = None) -> None:
        self.who, self._ask, self.kind, self.replay = who, ask, kind, replay

    def __call__(self, milliseconds: float) -> Sequence[float]:
        request = {"op": "time_block", "who": self.who, "ms": milliseconds}
        times = answer(self._ask, self.who, request, BLOCK_TIMEOUT_S).get("times_us")
        if not (isinstance(times, list) and times and all(_is_time(value) for value in times)):
            raise SideLostError(self.who, f"expected positive times in µs, got {str(times)[:200]}")
        return times


def _is_time(value: Json) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def answer(ask: Ask, who: str, request: Json, timeout_s: float) -> Mapping[str, Json]:
    """One command to a timed process; SideLostError when it fails."""
    try:
        given = ask(request, timeout_s)
    except (WorkerError, ChildEnded, ChildTimeout, ExecutorFault) as error:
        raise SideLostError(who, f"its timed process was lost: {error}", ended=True) from error
    if not isinstance(given, Mapping) or "error" in given:
        raise SideLostError(who, _complaint(given))
    return given


def _complaint(given: Json) -> str:
    error = given["error"] if isinstance(given, Mapping) else given
    if isinstance(error, Mapping) and "type" in error and "message" in error:
        return f"{error['type']}: {error['message']}"[:NOTE_CHARS]
    return str(error)[:NOTE_CHARS]


@dataclass(slots=True)
class Reference:
    """The baseline process of one task, kept while the engine works on it: compiling is paid once."""

    key: tuple[str, Precision]
    worker: Worker
    sides: dict[str, Side]
    settings: Mapping[str, str]
    notes: list[str] = field(default_factory=list)
    screened: dict[str, float] = field(default_factory=dict)
    """µs of each side, timed alone once: which is the fastest."""
    alone: bool = False
    """Built while nobody else was let in: more memory there is none."""
    passing: bool = False
    """A side is absent because its process was lost or memory lacked."""

    def absent(self, note: str, *, passing: bool) -> None:
        """A side is left out for as long as this process is kept."""
        self.notes.append(note)
        self.passing = self.passing or passing or is_memory(note)

    @property
    def lacks_memory(self) -> bool:
        """Whether building it alone may give more sides."""
        return not self.alone and any(map(is_memory, self.notes))

    def drop_slow(self) -> None:
        """Free the memory of forms that are not the fastest; their times, taken alone, stay on record."""
        for who in self.sides.keys() - self.paired().keys():
            del self.sides[who]
            answer(self.worker.ask, who, {"op": "drop", "who": who}, BLOCK_TIMEOUT_S)

    def paired(self) -> dict[str, Side]:
        """Eager, which speed-ups are stated over, and the fastest."""
        fastest = min(self.screened, key=lambda who: self.screened[who], default=None)
        return {who: side for who, side in self.sides.items() if who in (EAGER, fastest)}


def open_reference(bench: Bench, key: tuple[str, Precision], task: Task, sides: Sequence[str]) -> Reference:
    """A new baseline process with `sides` built; what fails is noted as absent."""
    folder = tempfile.mkdtemp(prefix="baseline-", dir=bench.scratch)
    worker = _spawn(bench, "engine.judging.baseline", folder)
    reference = Reference(key, worker, {}, {})
    try:
        request = open_request(task, None, key[1], folder, bench.cuda.flush_l2)
        opened = answer(worker.ask, "reference", request, bench.limits.run_s)
        reference.settings = {**opened["settings"], "input_sets": str(opened["sets"])}
        for who in sides:
            absent = answer(worker.ask, who, {"op": "build", "who": who}, bench.limits.run_s)["absent"]
            if absent is None:
                reference.sides[who] = Side(who, worker.ask, ScoreKind.MEASURED)
            else:
                reference.absent(f"{who} is absent: {absent}", passing=False)
    except SideLostError as lost:
        reference.absent(f"{lost.who} is absent: {lost.why}", passing=lost.ended)
    return reference


def open_request(task: Task, source: str | None, precision: Precision, folder: str, flush_l2: bool) -> Json:
    """The first message to a process that times what it imports; `source` None: the reference itself."""
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
    command = [sys.executable, "-P", "-m", "engine.worker", module]
    return Worker(command, environment=scrubbed_environment(extra), cwd=folder, log=str(Path(folder, "log.txt")))


def check_outputs(side: Side) -> None:
    """SideLostError where what the timed calls computed is wrong, which refutes it, or cannot be read."""
    if side.replay is not None:
        try:
            side.replay.check()
        except (Stop, ExecutorFault, NotReplayable) as error:
            why = f"outputs of timed calls: {error}"
            wrong = isinstance(error, Stop) and error.failure.status is Status.REJECTED
            if not wrong:
                side.replay.spoil()
            raise SideLostError(side.who, why, refuted=wrong) from error
        except RuntimeError as error:
            if not is_memory(error):
                raise
            why = f"no memory to compare outputs of timed calls: {str(error).splitlines()[0]}"
            raise SideLostError(side.who, why) from error


def second_clock(sides: Mapping[str, Side], median_us: float) -> dict[str, str]:
    """The candidate's events against its host's clock, in one run and against the time that is to be reported, which a
    run on warm caches cannot exceed by much. SideLostError when they disagree in every try: neither is believed."""
    replay = sides[CANDIDATE].replay if CANDIDATE in sides else None
    if replay is None:
        return {}
    apart = longer = math.inf
    for _ in range(CLOCK_TRIES):
        request = {"op": "wall_clock", "ms": SECOND_CLOCK_MS}
        given = answer(replay.ask, CANDIDATE, request, BLOCK_TIMEOUT_S)
        apart = min(apart, abs(given["wall_us"] / given["events_us"] - 1.0))
        longer = min(longer, given["wall_us"] / median_us - 1.0)
        if apart <= CLOCKS_AGREE and longer <= SUSTAINED:
            return {"wall_clock_apart": f"{apart:.2g}"}
    text = (
        f"its time by events and by the host's clock differ by {100 * apart:.3g} %, and calls in a row take "
        f"{100 * longer:+.3g} % of the time measured, in {CLOCK_TRIES} tries"
    )
    raise SideLostError(CANDIDATE, text)


def warm_time(sides: Mapping[str, Side]) -> dict[str, str]:
    """The candidate's time on one set again and again, where that fits into L2."""
    replay = sides[CANDIDATE].replay if CANDIDATE in sides else None
    if replay is None or not replay.cold_matters:
        return {}
    request = {"op": "time_block", "ms": WARM_MS, "cold": False}
    times = answer(replay.ask, CANDIDATE, request, BLOCK_TIMEOUT_S)["times_us"]
    return {"candidate_warm_us": f"{statistics.median(times):.4g}"}
