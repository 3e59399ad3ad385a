"""What the clock said of the sides of one comparison, and the measurement that it makes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.judging import timing
from engine.judging.gpu_state import lease, share
from engine.judging.messages import is_memory
from engine.judging.sides import CANDIDATE, INCUMBENT, Reference, Side, SideLostError
from engine.records import Measurement, Ratio, ScoreKind, Timing
from engine.settings import CudaSettings

PLACEMENT_US = 0.3
"""What the same call takes more or less in another process and other memory, whatever its size (measured:
docs/measurements/judge_h200.md). Two plans exchange their executors; of a plan and a baseline no block shows it, so
their intervals are wider by it."""


class Stints:
    """Leases of the GPU, alone for the clock or beside others, and the seconds spent so. `large`: what is timed needs
    much of the device's memory."""

    def __init__(self, lock: Path) -> None:
        self.lock, self.alone_s, self.shared_s = lock, 0.0, 0.0
        self.large = False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with lease(self.lock):
            started = time.monotonic()
            try:
                yield
            finally:
                self.alone_s += time.monotonic() - started

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with share(self.lock, large=self.large):
            started = time.monotonic()
            try:
                yield
            finally:
                self.shared_s += time.monotonic() - started


@dataclass(slots=True)
class Notes:
    """What is said beside the times. `passing`: another time may give more; `lacks_memory`: one with nobody beside."""

    said: list[str]
    passing: bool = False
    lacks_memory: bool = False

    def lost(self, error: SideLostError) -> None:
        """A side is left out. That a candidate was refuted stays true."""
        self.said.append(str(error))
        self.passing = self.passing or not error.refuted
        self.lacks_memory = self.lacks_memory or (not error.refuted and is_memory(error))


@dataclass(slots=True)
class Clocked:
    """What the clock said of `sides`, the candidate first where there is one. `seen`: for the record; `refuted`: why
    the candidate was found wrong, or empty."""

    paired: timing.Paired
    sides: dict[str, Side]
    seen: Mapping[str, str]
    refuted: str

    def verify(self, mine: Mapping[str, Side], notes: Notes, compare: Callable[[Side], None]) -> None:
        """Take out sides whose timed outputs are wrong or cannot be read, as SideLostError of `compare` says."""
        for who, side in mine.items():
            if who in self.sides:
                try:
                    compare(side)
                except SideLostError as lost:
                    self.leave_out(who)
                    notes.lost(lost)
                    self.refuted = refuted_by(lost) or self.refuted

    def leave_out(self, who: str) -> None:
        """Its own time and what is stated over it."""
        del self.sides[who]
        medians = {side: found for side, found in self.paired.medians.items() if side != who}
        ratios = {side: found for side, found in self.paired.ratios.items() if side != who}
        self.paired = dataclasses.replace(self.paired, medians=medians, ratios=ratios)


def measurement_of(
    paired: timing.Paired,
    sides: Mapping[str, Side],
    reference: Reference,
    notes: Notes,
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
    note = "; ".join([*reference.notes, *notes.said])
    passing = notes.passing or reference.passing
    return Measurement(
        timings, kept, floor_us, {**reference.settings, **protocol, **seen, **screened}, note, passing=passing
    )


def _placement(paired: timing.Paired, over: str) -> float:
    """PLACEMENT_US relative to the shorter time of a ratio; 0 where places were exchanged."""
    times = [paired.medians[who].value for who in (CANDIDATE, over) if who in paired.medians]
    return 0.0 if over == INCUMBENT or not times else PLACEMENT_US / min(times)


def is_new_best(measured: Measurement) -> bool:
    """Whether a plan was timed and nothing shows that the incumbent is as good."""
    plan, over = measured.timing(CANDIDATE), measured.ratio(INCUMBENT)
    return plan is not None and plan.score_kind is ScoreKind.MEASURED and (over is None or over.lo > 1.0)


def refuted_by(lost: SideLostError) -> str:
    return lost.why if lost.refuted and lost.who == CANDIDATE else ""
