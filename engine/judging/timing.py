"""Paired timing: alternating blocks in random order, median of paired log-ratios, bootstrap intervals, early stopping.

Pure: the clock, the samplers and the SM clock are passed in.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
COVERAGE_PCT = 95.0
FEW = 12
"""Below so many values the interval is from the least to the largest, which holds the median with probability
1 - 2 ** (1 - n): at eight 99 %. A bootstrap of so few promises 95 % and keeps less."""

FEWEST_BLOCKS = 8
STEADY = 0.5
"""Fewer than the least number of blocks are enough when the interval is within this share of the width asked for."""

CLOCK_DROP = 0.97
"""A block whose SM clock fell below this share of the run's median clock is dropped and repeated."""

Sampler = Callable[[float], Sequence[float]]
"""Times one side for about so many milliseconds and returns the time of each call in microseconds."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and its 95 % interval over n values."""

    value: float
    lo: float
    hi: float
    n: int


@dataclass(frozen=True, slots=True)
class Protocol:
    """When to stop: at least `min_blocks`, then as soon as every ratio's interval is within ±`ratio_halfwidth` of it,
    or `max_blocks` or `budget_s` are spent; after FEWEST_BLOCKS already where the interval is half as wide. `block_ms`
    is the time per side and block."""

    min_blocks: int
    max_blocks: int
    block_ms: float
    ratio_halfwidth: float
    budget_s: float


@dataclass(frozen=True, slots=True)
class Paired:
    """Medians per side (µs) and the ratio of each other side to the first, with what was dropped and why it ended."""

    medians: Mapping[str, Estimate]
    ratios: Mapping[str, Estimate]
    blocks: int
    dropped: int
    clock_mhz: float | None
    stopped: str
    """precise, blocks or budget."""


def median_estimate(values: Sequence[float], seed: int) -> Estimate:
    """Median of `values` with a percentile-bootstrap 95 % interval, of few values with their range; ValueError when
    there are none."""
    if not values:
        raise ValueError("expected at least one value to take a median of")
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) < FEW:
        return Estimate(float(np.median(sample)), float(sample.min()), float(sample.max()), len(sample))
    generator = np.random.default_rng(seed)
    drawn = sample[generator.integers(0, len(sample), size=(RESAMPLES, len(sample)))]
    tail = (100.0 - COVERAGE_PCT) / 2
    lo, hi = np.percentile(np.median(drawn, axis=1), [tail, 100.0 - tail])
    return Estimate(float(np.median(sample)), float(lo), float(hi), len(sample))


def ratio_estimate(log_ratios: Sequence[float], seed: int) -> Estimate:
    """Median ratio and interval from paired logarithms of ratios."""
    logs = median_estimate(log_ratios, seed)
    return Estimate(math.exp(logs.value), math.exp(logs.lo), math.exp(logs.hi), logs.n)


def run_paired(
    samplers: Mapping[str, Sampler],
    protocol: Protocol,
    *,
    seed: int,
    now: Callable[[], float],
    clock_mhz: Callable[[], float | None] = lambda: None,
) -> Paired:
    """Time all sides in blocks of random order; each ratio is (other side) / (first side), paired by block.

    `now` is in seconds. A sampler's exceptions pass through.
    """
    order = random.Random(seed)
    record = _Record(list(samplers), seed)
    started = now()
    stopped = "blocks"
    for _ in range(protocol.max_blocks):
        sides = list(samplers)
        order.shuffle(sides)
        before = clock_mhz()
        times = {side: statistics.median(samplers[side](protocol.block_ms)) for side in sides}
        record.add(times, _lower(before, clock_mhz()))
        if record.precise(protocol):
            stopped = "precise"
            break
        if now() - started > protocol.budget_s and record.count >= min(protocol.min_blocks, 3):
            stopped = "budget"
            break
    return record.result(stopped)


