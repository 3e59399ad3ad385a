"""How ceilings are measured, with the device's clock replaced by a counter."""

from __future__ import annotations

import pytest

from engine.backends import ceiling_bench
from engine.backends.ceiling_bench import REPEATS, Bench, _best_of


class Clock:
    def __call__(self):
        return 1900.0


@pytest.fixture
def bench(monkeypatch):
    """Work states its own µs; a sample adds 4 µs of events."""
    monkeypatch.setattr(ceiling_bench.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(ceiling_bench.torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        Bench, "_sample", staticmethod(lambda work, count: 4.0 + sum(work() or 0.0 for _ in range(count)))
    )
    made = Bench(Clock())
    made.calibrate()
    return made


def test_events_are_subtracted_and_short_work_is_repeated(bench):
    assert bench.empty_us == 4.0
    assert bench.times(lambda: 20.0) == pytest.approx([20.0] * REPEATS)
    assert bench.clocks == [1900.0] * REPEATS


def test_the_best_size_is_kept_and_refusals_are_told(bench):
    def prepare(size):
        if size == 3:
            raise RuntimeError("no such dtype\nmore")
        return (lambda: float(size)), 1000.0, f"{size} cubed"

    rate = _best_of(bench, (1, 2, 3), prepare)
    assert (rate.value, rate.size, rate.n) == (pytest.approx(1000.0), "1 cubed", REPEATS)
    assert _best_of(bench, (3,), prepare) == "RuntimeError: no such dtype"
