"""Where buffers lie in the arena, and what their guards notice."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch

from engine.judging import layout
from engine.judging.layout import ALIGNMENT, GUARD_BYTES, JITTER, Guards, lay_out, set_bytes
from engine.judging.plan import Argument, Launch, Life, Origin, Plan, Step
from tests.support.plans import buffer, call, host, literal, plan, ref

CALL_FILL, KEPT_FILL = 0x4B, 0xFF
INPUT, STATE, OP = Origin.INPUT, Origin.STATE, Origin.OP


def launch(*buffers: int, stream: int = 0) -> Step:
    return Step(stream, (Launch(0, (1, 1, 1), tuple(Argument("pointer", index) for index in buffers)),))


SIMPLE = plan([buffer(64, INPUT, name="0"), buffer(64)], call([launch(0, 1)], ref(1, 16)))
ODD = plan(
    [buffer(size, INPUT, name=str(size), dtype="uint8") for size in (1, 2, 3, 5, 7, 13, 255, 4095, 4097)],
    call([], ref(0, 1, dtype="uint8")),
)
ZERO = plan(
    [buffer(0, INPUT, name="0"), buffer(0), buffer(24), buffer(0, STATE, kept=True, name="w"), buffer(0)],
    call([launch(0, 1, 2)], ref(1, 0), ref(2, 6), tree={"tuple": ["t", "t"]}),
)
KEPT = plan(
    [
        buffer(64, INPUT, name="0"),
        buffer(36, STATE, kept=True, name="w"),
        buffer(20, kept=True),
        buffer(64, INPUT, kept=True, name="0"),
        literal([1.0, 2.0, 3.0], kept=True),
        literal([4.0]),
        buffer(64),
        buffer(36, OP, kept=True),
    ],
    call([launch(0, 1, 2, 3, 4, 5, 6, 7)], ref(6, 16)),
)
ONLY_KEPT = plan([buffer(12, kept=True)], call([], ref(0, 3)))
EXPORTS = plan(
    [buffer(64, INPUT, name="0"), buffer(64, OP), buffer(64), buffer(26, OP, dtype="float16"), buffer(0, OP)],
    call(
        [host("relu", ref(0, 16), makes=(1,))],
        *(ref(1, 2, 4, stride=(1, 2)), ref(2, 16), ref(3, 13, dtype="float16"), ref(4, 0)),
        tree={"tuple": ["t"] * 4},
    ),
)
FIRST_MAKES = plan(
    [buffer(64, INPUT, name="0"), buffer(64, OP), buffer(64)],
    call([launch(0, 2)], ref(2, 16)),
    first=call([host("relu", ref(0, 16), makes=(1,))], ref(1, 16)),
)
PLANS = {
    "simple": SIMPLE,
    "odd-sizes": ODD,
    "zero-bytes": ZERO,
    "kept": KEPT,
    "only-kept": ONLY_KEPT,
    "exports": EXPORTS,
    "first-makes": FIRST_MAKES,
    "none": plan([], call([], tree=None)),
}
SHAPES = pytest.mark.parametrize("described", PLANS.values(), ids=PLANS)
SEEDS = pytest.mark.parametrize("seed", [None, 0, 2**61])


def taken(placed: layout.Layout, number: int) -> list[tuple[int, int]]:
    """Start and end of all that a set uses, kept buffers included, in order."""
    rows = zip(placed.offsets[number], placed.sizes, strict=True)
    exports = zip(placed.exports[number], placed.export_sizes, strict=True)
    return sorted({(start, start + size) for start, size in (*rows, *exports) if start >= 0})


@SHAPES
@SEEDS
@pytest.mark.parametrize("sets", [1, 3])
def test_buffers_lie_apart_aligned_and_inside_between_guards(described, seed, sets):
    placed = lay_out(described, sets, seed)
    everything = sorted({span for number in range(sets) for span in taken(placed, number)})
    for (_, end), (start, _) in itertools.pairwise([(0, 0), *everything, (placed.bytes, placed.bytes)]):
        assert start - end >= GUARD_BYTES
    assert all(start % (ALIGNMENT if seed is None else JITTER) == 0 for start, _ in everything)
    befores = [placed.kept_end, *(high for _, high in placed.regions[:-1])]
    for (low, high), before in zip(placed.regions, befores, strict=True):
        assert low == before
        assert placed.kept_end <= low < high <= placed.bytes - GUARD_BYTES


@SHAPES
def test_each_set_has_its_own_buffers_and_all_share_what_is_kept(described):
    placed = lay_out(described, 2, 7)
    for index, made in enumerate(described.buffers):
        first, second = (placed.offsets[number][index] for number in range(2))
        if made.origin is OP:
            assert (first, second) == (-1, -1)
        elif made.life is Life.KEPT:
            assert first == second < placed.kept_end
        else:
            assert first != second
            for number, place in enumerate((first, second)):
                low, high = placed.regions[number]
                assert low + GUARD_BYTES <= place <= high - GUARD_BYTES - made.bytes


@SHAPES
def test_a_seed_repeats_a_layout_and_another_gives_another(described):
    assert lay_out(described, 2, 5) == lay_out(described, 2, 5)
    if any(place >= 0 for place in lay_out(described, 2, 5).offsets[0]):
        assert len({lay_out(described, 2, seed).offsets for seed in range(20)}) > 10
    placed = lay_out(described, 1, None)
    assert placed == lay_out(described, 1, None)


@SHAPES
@SEEDS
def test_what_the_candidate_allocates_lies_in_spans_of_its_own(described, seed):
    placed = lay_out(described, 2, seed)
    for number, span in enumerate(placed.fresh):
        for index, made in enumerate(described.buffers):
            start = placed.offsets[number][index]
            low, high = placed.kept_fresh if made.life is Life.KEPT else span
            if start >= 0 and made.origin is Origin.EMPTY:
                assert low <= start <= high - made.bytes
            elif start >= 0:
                assert start + made.bytes <= low or high <= start


def test_results_of_operations_have_a_place_in_each_set_others_none():
    placed = lay_out(EXPORTS, 2, 3)
    assert placed.export_sizes == (32, 0, 26, 0)
    for row in placed.exports:
        assert [place >= 0 for place in row] == [True, False, True, True]
    assert set(placed.exports[0]) & set(placed.exports[1]) == {-1}


def test_a_result_that_only_the_first_call_makes_has_a_place_too():
    placed = lay_out(FIRST_MAKES, 1, 3)
    assert placed.export_sizes == (64,)
    assert placed.exports[0][0] > placed.kept_end


def test_the_size_of_a_set_is_that_of_its_region():
    low, high = lay_out(KEPT, 3, 0).regions[0]
    assert set_bytes(KEPT) == high - low
    assert 128 <= set_bytes(SIMPLE) - 3 * GUARD_BYTES < 128 + 2 * 2 * ALIGNMENT


def filled(described: Plan, seed: int | None) -> tuple[layout.Layout, torch.Tensor, Guards]:
    placed = lay_out(described, 2, seed)
    memory = torch.full((placed.bytes,), KEPT_FILL, dtype=torch.uint8)
    for low, high in placed.regions:
        memory[low:high] = CALL_FILL
    return placed, memory, Guards(placed, memory)


@SHAPES
@SEEDS
@pytest.mark.parametrize("number", [0, 1])
def test_one_byte_beside_any_buffer_is_noticed(described, seed, number):
    placed, memory, guards = filled(described, seed)
    for start, end in taken(placed, number):
        beside = (start - 1, start - 8, start - GUARD_BYTES, end, end + 1, end + 7, end + 8, end + GUARD_BYTES - 1)
        for place in beside:
            kept = memory[place].clone()
            memory[place] ^= 0x10
            assert guards.overwritten(number, CALL_FILL, KEPT_FILL), f"{place - start} from the start"
            memory[place] = kept
    assert not guards.overwritten(number, CALL_FILL, KEPT_FILL)


@SHAPES
@SEEDS
def test_what_lies_inside_buffers_is_no_overwriting(described, seed):
    placed, memory, guards = filled(described, seed)
    for number in range(2):
        for start, end in taken(placed, number):
            memory[start:end] = 0
    assert not guards.overwritten(0, CALL_FILL, KEPT_FILL)
    assert not guards.overwritten(1, CALL_FILL, KEPT_FILL)


def test_a_set_answers_for_its_own_guards():
    placed, memory, guards = filled(SIMPLE, 4)
    _, end = taken(placed, 1)[0]
    memory[end] = 0
    assert not guards.overwritten(0, CALL_FILL, KEPT_FILL)
    assert guards.overwritten(1, CALL_FILL, KEPT_FILL)
    assert guards.overwritten(1, 0x00, KEPT_FILL)


CHAIN = plan(
    [buffer(1000, INPUT, name="0"), *(buffer(1000) for _ in range(6))],
    call([launch(index, index + 1) for index in range(6)], ref(6, 250)),
)


def test_a_small_plan_reuses_nothing_and_a_large_one_does(monkeypatch):
    apart = set_bytes(CHAIN)
    monkeypatch.setattr(layout, "REUSE_ABOVE_BYTES", 7000)
    assert set_bytes(CHAIN) == apart
    monkeypatch.setattr(layout, "REUSE_ABOVE_BYTES", 6999)
    assert set_bytes(CHAIN) < apart - 3 * (1000 + GUARD_BYTES)


def lifetimes(described: Plan) -> list[dict[int, tuple[int, int]]]:
    """First and last step of each buffer in each call: inputs and literals are there all the time, results stay, and
    on a side stream nothing tells when work is begun or done."""
    found = []
    for each in described.calls:
        end = len(each.steps)
        lives = {i: (0, end) for i, b in enumerate(described.buffers) if b.origin in (INPUT, Origin.LITERAL)}
        for number, step in enumerate(each.steps):
            for index in {argument.buffer for choice in step.launch for argument in choice.arguments}:
                low, high = lives.setdefault(index, (number, number))
                since, until = (number, number) if step.stream == 0 else (0, end)
                lives[index] = (min(low, since), max(high, until))
        for output in each.outputs:
            low, _ = lives.setdefault(output.buffer, (end, end))
            lives[output.buffer] = (low, end)
        found.append(lives)
    return found


def drawn(seed: int) -> Plan:
    """A random plan: buffers of about one size, several calls, some work on another stream."""
    draw = random.Random(seed)
    count = draw.randrange(4, 14)
    origins = [draw.choice((INPUT, Origin.EMPTY, Origin.EMPTY, Origin.EMPTY, OP)) for _ in range(count)]
    buffers = [
        buffer(draw.choice((0, 512, 600, 1000)), origin, kept=draw.random() < 0.1, name="0" if origin is INPUT else "")
        for origin in origins
    ]

    def steps() -> list[Step]:
        return [
            launch(*draw.sample(range(count), draw.randrange(1, 3)), stream=int(draw.random() < 0.2))
            for _ in range(draw.randrange(0, 12))
        ]

    steady = call(steps(), ref(draw.randrange(count), 0))
    return plan(buffers, steady, first=None if draw.random() < 0.5 else call(steps(), ref(draw.randrange(count), 0)))


LONG_FIRST = plan(
    [buffer(512), buffer(512), buffer(512)],
    call([launch(0)], ref(0, 128)),
    first=call([launch(0), launch(2), launch(1), launch(0, 1)], ref(2, 128)),
)
"""The steady call is over before the first one has used its output for the last time."""

SIDE = plan(
    [buffer(512) for _ in range(3)],
    call([launch(0), launch(0), launch(1, stream=1), Step(0, wait=1), launch(1, 2)], ref(2, 128)),
)
"""The second stream may begin before the first is done with buffer 0."""


@pytest.mark.parametrize("described", [CHAIN, LONG_FIRST, SIDE, *map(drawn, range(40))])
def test_no_two_buffers_that_live_at_once_share_memory(monkeypatch, described):
    monkeypatch.setattr(layout, "REUSE_ABOVE_BYTES", -1)
    placed = lay_out(described, 1, 1)
    for lives in lifetimes(described):
        for one, other in itertools.combinations(lives, 2):
            starts = (placed.offsets[0][one], placed.offsets[0][other])
            if min(starts) < 0 or lives[one][1] < lives[other][0] or lives[other][1] < lives[one][0]:
                continue
            (low, size), (high, _) = sorted(zip(starts, (placed.sizes[one], placed.sizes[other]), strict=True))
            assert high - low >= size + GUARD_BYTES


def test_guards_of_places_that_are_shared(monkeypatch):
    monkeypatch.setattr(layout, "REUSE_ABOVE_BYTES", -1)
    sizes = (1000, 1000, 600, 997, 505, 1000, 1000)
    uneven = dataclasses.replace(
        CHAIN, buffers=tuple(dataclasses.replace(b, bytes=n) for b, n in zip(CHAIN.buffers, sizes, strict=True))
    )
    placed, memory, guards = filled(uneven, 9)
    spans = taken(placed, 0)
    assert len({start for start, _ in spans}) < len(sizes)
    for start, end in spans:
        memory[start:end] = 0
    assert not guards.overwritten(0, CALL_FILL, KEPT_FILL)
    memory[max(end for start, end in spans if start == spans[0][0])] = 0
    assert guards.overwritten(0, CALL_FILL, KEPT_FILL)
