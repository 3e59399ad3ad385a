"""The timed processes' own code with the device replaced by a fake: rotation, block sizes, warm-up, requests."""

from __future__ import annotations

import pytest
import torch

from engine.errors import EngineError
from engine.judging import baseline, child_time, gpu_clock, gpu_side
from engine.records import Precision

TASK = """
import torch
import torch.nn as nn
SIZE = 8
class Model(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE)
        self.scale = scale
    def forward(self, x):
        return self.linear(x) * self.scale
def get_inputs():
    return [torch.rand(4, SIZE)]
def get_init_inputs():
    return [2.0]
"""
CANDIDATE = TASK.replace("class Model(", "class ModelNew(")


class FakeDevice:
    """A clock that advances only when a call says so; events read it."""

    def __init__(self):
        self.now_ms = 0.0
        self.flushes = 0

    def event(self, enable_timing):
        device = self

        class Event:
            def record(self):
                self.at = device.now_ms

            def elapsed_time(self, other):
                return other.at - self.at

        return Event()


@pytest.fixture
def device(monkeypatch):
    fake = FakeDevice()

    def flush():
        fake.flushes += 1

    monkeypatch.setattr(gpu_clock, "_EVENT", fake.event)
    monkeypatch.setattr(gpu_clock, "Flush", lambda: flush)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return fake


@pytest.fixture
def on_cpu(device, monkeypatch):
    monkeypatch.setattr(gpu_side, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_side, "set_count", lambda size: 3)
    monkeypatch.setattr(gpu_side, "apply_precision", lambda precision: None)
    return device


def call(device, milliseconds, log, number):
    def run():
        device.now_ms += milliseconds
        log.append(number)

    return run


def test_calls_rotate_and_a_block_holds_as_many_as_fit(device):
    log = []
    timer = gpu_clock.CallTimer([call(device, 0.5, log, n) for n in range(3)], flush_l2=True)
    log.clear()
    times = timer.block(5.0)
    assert times == pytest.approx([500.0] * 10, abs=0.2)
    assert len(set(log[:3])) == 3
    assert log[:3] == log[3:6]
    assert device.flushes > len(times)


@pytest.mark.parametrize(("milliseconds", "count"), [(100.0, 1), (0.001, gpu_clock.MAX_CALLS_PER_BLOCK)])
def test_a_block_has_at_least_one_call_and_at_most_a_bound(device, milliseconds, count):
    timer = gpu_clock.CallTimer([call(device, milliseconds, [], 0)], flush_l2=False)
    assert len(timer.block(5.0)) == count
    assert device.flushes == 0


def test_a_call_without_device_work_still_has_a_positive_time(device):
    assert min(gpu_clock.CallTimer([lambda: None], flush_l2=True).block(1.0)) == gpu_clock.LEAST_US


@pytest.mark.parametrize(
    ("size", "memory", "count"),
    [
        pytest.param(1 << 30, 141 << 30, gpu_clock.LEAST_SETS, id="larger-than-L2"),
        pytest.param(60 << 20, 141 << 30, gpu_clock.ROTATION_FACTOR, id="as-large-as-L2"),
        pytest.param(30 << 20, 141 << 30, 6, id="half-of-L2"),
        pytest.param(1 << 10, 141 << 30, gpu_clock.MAX_SETS, id="tiny"),
        pytest.param(30 << 30, 141 << 30, 1, id="no-room-for-two"),
        pytest.param(0, 141 << 30, gpu_clock.MAX_SETS, id="no-tensors"),
    ],
)
def test_input_sets_exceed_the_cache_within_the_memory(monkeypatch, size, memory, count):
    class Properties:
        L2_cache_size = 60 << 20
        total_memory = memory

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    assert gpu_clock.set_count(size) == count


def request(folder, source=None):
    return {
        "op": "open",
        "task_source": TASK,
        "source": source,
        "precision": Precision.IEEE.value,
        "seed": 5,
        "folder": str(folder),
        "flush_l2": True,
    }


def test_input_sets_have_values_of_their_own_and_a_seed_repeats_them(on_cpu, tmp_path):
    task = gpu_side.load_module(TASK, "some_task", str(tmp_path))
    sets = gpu_side.input_sets(task, 5)
    assert len(sets) == 3
    assert not torch.equal(sets[0][0], sets[1][0])
    assert torch.equal(gpu_side.input_sets(task, 5)[2][0], sets[2][0])


def test_the_baseline_builds_eager_and_notes_what_fails(on_cpu, tmp_path, monkeypatch):
    def refuse(model, dynamic):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    process = baseline.Baselines()
    with torch.inference_mode():
        opened = process.handle(request(tmp_path))
        assert process.handle({"op": "build", "who": "eager"}) == {"absent": None}
        assert process.handle({"op": "build", "who": "compile"}) == {"absent": "RuntimeError: no compiler"}
        assert len(process.handle({"op": "time_block", "who": "eager", "ms": 1.0})["times_us"]) >= 1
    assert opened["sets"] == 3
    assert opened["settings"]["autograd"] == "off"
    assert opened["settings"]["deterministic_algorithms"] == "False"


def test_the_candidates_clock_opens_and_times(on_cpu, tmp_path):
    state = child_time._State()
    with torch.inference_mode():
        assert child_time._open(state, request(tmp_path, CANDIDATE))["sets"] == 3
        assert child_time._time_block(state, {"op": "time_block", "ms": 1.0})["times_us"]


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda folder: child_time._open(child_time._State(), request(folder)), "source, got null"),
        (lambda folder: child_time._time_block(child_time._State(), {"ms": 1.0}), "before a successful open"),
        (lambda folder: baseline.Baselines().handle({"op": "build", "who": "eager"}), "before a successful open"),
    ],
    ids=["no-source", "no-open", "no-baseline-open"],
)
def test_requests_out_of_order_are_errors_of_ours(tmp_path, work, message):
    with pytest.raises(EngineError, match=message):
        work(tmp_path)


@pytest.mark.parametrize("written", ["[2.0]", "[[2.0], {}]", "[[], {'scale': 2.0}]"])
def test_a_timed_model_is_in_evaluation_mode_with_its_init_inputs(on_cpu, tmp_path, written):
    task = gpu_side.load_module(TASK.replace("[2.0]", written), "other_task", str(tmp_path))
    model = gpu_side.build_model(task, task, "Model", 1)
    assert (model.training, model.scale) == (False, 2.0)
