"""Shape variants drawn for a confirmation: new ones, odd, within bounds, with what sizes have in common kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.tasks.derive import ELEMENTS, TRIALS
from engine.tasks.unseen import choices_of, draw_unseen
from tests.support.judge import bundled_tasks

SOURCE = "ROWS = 4096\nCOLUMNS = 2048\nHEADS = 64\nGROUPS = 8\n"
VARIANTS = {"small": {"ROWS": 64, "COLUMNS": 128}, "odd": {"ROWS": 37, "COLUMNS": 251}}
SEEDS = st.integers(0, 2**62 - 1)


def runs(sizes):
    return 100


@pytest.mark.parametrize(
    ("declared", "full", "expected"),
    [
        ((64, 37), 4096, range(37, 65)),
        ((32, 64), 64, [32, 64]),
        ((32, 128), 1024, [32, 64, 128]),
        ((24, 40), 96, range(24, 41, 8)),
        ((16, 16), 16, [16]),
        ((16, 16), 1024, [16, 32]),
        ((17, 17), 100, range(17, 35)),
        ((60, 60), 40, range(60, 61, 20)),
        ((2, 3), 8, range(2, 4)),
    ],
)
def test_what_a_size_may_be(declared, full, expected):
    assert list(choices_of(declared, full)) == list(expected)


@given(SEEDS)
def test_drawn_variants_are_new_odd_and_within_bounds(seed):
    drawn = draw_unseen(SOURCE, VARIANTS, seed=seed, count=3, probe=runs)
    assert list(drawn) == ["unseen1", "unseen2", "unseen3"]
    assert len({tuple(sorted(sizes.items())) for sizes in (*drawn.values(), *VARIANTS.values())}) == 5
    for sizes in drawn.values():
        assert 37 <= sizes["ROWS"] <= 64
        assert 128 <= sizes["COLUMNS"] <= 251
        assert sizes["ROWS"] % 2 == sizes["COLUMNS"] % 2 == 1
        assert set(sizes) == {"ROWS", "COLUMNS"}, "constants that no variant changes stay"


def test_equal_seeds_draw_alike_and_others_do_not():
    one, again, other = (draw_unseen(SOURCE, VARIANTS, seed=seed, count=2, probe=runs) for seed in (1, 1, 2))
    assert one == again
    assert one != other


@given(SEEDS)
def test_sizes_that_agree_everywhere_agree(seed):
    source = "M = 512\nN = 512\nK = 512\nB = 512\n"
    variants = {"small": dict.fromkeys("MNKB", 64), "odd": {**dict.fromkeys("MNK", 33), "B": 35}}
    (sizes,) = draw_unseen(source, variants, seed=seed, count=1, probe=runs).values()
    assert sizes["M"] == sizes["N"] == sizes["K"]


@given(SEEDS)
def test_a_program_that_refuses_most_sizes_is_changed_one_by_one(seed):
    def grouped(sizes):
        return 100 if sizes["ROWS"] % 37 == 0 or sizes["ROWS"] == 64 else None

    drawn = draw_unseen(SOURCE, VARIANTS, seed=seed, count=2, probe=grouped)
    assert drawn
    assert all(sizes["ROWS"] in (37, 64) and sizes not in VARIANTS.values() for sizes in drawn.values())


@pytest.mark.parametrize(
    ("variants", "probe"),
    [
        ({}, runs),
        ({"small": {"HEADS": 64}}, runs),
        (VARIANTS, lambda sizes: None),
        (VARIANTS, lambda sizes: 100 if sizes in ({**VARIANTS["small"]}, {**VARIANTS["odd"]}) else None),
        (VARIANTS, lambda sizes: 100 if sizes in ({**VARIANTS["small"]}, {**VARIANTS["odd"]}) else 3 * ELEMENTS),
    ],
    ids=["no variants", "nothing to vary", "never runs", "runs at its own sizes only", "too large otherwise"],
)
def test_nothing_is_drawn_where_nothing_new_runs(variants, probe):
    assert draw_unseen(SOURCE, variants, seed=3, count=2, probe=probe) == {}


def test_trials_are_bounded():
    asked = []
    draw_unseen(SOURCE, VARIANTS, seed=3, count=100, probe=lambda sizes: asked.append(sizes))
    assert len(asked) <= TRIALS


def test_fewer_are_drawn_where_there_are_no_more():
    drawn = draw_unseen("N = 64\n", {"a": {"N": 2}, "b": {"N": 5}}, seed=3, count=9, probe=runs)
    assert drawn == {"unseen1": {"N": 3}}, "the one odd size between that no variant has"


def test_few_sizes_still_make_many_variants():
    source, variants = "A = 64\nB = 64\nC = 99\n", {"a": {"A": 2, "B": 4, "C": 8}, "b": {"A": 5, "B": 9, "C": 13}}
    drawn = {str(draw_unseen(source, variants, seed=seed, count=1, probe=runs)) for seed in range(40)}
    assert len(drawn) > 4


@pytest.mark.parametrize("name", sorted(bundled_tasks()))
def test_bundled_tasks_have_unseen_shapes(name):
    from engine.tasks.facts import prober

    task = bundled_tasks()[name]
    declared = task.contract.variants
    drawn = draw_unseen(task.source, declared, seed=11, count=2, probe=prober(task.source))
    assert len(drawn) == 2
    for sizes in drawn.values():
        assert sizes not in declared.values()
        for constant, size in sizes.items():
            named = [values[constant] for values in declared.values()]
            assert min(named) <= size <= max(named)
