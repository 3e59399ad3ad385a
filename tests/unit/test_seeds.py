"""Secret seeds are shared by some candidates of a task, and by nothing else."""

from __future__ import annotations

from engine.judging import seeds
from engine.judging.seeds import USES, Seeds


def test_a_seed_serves_so_many_candidates():
    drawn = Seeds()
    got = [drawn.of("task") for _ in range(2 * USES + 1)]
    assert [got.count(seed) for seed in dict.fromkeys(got)] == [USES, USES, 1]


def test_tasks_and_roles_have_seeds_of_their_own():
    drawn = Seeds()
    assert len({drawn.of("task"), drawn.of("other"), drawn.of("task", "candidate"), drawn.of("task", "incumbent")}) == 4


def test_what_somebody_has_seen_is_drawn_no_more():
    drawn = Seeds()
    first, other = drawn.of("task"), drawn.of("other")
    drawn.forget("task")
    assert drawn.of("task") != first
    assert drawn.of("other") == other
    drawn.forget("never drawn")


def test_seeds_of_long_past_tasks_are_dropped(monkeypatch):
    monkeypatch.setattr(seeds, "KEPT", 2)
    drawn = Seeds()
    first = drawn.of("a")
    drawn.of("b")
    assert drawn.of("a") == first
    drawn.of("c")
    drawn.of("d")
    assert drawn.of("a") != first
