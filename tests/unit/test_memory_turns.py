"""A check that lacks the device's memory beside others is made again alone, once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from benchmarks.compose import compose
from engine.judging import references
from engine.judging.judge import Findings, Judge, Place, Stop
from engine.judging.messages import Failure
from engine.judging.references import References
from engine.records import Reason, Status

SHORT = Stop(Failure(Status.FAILED, Reason.OUT_OF_MEMORY, "allocating 268435456 bytes: out of memory"))
WRONG = Stop(Failure(Status.REJECTED, Reason.WRONG_RESULT, "wrong"))
TORCH = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB.")


class Device:
    def __init__(self):
        self.held = []

    def _hold(self, how):
        @contextlib.contextmanager
        def holding():
            self.held.append(how)
            yield

        return holding()

    def shared(self):
        return self._hold("shared")

    def alone(self):
        return self._hold("alone")

    def make_room(self):
        self.held.append("nothing kept")


@pytest.fixture
def judge():
    made = Judge(compose("cpu", {}).judge, Place("cpu", "sm_90", False, Path()), None, None)
    made.device = Device()
    return made


def checks(found, *outcomes):
    """A check that ends with each outcome in turn."""
    left = list(outcomes)

    def check(held):
        with held:
            found.checks.append(object())
            outcome = left.pop(0)
            if outcome is not None:
                raise outcome

    return check


@pytest.mark.parametrize("first", [SHORT, TORCH])
def test_what_lacked_memory_is_checked_again_alone(judge, first):
    found = Findings(1)
    judge.with_memory(found, checks(found, first, None))
    assert judge.device.held == ["shared", "nothing kept", "alone"]
    assert len(found.checks) == 1
    assert found.remarks[0].startswith("checked again alone on the GPU: ")


@pytest.mark.parametrize("second", [SHORT, TORCH, WRONG])
def test_what_is_found_alone_stands(judge, second):
    found = Findings(1)
    with pytest.raises(type(second)) as caught:
        judge.with_memory(found, checks(found, SHORT, second))
    assert caught.value is second
    assert judge.device.held == ["shared", "nothing kept", "alone"]


@pytest.mark.parametrize("fault", [WRONG, RuntimeError("shape mismatch")])
def test_other_faults_are_not_tried_again(judge, fault):
    found = Findings(1)
    with pytest.raises(type(fault)):
        judge.with_memory(found, checks(found, fault))
    assert judge.device.held == ["shared"]


def test_without_a_device_nothing_is_held_or_tried_again(judge):
    judge.device = None
    found = Findings(1)
    with pytest.raises(Stop):
        judge.with_memory(found, checks(found, SHORT))


@pytest.mark.parametrize(("free", "kept"), [(10, 1), (60, 4)])
def test_scarce_memory_makes_a_judge_forget_results_oldest_first(monkeypatch, free, kept):
    monkeypatch.setattr(references, "SCARCE_BYTES", 100)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 100))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    mine = References("cuda:0")
    for number in range(4):
        mine._results[(number,)] = (None, 60)
    mine.give_back_memory()
    assert [key for (key,) in mine._results] == list(range(4))[-kept:]
