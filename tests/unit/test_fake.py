"""The scripted profiler, through the ladder that it stands in for."""

from __future__ import annotations

import pytest

from engine.backends.ladder import Answer, metric_values
from engine.errors import ProfilerError
from engine.settings import Metric, Spelling
from profilers.fake import Failure, Fake
from profilers.seam import Job

SCRIPT = {"a": {"duration_us": 30.0, "hits": 20.0}, "b": {"duration_us": 10.0, "hits": 60.0}}


def job(kernels=()) -> Job:
    return Job((), ".", {}, kernels, None)


def test_it_answers_from_its_script_for_the_jobs_kernels():
    fake = Fake(SCRIPT)
    assert [sample.kernel for sample in fake.collect(job(), ["hits"])] == ["a", "b"]
    (sample,) = fake.collect(job(("b", "c")), ["hits", "misses"])
    assert (sample.kernel, sample.duration_us, sample.counters) == ("b", 10.0, {"hits": 60.0})


def test_its_samples_aggregate_like_any_tools():
    vocabulary = {"hit": Metric("%", "max", "Hits.", 0, 100, "time_mean", {"fake": Spelling("hits")})}
    (value,) = metric_values(["hit"], vocabulary, [Answer("fake", Fake(SCRIPT).collect(job(), ["hits"]))])
    assert (value.value, value.source) == (30.0, "fake")


@pytest.mark.parametrize("failure", Failure)
def test_each_failure_is_raised_and_only_absence_is_known_before(failure):
    fake = Fake(SCRIPT, failure)
    assert (fake.available() is not None) == (failure is Failure.ABSENT)
    with pytest.raises(ProfilerError, match=failure.value[0]) as caught:
        fake.collect(job(), ["hits"])
    assert caught.value.hint == failure.value[1]


def test_without_a_kernel_of_the_script_there_is_a_reason():
    with pytest.raises(ProfilerError, match="no launch of c"):
        Fake(SCRIPT).collect(job(("c",)), ["hits"])
    with pytest.raises(ProfilerError, match="no launch of any kernel"):
        Fake().collect(job(), ["hits"])
