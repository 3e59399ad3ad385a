"""A check that lacks the device's memory beside others is made again alone, once."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest
import torch

from benchmarks.compose import compose
from engine.judging import device_memory, gpu_state, references
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

    def shared(self, *, large=False):
        return self._hold("shared, large" if large else "shared")

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


def test_what_needs_much_memory_says_so(judge):
    found = Findings(1)
    judge.with_memory(found, checks(found, SHORT, None), large=True)
    assert judge.device.held == ["shared, large", "nothing kept", "alone"]


@pytest.mark.parametrize(("size", "initialised", "large"), [(4, True, True), (3, True, False), (4, False, False)])
def test_large_is_a_share_of_the_device(monkeypatch, size, initialised, large):
    Memory(monkeypatch, free=60)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialised)
    assert device_memory.is_large(size) == large


@pytest.mark.parametrize("large", [(True, True), (True, False), (False, False)])
def test_of_those_that_need_much_memory_one_holds_the_gpu_at_a_time(tmp_path, large):
    lock, inside = tmp_path / "gpu.lock", threading.Event()

    def other():
        with gpu_state.share(lock, large=large[1]):
            inside.set()

    with gpu_state.share(lock, large=large[0]):
        waiting = threading.Thread(target=other)
        waiting.start()
        assert inside.wait(0.2 if all(large) else 10.0) == (not all(large))
    waiting.join()
    assert inside.is_set()


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


class Memory:
    """The device's, in percent: `free`, and what PyTorch keeps here."""

    def __init__(self, monkeypatch, free, reserved=0):
        self.free, self.emptied = free, 0
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (self.free, 100))
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty)

    def empty(self):
        self.emptied += 1


@pytest.mark.parametrize(("free", "kept"), [(10, 1), (60, 4)])
def test_scarce_memory_makes_a_judge_forget_results_oldest_first(monkeypatch, free, kept):
    monkeypatch.setattr(references, "SCARCE_BYTES", 100)
    memory = Memory(monkeypatch, free)
    mine = References("cuda:0")
    for number in range(4):
        mine._results[(number,)] = (None, 60)
    mine.give_back_memory()
    assert [key for (key,) in mine._results] == list(range(4))[-kept:]
    assert bool(memory.emptied) == (free < 60)


@pytest.mark.parametrize(("reserved", "emptied"), [(references.CACHED_BYTES, 0), (references.CACHED_BYTES + 1, 1)])
def test_much_unused_memory_is_given_back_even_where_there_is_enough(monkeypatch, reserved, emptied):
    memory = Memory(monkeypatch, free=60, reserved=reserved)
    References("cuda:0").give_back_memory()
    assert memory.emptied == emptied


@pytest.mark.parametrize(
    ("free", "waits"),
    [
        pytest.param([60], [1.0], id="nobody has anything to give"),
        pytest.param([60, 70], [1.0, 0.25], id="more became free in the first second"),
        pytest.param([30, 30, 30], [1.0], id="enough already, and nobody answers"),
        pytest.param([10, 10, 60], [1.0, 0.25, 0.25], id="another answers late"),
        pytest.param([10], [1.0] + 8 * [0.25], id="scarce to the end"),
    ],
)
def test_others_get_a_moment_to_make_room(monkeypatch, free, waits):
    memory, slept = Memory(monkeypatch, free[0]), []
    monkeypatch.setattr(device_memory.time, "monotonic", lambda: sum(slept))

    def sleep(seconds):
        slept.append(seconds)
        memory.free = free[min(len(slept), len(free) - 1)]

    monkeypatch.setattr(device_memory.time, "sleep", sleep)
    device_memory.await_room()
    assert slept == waits