def combined(one: Paired, other: Paired, residue_us: float = 0.0) -> Paired:
    """Two runs of the same sides with their places exchanged, as one: geometric means, in which what a place does to
    its side cancels. Half-widths add in squares, as those of independent estimates, and half the distance of the two
    runs with them: blocks within a run say nothing of how much a place matters. Ratios are wider by `residue_us` of the
    shorter time, which exchanging does not cancel."""

    def both(a: Estimate, b: Estimate) -> Estimate:
        middle = (math.log(a.value) + math.log(b.value)) / 2
        apart = math.log(a.value / b.value)
        low = math.hypot(math.log(a.value / a.lo), math.log(b.value / b.lo), apart) / 2
        high = math.hypot(math.log(a.hi / a.value), math.log(b.hi / b.value), apart) / 2
        return Estimate(math.exp(middle), math.exp(middle - low), math.exp(middle + high), a.n + b.n)

    medians = {side: both(one.medians[side], other.medians[side]) for side in one.medians}
    first = next(iter(medians.values())).value

    def ratio(side: str) -> Estimate:
        found = both(one.ratios[side], other.ratios[side])
        wider = 1.0 + residue_us / min(first, medians[side].value)
        return Estimate(found.value, found.lo / wider, found.hi * wider, found.n)

    clocks = [clock for clock in (one.clock_mhz, other.clock_mhz) if clock is not None]
    return Paired(
        medians=medians,
        ratios={side: ratio(side) for side in one.ratios},
        blocks=one.blocks + other.blocks,
        dropped=one.dropped + other.dropped,
        clock_mhz=min(clocks) if clocks else None,
        stopped=one.stopped if one.stopped == other.stopped else f"{one.stopped}, {other.stopped}",
    )


def _lower(before: float | None, after: float | None) -> float | None:
    known = [clock for clock in (before, after) if clock is not None]
    return min(known) if known else None


@dataclass(frozen=True, slots=True)
class _Block:
    times: Mapping[str, float]
    clock_mhz: float | None


class _Record:
    def __init__(self, sides: Sequence[str], seed: int) -> None:
        self.first, self.others = sides[0], list(sides[1:])
        self.seed = seed
        self.blocks: list[_Block] = []

    def add(self, times: Mapping[str, float], clock_mhz: float | None) -> None:
        self.blocks.append(_Block(times, clock_mhz))

    def kept(self) -> list[_Block]:
        """Blocks at full clock. A block without a reading is kept: no clock can be read on some machines."""
        clocks = [block.clock_mhz for block in self.blocks if block.clock_mhz is not None]
        floor = CLOCK_DROP * statistics.median(clocks) if clocks else 0.0
        return [block for block in self.blocks if block.clock_mhz is None or block.clock_mhz >= floor]

    @property
    def count(self) -> int:
        return len(self.kept())

    def precise(self, protocol: Protocol) -> bool:
        if self.count >= protocol.min_blocks:
            return self.halfwidth() <= protocol.ratio_halfwidth
        return self.count >= FEWEST_BLOCKS and self.halfwidth() <= STEADY * protocol.ratio_halfwidth

    def halfwidth(self) -> float:
        """The widest ratio's half interval relative to its value; of the first side's median when it is alone."""
        estimates = list(self.ratios().values()) or [self.median(self.first)]
        return max((estimate.hi - estimate.lo) / 2 / estimate.value for estimate in estimates)

    def ratios(self) -> dict[str, Estimate]:
        blocks = self.kept()
        return {
            other: ratio_estimate([math.log(b.times[other] / b.times[self.first]) for b in blocks], self.seed)
            for other in self.others
        }

    def median(self, side: str) -> Estimate:
        return median_estimate([block.times[side] for block in self.kept()], self.seed)

    def result(self, stopped: str) -> Paired:
        kept = self.kept()
        clocks = [block.clock_mhz for block in kept if block.clock_mhz is not None]
        return Paired(
            medians={side: self.median(side) for side in (self.first, *self.others)},
            ratios=self.ratios(),
            blocks=len(kept),
            dropped=len(self.blocks) - len(kept),
            clock_mhz=statistics.median(clocks) if clocks else None,
            stopped=stopped,
        )
