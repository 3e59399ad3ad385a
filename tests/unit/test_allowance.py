"""The time that a candidate's calls may take together."""

from __future__ import annotations

from engine.judging.allowance import LEAST_S, Allowance


def test_only_waiting_for_the_candidate_counts():
    waited = [5.0]
    allowance = Allowance(6.0, lambda: waited[0])
    assert allowance.left_s == 6.0
    waited[0] += 2.5
    assert allowance.left_s == 3.5


def test_a_command_that_finds_nothing_left_still_gets_a_moment():
    waited = [0.0]
    allowance = Allowance(6.0, lambda: waited[0])
    waited[0] = 60.0
    assert allowance.left_s == LEAST_S
