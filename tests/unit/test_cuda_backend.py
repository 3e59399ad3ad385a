"""The CUDA back-end with the GPU, the judge and the clock replaced: what it asks of whom, and how it degrades."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.compose import compose
from engine.backends import cuda
from engine.backends.detect import resolve
from engine.errors import MissingError, ProfilerError
from engine.judging.client import NotCounted
from engine.judging.gpu_state import Gpu
from engine.judging.seats import Seat
from engine.records import Contract, Facts, Judged, Launch, Mode, Operator, Status, Task, Trace, Verdict
from profilers.cupti import Counted, NoCounters
from profilers.seam import KernelSample

FACTS = Facts(1, 0, 0, 0, 0, 1, 0, 0, 0, None, None, 2e9, 8.6e9, 0.25, "float32", "full")
TASK = Task("t", "t", "reference source", Contract(), "declared", "hash")
OPERATOR = Operator(TASK, FACTS)
TRACE = Trace((Launch("own_kernel", (8, 1, 1), 2, 0.0, 4, 3, False, registers=40),), ())
SOURCE = """
import triton
from triton import jit

@triton.jit
def first(x): pass

@triton.autotune(configs=[], key=[])
@triton.jit
def second(x): pass

@jit
def third(x): pass

@triton.jit(do_not_specialize=[0])
def fourth(x): pass

