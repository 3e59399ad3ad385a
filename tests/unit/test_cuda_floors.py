"""What the CUDA back-end does with stored ceilings, floors and contradictions; the GPU and the judge are replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.compose import compose
from engine.backends import cuda
from engine.backends.ceilings import Ceilings, Rate, write
from engine.backends.ladder import Answer
from engine.confirmation import Confirmation
from engine.judging.gpu_state import Gpu
from engine.paid import Paid
from engine.records import (
    Contract,
    Facts,
    Judged,
    Launch,
    Measurement,
    Mode,
    Operator,
    ScoreKind,
    Status,
    Task,
    Timing,
    Trace,
    Verdict,
)
from profilers.seam import KernelSample

GPU = Gpu(0, "NVIDIA H200", "GPU-1", "580.1")
# 8.4 GB: 2000 µs at the measured 4200 GB/s.
FACTS = Facts(1, 0, 0, 0, 0, 1, 0, 0, 0, None, None, 2e9, 8.4e9, 0.25, "float32", "full")
OPERATOR = Operator(Task("t", "t", "reference source", Contract(), "declared", "hash"), FACTS)
TRACE = Trace((Launch("k", (8, 1, 1), 1, 0.0, 4, 3, False, registers=40),), ())
COPY = {"dram_gbps": Rate(4200, 4190, 4210, 25, "s")}
STORED = Ceilings(1, GPU.name, GPU.uuid, "d", "t", "t", "c", "2026-11-20", (), "none", COPY, {})


class FakeJudge:
    """Answers with the times that the test sets."""

    us = 2100.0

    def __init__(self, *_):
        self.floors = []

    def measurement(self):
        return Measurement((Timing("candidate", ScoreKind.MEASURED, self.us, self.us, self.us, 20),), (), None, {})

    def measure(self, task, precision, source, incumbent, floor_us):
        self.floors.append(floor_us)
        return self.measurement()

    def confirm(self, task, precision, source, floor_us):
        verdict = Verdict(Status.CORRECT, None, Mode.PLAN, "")
        return Confirmation(verdict, {}, measurements=(self.measurement(), self.measurement()))

    def close(self):
        pass


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "find_gpu", lambda ordinal: GPU)
    monkeypatch.setattr(cuda, "JudgeClient", FakeJudge)

    def make(stored):
        results = tmp_path / ("with" if stored else "without")
        if stored:
            write(results, STORED)
        settings = compose("cuda", {"paths.results": str(results)})
        return cuda.CudaBackend(settings, Path(), tmp_path)

    return make


def test_floors_use_what_was_measured_here_and_say_so(opened):
    backend = opened(True)
    made = backend.measure(OPERATOR, Judged("source", TRACE), None)
    assert made.floor_us == pytest.approx(2000.0)
    assert made.settings["floor"] == "8.4e+09 bytes at 4200 GB/s (measured 2026-11-20)"
    assert backend.device.ceilings.startswith("2026-11-20 ")
    assert backend.device.hardware["dram_gbps"] != 4200
    assert backend._judge.floors == [pytest.approx(2000.0)]


def test_without_ceilings_the_configured_rates_stand_in(opened):
    backend = opened(False)
    rate = backend.device.hardware["dram_gbps"]
    assert backend.measure(OPERATOR, None, None).floor_us == pytest.approx(8.4e9 / (rate * 1e3))
    assert backend.device.ceilings == ""


def test_times_below_the_floor_are_flagged_also_in_a_confirmation(opened):
    backend = opened(True)
    assert not backend.measure(OPERATOR, Judged("source", TRACE), None).below_floor
    backend._judge.us = 1700.0
    assert backend.measure(OPERATOR, Judged("source", TRACE), None).below_floor
    confirmed = backend.confirm(OPERATOR, Judged("source", TRACE))
    assert [made.below_floor for made in confirmed.measurements] == [True, True]
    assert confirmed.measurements[0].floor_us == pytest.approx(2000.0)


def test_a_profile_is_held_against_the_timing(opened, monkeypatch):
    backend = opened(True)
    sample = KernelSample("k", 500.0, {"lts__t_sector_hit_rate.pct": 50.0})
    counting = next(name for name in backend._backend.profilers if name in ("ncu", "cupti"))
    answer = Answer(counting, (sample,))
    monkeypatch.setattr(backend, "_ask", lambda name, *_: (answer if name == counting else Answer(name, ()),))
    (hits,) = backend.profile(OPERATOR, Judged("source", TRACE, 2100.0), ["l2_hit_pct"])
    assert (hits.value, hits.confidence) == (50.0, 0.0)
    assert "kernels took 500 us" in hits.contradiction
    (unknown,) = backend.profile(OPERATOR, Judged("source", TRACE), ["l2_hit_pct"])
    assert (unknown.confidence, unknown.contradiction) == (1.0, "")


def test_headroom_is_of_the_measured_time_where_there_is_one(opened):
    backend = opened(True)
    found = backend._algebra(OPERATOR, 3000.0, [Answer("ncu", (KernelSample("k", 2500.0, {}),))])
    assert found.samples[0].counters["headroom"] == pytest.approx(1.5)
    profiled = backend._algebra(OPERATOR, None, [Answer("ncu", (KernelSample("k", 2500.0, {}),))])
    assert profiled.samples[0].counters["headroom"] == pytest.approx(1.25)


def test_new_ceilings_are_in_the_address_of_times_and_not_of_verdicts(opened):
    backend = opened(True)
    other = opened(True)
    other.device = replace(other.device, ceilings="2026-12-01 0123")
    journal = SimpleNamespace(due=None)
    paid, again = (
        Paid(one._settings, backend=one, caller=None, memo=None, journal=journal, folder=None, free_replies=True)
        for one in (backend, other)
    )
    assert paid._subject(OPERATOR, "s") == again._subject(OPERATOR, "s")
    assert paid._protocol(OPERATOR) != again._protocol(OPERATOR)
