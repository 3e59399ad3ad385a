from __future__ import annotations

import random
from pathlib import Path

import pytest

from engine.errors import WorkerError
from engine.judging import measure
from engine.judging.children import ChildEnded
from engine.judging.gpu_state import lease, lock_path
from engine.records import Contract, Precision, ScoreKind, Task
from engine.settings import CudaSettings, LimitSettings

CUDA = CudaSettings(0, ("eager", "compile"), 5, 10, 10.0, 0.05, 5.0, True)
LIMITS = LimitSettings(1.0, 1.0, 1.0, 8, 8)
TASK = Task("t", "t", "source", Contract(), "declared", "hash")


class FakeWorker:
    """Answers as the baseline process does; `absent` names what does not build, `hangs` what kills it."""

    def __init__(self, absent=(), hangs=()):
        self.absent, self.hangs, self.alive, self.closed = absent, hangs, True, False

    def ask(self, message, timeout_s):
        if message["op"] == "open":
            return {"settings": {"autograd": "off"}, "sets": 3}
        if message["op"] == "build":
            if message["who"] in self.hangs:
                self.alive = False
                raise WorkerError("gave no answer")
            return {"absent": "OutOfMemory" if message["who"] in self.absent else None}
        return {"times_us": [{"eager": 40.0, "compile": 30.0}[message["who"]] * random.uniform(0.99, 1.01)]}

    def close(self):
        self.alive, self.closed = False, True


class FakeChild:
    scratch = Path("/nowhere")

    def __init__(self, answers):
        self.answers = answers

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def start(self):
        if self.answers.get("start") == "dies":
            raise ChildEnded(-11, "the process ended")

    def ask(self, message, timeout_s):
        answer = self.answers[message["op"]]
        if isinstance(answer, Exception):
            raise answer
        return answer


GOOD = {"open": {"settings": {}, "sets": 2}, "time_block": {"times_us": [20.0, 20.2]}}


@pytest.fixture
def stopwatch(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "lock_path", lambda uuid: tmp_path / "lock")
    monkeypatch.setattr(measure, "ForkServerClient", lambda environment, log: None)

    def make(workers, children):
        left = list(workers)
        monkeypatch.setattr(measure, "_spawn", lambda bench, module, folder: left.pop(0))
        watch = measure.Stopwatch(measure.Bench(CUDA, LIMITS, "GPU-0", {}, tmp_path))
        forked = list(children)
        monkeypatch.setattr(watch, "_server", FakeWorker())
        monkeypatch.setattr(watch, "_child", lambda: forked.pop(0))
        return watch

    return make


def timed(watch, source="c", incumbent=None):
    return watch.measure(TASK, Precision.IEEE, source, incumbent, 5.0)


def test_a_candidate_is_paired_with_both_baselines(stopwatch):
    got = timed(stopwatch([FakeWorker()], [FakeChild(GOOD)]))
    assert got.ratio("eager").value == pytest.approx(2.0, rel=0.03)
    assert got.ratio("compile").value == pytest.approx(1.5, rel=0.03)
    kinds = {timing.who: timing.score_kind for timing in got.timings}
    assert kinds == {
        "candidate": ScoreKind.UNVERIFIED,
        "eager": ScoreKind.MEASURED,
        "compile": ScoreKind.MEASURED,
    }
    assert (got.floor_us, got.note) == (5.0, "")
    assert (got.settings["autograd"], got.settings["input_sets"]) == ("off", "3")


def test_an_incumbent_is_paired_too(stopwatch):
    slower = {**GOOD, "time_block": {"times_us": [26.0]}}
    got = timed(stopwatch([FakeWorker()], [FakeChild(GOOD), FakeChild(slower)]), incumbent="i")
    assert got.ratio("incumbent").value == pytest.approx(1.3, rel=0.02)


def test_without_a_candidate_the_baselines_stand_alone(stopwatch):
    got = timed(stopwatch([FakeWorker()], []), source=None)
    assert [timing.who for timing in got.timings] == ["eager", "compile"]
    assert got.ratios == ()


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param({"start": "dies"}, id="dies-at-start"),
        pytest.param({**GOOD, "open": {"error": "RuntimeError: no"}}, id="raises"),
        pytest.param({**GOOD, "time_block": ChildEnded(-9, "the process ended")}, id="dies-while-timed"),
        pytest.param({**GOOD, "time_block": {"times_us": []}}, id="no-times"),
        pytest.param({**GOOD, "time_block": {"times_us": [-1.0]}}, id="negative-times"),
        pytest.param({**GOOD, "time_block": {"times_us": ["fast"]}}, id="words"),
        pytest.param({**GOOD, "time_block": [1.0]}, id="no-object"),
        pytest.param({**GOOD, "time_block": {}}, id="no-key"),
        pytest.param({**GOOD, "open": {"error": {"type": "E", "message": "m"}}}, id="described-error"),
    ],
)
def test_a_candidate_that_cannot_be_timed_is_a_note_beside_the_baselines(stopwatch, answers):
    got = timed(stopwatch([FakeWorker()], [FakeChild(answers)]))
    assert got.timing("candidate") is None
    assert got.timing("eager") is not None
    assert got.ratios == ()
    assert got.note.startswith("candidate: ")


def test_a_baseline_that_does_not_build_is_absent_with_a_note(stopwatch):
    got = timed(stopwatch([FakeWorker(absent=("compile",))], [FakeChild(GOOD)]))
    assert [ratio.over for ratio in got.ratios] == ["eager"]
    assert got.note == "compile is absent: OutOfMemory"


def test_a_compiler_that_takes_its_process_along_leaves_the_eager_reference(stopwatch):
    got = timed(stopwatch([FakeWorker(hangs=("compile",)), FakeWorker()], [FakeChild(GOOD)]))
    assert [ratio.over for ratio in got.ratios] == ["eager"]
    assert "compile is absent" in got.note


def test_nothing_to_time_is_an_engine_error(stopwatch):
    with pytest.raises(WorkerError, match=r"nothing could be timed.*eager is absent"):
        timed(stopwatch([FakeWorker(absent=("eager", "compile"))], []), source=None)


def test_the_baseline_process_is_kept_for_a_task_and_replaced_for_the_next(stopwatch):
    first, second = FakeWorker(), FakeWorker()
    watch = stopwatch([first, second], [FakeChild(GOOD), FakeChild(GOOD), FakeChild(GOOD)])
    timed(watch)
    timed(watch)
    assert not first.closed
    watch.measure(TASK, Precision.TF32, "c", None, None)
    assert first.closed
    assert second.alive
    watch.close()
    assert second.closed


def test_a_lease_is_exclusive_and_shared_ones_overlap(tmp_path):
    import fcntl
    import os

    path = tmp_path / "gpu.lock"

    def free(how):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    with lease(path):
        assert not free(fcntl.LOCK_SH)
    with lease(path, shared=True), lease(path, shared=True):
        assert free(fcntl.LOCK_SH)
        assert not free(fcntl.LOCK_EX)
    assert free(fcntl.LOCK_EX)
    assert lock_path("GPU-1") != lock_path("GPU-2")