def plain(x): pass
"""
CANDIDATE = Judged(SOURCE, TRACE)


class FakeJudge:
    """`counts`: what is answered to counting in process (None) or by ncu; an exception is raised."""

    def __init__(self, *_):
        self.asked = []
        self.closed = False
        self.counts = {None: NotCounted("it has no plan"), "ncu": NotCounted("it has no plan")}
        self.counted = []

    def count(self, task, precision, source, counters, limit, ncu=None):
        tool = None if ncu is None else ncu.path
        self.counted.append((tool, source, tuple(counters)))
        if isinstance(self.counts[tool], Exception):
            raise self.counts[tool]
        return Counted(self.counts[tool], len(self.counts[tool]), 1, ())

    def judge(self, operator, source):
        self.asked.append(source)
        return Verdict(Status.CORRECT, None, Mode.FALLBACK, "", trace=TRACE)

    def close(self):
        self.closed = True


class FakeNcu:
    """Stands for the tool: what it answers is set on the class."""

    name = "ncu"
    reason: str | None = None
    answer: object = ()
    jobs: list = []  # noqa: RUF012

    def __init__(self, path, timeout_s, max_launches, launcher=()):
        self.launcher = launcher

    def available(self):
        return self.reason

    def collect(self, job, counters):
        type(self).jobs.append((job, tuple(counters), self.launcher))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def ncu(monkeypatch):
    tool = type("Tool", (FakeNcu,), {"jobs": []})
    monkeypatch.setattr(cuda, "Ncu", tool)
    return tool


@pytest.fixture
def backend(tmp_path, monkeypatch, ncu):
    gpu = Gpu(0, "NVIDIA H200", "GPU-1", "580.1")
    monkeypatch.setattr(cuda, "take_seat", lambda device, find, count: Seat(gpu, None))
    monkeypatch.setattr(cuda, "JudgeClient", FakeJudge)
    monkeypatch.setattr(cuda, "lock_path", lambda uuid: tmp_path / "lock")
    with cuda.CudaBackend(compose("cuda", {}), Path(), tmp_path) as opened:
        yield opened


def test_the_device_names_everything_results_depend_on(backend):
    device = backend.device
    assert (device.backend, device.name) == ("cuda", "NVIDIA H200")
    assert device.facts.keys() == {"torch", "triton", "numpy", "python", "driver", "judge"}
    assert device.hardware["dram_gbps"] > 0


def test_a_profile_asks_for_the_stages_counters_and_the_candidates_kernels_only(backend, ncu):
    ncu.answer = (KernelSample("own_kernel", 2000.0, {"lts__t_sector_hit_rate.pct": 50.0}),) * 2
    (hits,) = backend.profile(OPERATOR, CANDIDATE, ["l2_hit_pct"])
    ((job, counters, launcher),) = ncu.jobs
    assert (hits.value, hits.source, hits.confidence) == (50.0, "ncu", 1.0)
    assert counters == ("lts__t_sector_hit_rate.pct",)
    assert job.kernels == ("own_kernel",)
    assert "engine.judging.confined" in launcher
    assert "engine.judging.profile_run" in job.command
    assert (Path(job.cwd) / "engine" / "judging" / "profile_run.py").is_file()
    assert "reference source" in Path(job.command[-1]).read_text()


HITS = "lts__t_sector_hit_rate.pct"
OWN = (KernelSample("own_kernel", 2000.0, {HITS: 50.0}),) * 2


def test_counters_come_from_the_warm_process_first(backend, ncu):
    backend._judge.counts[None] = OWN
    (hits,) = backend.profile(OPERATOR, CANDIDATE, ["l2_hit_pct"])
    assert (hits.value, hits.source, hits.confidence) == (50.0, "cupti", 1.0)
    assert backend._judge.counted == [(None, SOURCE, (HITS,))]
    assert ncu.jobs == []


def test_what_the_warm_process_lacks_is_asked_of_ncu_on_the_planned_call_alone(backend, ncu):
    backend._judge.counts |= {None: (KernelSample("own_kernel", 10.0, {}),), "ncu": OWN}
    (hits,) = backend.profile(OPERATOR, CANDIDATE, ["l2_hit_pct"])
    assert (hits.value, hits.source) == (50.0, "ncu")
    assert [tool for tool, _, _ in backend._judge.counted] == [None, "ncu"]
    assert ncu.jobs == []


def test_a_machine_that_forbids_counters_is_asked_once(backend, ncu):
    backend._judge.counts[None] = NoCounters("insufficient privileges", hint="ask")
    for _ in range(2):
        (hits,) = backend.profile(OPERATOR, CANDIDATE, ["l2_hit_pct"])
        assert "insufficient privileges" in hits.note
    assert [tool for tool, _, _ in backend._judge.counted].count(None) == 1


def test_a_candidate_that_cannot_be_counted_forbids_nothing_for_the_next(backend, ncu):
    for _ in range(2):
        backend.profile(OPERATOR, CANDIDATE, ["l2_hit_pct"])
    assert [tool for tool, _, _ in backend._judge.counted].count(None) == 2


def test_the_reference_is_profiled_with_all_its_kernels_and_no_launch_record(backend, ncu):
    ncu.answer = (KernelSample("anything", 10.0, {}),)
    (launches,) = backend.profile(OPERATOR, None, ["launches"])
    assert ncu.jobs == []
    assert launches.value is None
    assert "no launch record" in launches.note
    (headroom,) = backend.profile(OPERATOR, None, ["headroom"])
    assert headroom.value == pytest.approx(10.0 / 2000.0)
    assert ncu.jobs[0][0].kernels == ()


@pytest.mark.parametrize(
    ("reason", "answer", "note"),
    [
        pytest.param("ncu is not on PATH", (), "not on PATH", id="absent"),
        pytest.param(None, ProfilerError("may not read", hint="ask"), "may not read; ask", id="forbidden"),
    ],
)
def test_without_counters_the_ladder_goes_on_and_says_why(backend, ncu, reason, answer, note):
    ncu.reason, ncu.answer = reason, answer
    hits, registers, launches = backend.profile(OPERATOR, CANDIDATE, ["l2_hit_pct", "registers", "launches"])
    assert hits.value is None
    assert note in hits.note
    assert (registers.value, registers.source) == (40.0, "static")
    assert (launches.value, launches.source, launches.confidence) == (2.0, "trace", 1.0)


def test_headroom_comes_from_the_profilers_durations(backend, ncu):
    ncu.answer = (KernelSample("own_kernel", 2000.0, {"gpu__time_duration.sum": 2e6}),) * 2
    headroom, time_us = backend.profile(OPERATOR, CANDIDATE, ["headroom", "time_us"])
    assert time_us.value == pytest.approx(4000.0)
    assert headroom.value == pytest.approx(2.0)


def test_times_and_profiles_never_judge_again(backend, ncu):
    backend.profile(OPERATOR, CANDIDATE, ["launches"])
    backend.profile(OPERATOR, Judged("another", None), ["launches"])
    assert backend._judge.asked == []


def test_a_profiler_that_is_not_known_here_is_noted(backend):
    declared = backend._backend
    extra = {"msprof": declared.profilers["trace"]}
    backend._backend = replace(declared, profilers=extra)
    metric = next(iter(backend._settings.metrics.values()))
    spelled = replace(metric, spellings={"msprof": next(iter(metric.spellings.values()))})
    backend._settings = replace(backend._settings, metrics={"m": spelled})
    (value,) = backend.profile(OPERATOR, CANDIDATE, ["m"])
    assert "no such profiler" in value.note


def test_kernels_are_named_by_the_record_or_else_by_their_decorator():
    assert cuda.kernel_names(SOURCE, TRACE) == ("own_kernel",)
    assert cuda.kernel_names(SOURCE, None) == ("first", "second", "third", "fourth")


def test_leaving_ends_the_judge(backend):
    backend.__exit__(None, None, None)
    assert backend._judge.closed


def test_no_gpu_is_missing_with_a_remedy(tmp_path, monkeypatch):
    def absent(name):
        raise OSError

    monkeypatch.setattr("engine.judging.gpu_state.ctypes.CDLL", absent)
    with pytest.raises(MissingError, match="no CUDA driver") as caught:
        cuda.CudaBackend(compose("cuda", {}), Path(), tmp_path)
    assert "backend=cpu" in caught.value.hint
    assert (resolve("auto"), resolve("cuda"), resolve("other")) == ("cpu", "cuda", "other")
