from __future__ import annotations

import itertools
import math
import random

import pytest

from engine.judging.timing import Estimate, Paired, Protocol, combined, median_estimate, ratio_estimate, run_paired

PROTOCOL = Protocol(min_blocks=20, max_blocks=200, block_ms=5.0, ratio_halfwidth=0.01, budget_s=10.0)


def frozen_clock() -> float:
    return 0.0


def noisy(median_us: float, rng: random.Random, sigma: float = 0.02, calls: int = 9):
    return lambda ms: [median_us * math.exp(rng.gauss(0, sigma)) for _ in range(calls)]


@pytest.mark.parametrize("true_ratio", [0.5, 1.0, 1.03, 4.0])
def test_recovers_a_known_ratio_through_noise(true_ratio):
    rng = random.Random(7)
    sides = {"candidate": noisy(100.0, rng), "eager": noisy(100.0 * true_ratio, rng)}
    paired = run_paired(sides, PROTOCOL, seed=1, now=frozen_clock)
    estimate = paired.ratios["eager"]
    assert estimate.value == pytest.approx(true_ratio, rel=0.01)
    assert estimate.lo <= estimate.value <= estimate.hi
    assert paired.medians["candidate"].value == pytest.approx(100.0, rel=0.01)
    assert estimate.n == paired.blocks >= PROTOCOL.min_blocks


def test_drift_common_to_both_sides_cancels():
    step = itertools.count()
    sides = {who: lambda ms, base=base: [base * 1.02 ** next(step)] for who, base in (("candidate", 10), ("eager", 20))}
    protocol = Protocol(60, 60, 5.0, 0.0, 10.0)
    paired = run_paired(sides, protocol, seed=3, now=frozen_clock)
    assert paired.ratios["eager"].value == pytest.approx(2.0, rel=0.025)
    assert paired.medians["candidate"].hi > 1.5 * paired.medians["candidate"].lo


@pytest.mark.parametrize(
    ("values", "least", "most"), [(8, 0.975, 1.0), (11, 0.975, 1.0), (20, 0.91, 0.985), (30, 0.91, 0.985)]
)
def test_interval_covers_about_95_percent_and_more_of_few_values(values, least, most):
    rng = random.Random(11)
    trials = 400
    hits = 0
    for trial in range(trials):
        estimate = ratio_estimate([math.log(1.3) + rng.gauss(0, 0.03) for _ in range(values)], seed=trial)
        hits += estimate.lo <= 1.3 <= estimate.hi
    assert least <= hits / trials <= most


def test_same_side_twice_rarely_looks_different():
    outside = 0
    for trial in range(40):
        rng = random.Random(trial)
        sides = {"candidate": noisy(50.0, rng), "eager": noisy(50.0, rng)}
        estimate = run_paired(sides, PROTOCOL, seed=trial, now=frozen_clock).ratios["eager"]
        outside += not estimate.lo <= 1.0 <= estimate.hi
    assert outside <= 6


@pytest.mark.parametrize(
    ("sigma", "seconds_per_look", "stopped", "blocks"),
    [
        pytest.param(0.001, 0.0, "precise", 8, id="quiet-after-fewer"),
        pytest.param(0.01, 0.0, "precise", 20, id="quiet"),
        pytest.param(0.8, 0.0, "blocks", 200, id="noisy-until-max-blocks"),
        pytest.param(0.8, 1.0, "budget", 11, id="noisy-until-budget"),
        pytest.param(0.8, 100.0, "budget", 3, id="one-block-exceeds-the-budget"),
    ],
)
def test_stops_for_the_stated_reason(sigma, seconds_per_look, stopped, blocks):
    rng = random.Random(5)
    looks = itertools.count()
    sides = {"candidate": noisy(100.0, rng, sigma, 1), "eager": noisy(100.0, rng, sigma, 1)}
    paired = run_paired(sides, PROTOCOL, seed=2, now=lambda: next(looks) * seconds_per_look)
    assert (paired.stopped, paired.blocks) == (stopped, blocks)


def test_each_block_times_every_side_in_an_order_that_varies():
    calls = []

    def sampler(who):
        return lambda ms: calls.append((who, ms)) or [10.0]

    run_paired({who: sampler(who) for who in "abc"}, PROTOCOL, seed=4, now=frozen_clock)
    blocks = [tuple(who for who, _ in calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert all(sorted(block) == ["a", "b", "c"] for block in blocks)
    assert len(set(blocks)) >= 4
    assert {ms for _, ms in calls} == {PROTOCOL.block_ms}


def test_blocks_at_a_lowered_clock_are_dropped():
    reads = itertools.count()
    slow_blocks = {3, 8}

    def clock():
        return 1500.0 if next(reads) // 2 in slow_blocks else 1980.0

    rng = random.Random(1)
    sides = {"candidate": noisy(10.0, rng, 0.001), "eager": noisy(20.0, rng, 0.001)}
    paired = run_paired(sides, PROTOCOL, seed=1, now=frozen_clock, clock_mhz=clock)
    assert (paired.dropped, paired.blocks, paired.clock_mhz) == (2, 8, 1980.0)


def test_one_side_alone_is_timed_without_ratios():
    paired = run_paired({"eager": noisy(10.0, random.Random(1))}, PROTOCOL, seed=1, now=frozen_clock)
    assert paired.ratios == {}
    assert paired.medians["eager"].value == pytest.approx(10.0, rel=0.02)


def test_the_same_seed_gives_the_same_interval_and_no_values_is_an_error():
    values = [random.Random(3).gauss(10, 1) for _ in range(25)]
    assert median_estimate(values, 9) == median_estimate(values, 9)
    with pytest.raises(ValueError, match="at least one"):
        median_estimate([], 0)


def paired(ratio, width):
    ends = [math.exp(math.log(ratio) + side * width) for side in (-1, 1)]
    estimate = Estimate(ratio, *ends, 10)
    medians = {"c": Estimate(10.0, 9.9, 10.1, 10), "i": Estimate(20.0, 19.9, 20.1, 10)}
    return Paired(medians, {"i": estimate}, 10, 1, 1980.0, "precise")


@pytest.mark.parametrize(
    ("one", "other", "value", "halfwidth"),
    [
        pytest.param((1.03, 0.0), (1 / 1.03, 0.0), 1.0, math.log(1.03), id="a-place-cancels-and-widens"),
        pytest.param((1.2, 0.01), (1.2, 0.01), 1.2, 0.01 / math.sqrt(2), id="agreement-narrows"),
        pytest.param((1.0, 0.03), (1.0, 0.04), 1.0, 0.025, id="half-widths-in-squares"),
    ],
)
def test_two_runs_with_places_exchanged_are_one(one, other, value, halfwidth):
    both = combined(paired(*one), paired(*other))
    ratio = both.ratios["i"]
    assert ratio.value == pytest.approx(value)
    assert math.log(ratio.hi / ratio.value) == pytest.approx(halfwidth)
    assert math.log(ratio.value / ratio.lo) == pytest.approx(halfwidth)
    assert (ratio.n, both.blocks, both.dropped, both.stopped) == (20, 20, 2, "precise")


def test_what_an_exchange_leaves_widens_a_ratio_by_its_share_of_the_shorter_time():
    ratio = combined(paired(1.2, 0.01), paired(1.2, 0.01), residue_us=0.1).ratios["i"]
    assert math.log(ratio.hi / ratio.value) == pytest.approx(0.01 / math.sqrt(2) + math.log(1.01))
    assert math.log(ratio.value / ratio.lo) == pytest.approx(0.01 / math.sqrt(2) + math.log(1.01))
