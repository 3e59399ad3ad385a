"""Launches that count on a device: started without an exception, on some grid, and not as a trial of autotuning."""

from __future__ import annotations

import types

import pytest
import torch

from engine.judging import child, child_run
from engine.judging.host_ops import OpRecorder


@pytest.fixture
def patched(monkeypatch):
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction

    def launch(self, *args, grid, warmup, **kwargs):
        if callable(grid) and not warmup:
            grid(kwargs)
        if kwargs.pop("fails", False):
            raise RuntimeError("no launch")
        return "launched"

    def trial(self, launch):
        torch.sin(torch.zeros(2))
        return launch()

    monkeypatch.setattr(JITFunction, "run", launch)
    monkeypatch.setattr(Autotuner, "_bench", trial)
    state = child_run.RunState(folder=None)
    child_run._count_launches(state)
    kernel = types.SimpleNamespace(fn=types.SimpleNamespace(__module__=child.MODULE), __name__="kernel")

    def run(owner=kernel, grid=(1,), warmup=False, **kwargs):
        return JITFunction.run(owner, grid=grid, warmup=warmup, **kwargs)

    return state, run, Autotuner


FOREIGN = types.SimpleNamespace(fn=types.SimpleNamespace(__module__="torch._inductor"), __name__="other")


@pytest.mark.parametrize(
    ("arguments", "counted"),
    [
        pytest.param({}, 1, id="launch"),
        pytest.param({"grid": lambda meta: (2, 1)}, 1, id="grid-function"),
        pytest.param({"grid": (0,)}, 0, id="empty-grid"),
        pytest.param({"grid": lambda meta: (3, 0)}, 0, id="empty-grid-function"),
        pytest.param({"warmup": True, "grid": lambda meta: (1,)}, 0, id="only-compiled"),
        pytest.param({"owner": FOREIGN}, 0, id="not-the-candidates"),
    ],
)
def test_launches_that_count(patched, arguments, counted):
    state, run, _ = patched
    assert run(**arguments) == "launched"
    assert sum(state.launches.values()) == counted


def test_a_launch_that_raises_does_not_count(patched):
    state, run, _ = patched
    with pytest.raises(RuntimeError, match="no launch"):
        run(fails=True)
    assert not state.launches


def test_trials_of_autotuning_leave_no_trace(patched):
    state, run, tuner = patched
    with OpRecorder() as recorder:
        assert tuner._bench(None, run) == "launched"
    assert not state.launches
    assert "aten.sin" not in recorder.count
    run()
    assert state.launches == {"kernel": 1}


class Silent(Exception):
    def __str__(self):
        raise self


def test_an_exception_that_is_its_own_cause_is_described():
    error = ValueError("again")
    error.__cause__ = error
    assert child.describe(error)["message"] == "again"


def test_an_exception_without_a_text_is_told_by_its_type():
    assert child.describe(Silent())["type"] == "Silent"
    assert "str() raises Silent" in child.describe(Silent())["message"]
