"""CUPTI's range profiler against a stand-in for the library: what is asked, in which order, and what comes back."""

from __future__ import annotations

import ctypes
import math

import pytest

from engine.errors import ProfilerError
from profilers import cupti
from profilers.cupti import DURATION, Preparation, RangeProfiler

KNOWN = ("a.avg", "b.sum", DURATION)


class FakeCupti:
    """Answers as the library does: `passes`, `ranges` launches whose value of counter k in range r is 10 * r + k;
    `missing` gives NaN."""

    def __init__(self, passes=3, ranges=2, dropped=0, missing=(), forbidden=False):
        self.passes, self.ranges, self.dropped, self.missing, self.forbidden = (
            passes,
            ranges,
            dropped,
            missing,
            forbidden,
        )
        self.calls, self.names, self.stops = [], [], 0

    def call(self, name, parameters):
        self.calls.append(name)
        answer = getattr(self, name.removeprefix("cupti"), None)
        if answer is not None:
            answer(parameters)
        return parameters

    def DeviceGetChipName(self, parameters):
        parameters.chip = b"GH100"

    def ProfilerHostInitialize(self, parameters):
        parameters.object = 1 + len(self.calls)

    def ProfilerHostConfigAddMetrics(self, parameters):
        names = [parameters.names[k].decode() for k in range(parameters.count)]
        if not set(names) <= set(KNOWN):
            raise ProfilerError("unknown metric")
        self.names = names

    def ProfilerHostGetConfigImageSize(self, parameters):
        parameters.size = 64

    def ProfilerHostGetNumOfPasses(self, parameters):
        parameters.count = self.passes

    def RangeProfilerEnable(self, parameters):
        if self.forbidden:
            raise ProfilerError("insufficient privileges", hint="for administrators")
        parameters.object = 99

    def RangeProfilerGetCounterDataSize(self, parameters):
        parameters.size = 128

    def RangeProfilerStop(self, parameters):
        self.stops += 1
        parameters.all_passes = self.stops >= self.passes

    def RangeProfilerDecodeData(self, parameters):
        parameters.dropped = self.dropped

    def RangeProfilerGetCounterDataInfo(self, parameters):
        parameters.count = self.ranges

    def ProfilerHostEvaluateToGpuValues(self, parameters):
        for k in range(parameters.count):
            name = parameters.names[k].decode()
            parameters.values[k] = math.nan if name in self.missing else 10.0 * parameters.range + k


class FakeDriver:
    def cuCtxGetCurrent(self, pointer):
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_void_p))[0] = 7
        return 0


@pytest.fixture
def library(monkeypatch):
    def install(fake):
        monkeypatch.setattr(cupti, "Library", lambda: fake)
        monkeypatch.setattr(cupti.ctypes, "CDLL", lambda name: FakeDriver())
        return fake

    return install


def read(counters, calls=None, launches=8):
    made = [] if calls is None else calls
    with RangeProfiler(counters, launches) as profiler:
        return profiler, *profiler.collect(lambda: made.append(1))


def test_each_launch_has_its_counters_and_the_call_is_made_once_a_pass(library):
    fake, calls = library(FakeCupti(passes=3)), []
    profiler, samples, dropped = read(["a.avg", "b.sum"], calls)
    assert samples == [{DURATION: 0.0, "a.avg": 1.0, "b.sum": 2.0}, {DURATION: 10.0, "a.avg": 11.0, "b.sum": 12.0}]
    assert (len(calls), profiler.passes, dropped, profiler.unknown) == (3, 3, 0, ())
    assert fake.calls[-2:] == ["cuptiRangeProfilerDisable", "cuptiProfilerHostDeinitialize"]


@pytest.mark.parametrize(
    ("counters", "missing", "kept", "unknown"),
    [
        pytest.param(["a.avg", "ghost.sum"], (), {DURATION, "a.avg"}, ("ghost.sum",), id="a-ghost-beside-others"),
        pytest.param(["ghost.sum"], (), {DURATION}, ("ghost.sum",), id="ghosts-alone"),
        pytest.param(["a.avg", "b.sum"], ("b.sum",), {DURATION, "a.avg"}, (), id="no-value-is-absent-not-0"),
        pytest.param(["a.avg", "a.avg"], (), {DURATION, "a.avg"}, (), id="asked-twice"),
    ],
)
def test_what_the_chip_does_not_have_is_absent(library, counters, missing, kept, unknown):
    library(FakeCupti(missing=missing))
    profiler, samples, _ = read(counters)
    assert {name for sample in samples for name in sample} == kept
    assert profiler.unknown == unknown


def test_what_a_pass_begins_with_is_launched_while_watched_and_left_out(library):
    library(FakeCupti(passes=2, ranges=3))
    done = []
    preparation = Preparation(lambda: done.append("before"), lambda: done.append("launch"), 2)
    with RangeProfiler(["a.avg"], 4) as profiler:
        samples, dropped = profiler.collect(lambda: done.append("call"), preparation)
    assert samples == [{DURATION: 20.0, "a.avg": 21.0}]
    assert (done, dropped) == (["before", "launch", "call"] * 2, 0)


def test_launches_beyond_the_limit_are_counted_as_left_out(library):
    library(FakeCupti(ranges=2, dropped=1000))
    _, samples, dropped = read(["a.avg"], launches=2)
    assert (len(samples), dropped) == (2, 1000)


def test_a_forbidden_counter_is_a_profiler_error_with_its_remedy(library):
    library(FakeCupti(forbidden=True))
    with pytest.raises(ProfilerError, match="privileges") as caught:
        read(["a.avg"])
    assert caught.value.hint == "for administrators"


def test_passes_without_end_are_an_error(library):
    library(FakeCupti(passes=10**6))
    with pytest.raises(ProfilerError, match="more than 64 passes"):
        read(["a.avg"])


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cupti, "find_library", lambda: None)
    with pytest.raises(ProfilerError, match="install nvidia-cuda-cupti"):
        cupti.Library()
