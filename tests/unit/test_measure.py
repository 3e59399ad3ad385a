from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.errors import WorkerError
from engine.judging import clocked, gpu_state, measure, sides
from engine.judging.children import ChildEnded, ChildTimeout
from engine.judging.executors import ExecutorFault
from engine.judging.gpu_state import is_short, lease, lock_path, tell_shortage
from engine.judging.judge import Stop
from engine.judging.messages import Failure
from engine.judging.planned import Untraceable
from engine.judging.replayed import NotReplayable
from engine.records import Contract, Precision, Reason, ScoreKind, Status, Task
from engine.settings import CudaSettings, LimitSettings

CUDA = CudaSettings(0, 1, ("eager", "compile"), 5, 10, 10.0, 0.05, 5.0, True, False)
LIMITS = LimitSettings(1.0, 1.0, 1.0, 8, 8)
TASK = Task("t", "t", "source", Contract(), "declared", "hash")


class FakeWorker:
    """Answers as the baseline process does; `absent` names what does not build, `hangs` what kills it, `loses` what is
    built and then cannot be timed. `us`: what each side takes."""

    def __init__(
        self,
        absent=(),
        hangs=(),
        loses=(),
        us=(("eager", 40.0), ("compile", 30.0)),
        why="OutOfResources",
        dies=False,
        fault="RuntimeError: a graph cannot be replayed",
    ):
        self.fault = fault
        self.why, self.dies = why, dies
        self.absent, self.hangs, self.alive, self.closed = absent, hangs, True, False
        self.loses, self.us, self.blocks, self.dropped = loses, dict(us), [], []

    def ask(self, message, timeout_s):
        if message["op"] == "open":
            if self.dies:
                self.alive = False
                raise WorkerError("gave no answer")
            return {"settings": {"autograd": "off"}, "sets": 3}
        if message["op"] == "build":
            if message["who"] in self.hangs:
                self.alive = False
                raise WorkerError("gave no answer")
            return {"absent": self.why if message["who"] in self.absent else None}
        if message["op"] == "drop":
            self.dropped.append(message["who"])
            return {}
        self.blocks.append(message["who"])
        if message["who"] in self.loses:
            return {"error": self.fault}
        return {"times_us": [self.us[message["who"]] * random.uniform(0.99, 1.01)]}

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
    monkeypatch.setattr(measure, "WARM_UP_S", 0.0)

    def make(workers, children, replays=None, cuda=CUDA):
        left = list(workers)
        monkeypatch.setattr(sides, "_spawn", lambda bench, module, folder: left.pop(0))
        watch = measure.Stopwatch(sides.Bench(cuda, LIMITS, "GPU-0", {}, tmp_path, replays))
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
    assert got.passing


def test_a_baseline_that_does_not_build_is_absent_with_a_note(stopwatch):
    got = timed(stopwatch([FakeWorker(absent=("compile",))], [FakeChild(GOOD)]))
    assert [ratio.over for ratio in got.ratios] == ["eager"]
    assert (got.note, got.passing) == ("compile is absent: OutOfResources", False)


def test_a_compiler_that_takes_its_process_along_leaves_the_eager_reference(stopwatch):
    got = timed(stopwatch([FakeWorker(hangs=("compile",)), FakeWorker()], [FakeChild(GOOD)]))
    assert [ratio.over for ratio in got.ratios] == ["eager"]
    assert "compile is absent" in got.note
    assert got.passing


def test_a_baseline_that_dies_at_its_start_is_not_remembered_as_absent(stopwatch):
    got = timed(stopwatch([FakeWorker(dies=True), FakeWorker(dies=True)], [FakeChild(GOOD)]))
    assert got.ratios == ()
    assert got.passing


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


class FakeReplay:
    """A plan behind a clock. `wrong`: what comparing its timed results raises; `lacks`: how often opening it finds no
    memory."""

    def __init__(self, us=20.0, wrong=None, small=False, fails_after=None, clocks_apart=1.001, lacks=0):
        self.opened, self.lacks, self.is_large = [], lacks, False
        self.clocks_apart, self.sustained, self.cannot_swap, self.spoiled = clocks_apart, 1.0, None, False
        self.us, self.wrong, self.cold_matters, self.checked, self.swapped = us, wrong, small, 0, 0
        self.left = fails_after

    def open(self, *, cold):
        if self.lacks:
            self.lacks -= 1
            raise NO_MEMORY
        self.opened.append(cold)

    def ask(self, message, timeout_s):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise ExecutorFault("ended", "the executor ended with status -9")
        if message["op"] == "wall_clock":
            events_us = self.us * self.sustained
            return {"events_us": events_us, "wall_us": events_us * self.clocks_apart}
        warm = "cold" in message and not message["cold"]
        return {"times_us": [(self.us / 2 if warm else self.us) * random.uniform(0.99, 1.01) for _ in range(3)]}

    def swap(self, other):
        self.swapped += 1
        if self.cannot_swap is not None:
            raise self.cannot_swap

    def spoil(self):
        self.spoiled = True

    def check(self):
        self.checked += 1
        wrong = self.wrong.pop(0) if isinstance(self.wrong, list) else self.wrong
        if wrong is not None:
            raise wrong


class FakeReplays:
    """Plans by source; an exception is why there is none."""

    def __init__(self, **plans):
        self.plans, self.open_now, self.gave_back = plans, 0, 0

    def free(self):
        self.gave_back += 1

    @contextlib.contextmanager
    def timed(self, task, source, who):
        found = self.plans[source]
        if isinstance(found, Exception):
            raise found
        self.open_now += 1
        try:
            yield found
        finally:
            self.open_now -= 1


WRONG = Stop(Failure(Status.REJECTED, Reason.WRONG_RESULT, "48 of 48 elements are wrong"))


def kinds_of(measured):
    return {timing.who: timing.score_kind for timing in measured.timings}


def test_a_candidate_with_a_plan_is_measured(stopwatch):
    plan = FakeReplay()
    replays = FakeReplays(c=plan)
    got = timed(stopwatch([FakeWorker()], [], replays))
    assert kinds_of(got)["candidate"] is ScoreKind.MEASURED
    assert got.ratio("eager").value == pytest.approx(2.0, rel=0.03)
    assert (got.note, plan.checked) == ("", 1)
    assert (plan.opened, replays.open_now) == ([True], 0)
    assert "candidate_warm_us" not in got.settings


def test_a_plan_that_fits_into_the_cache_has_a_warm_time_too(stopwatch):
    got = timed(stopwatch([FakeWorker()], [], FakeReplays(c=FakeReplay(small=True))))
    assert float(got.settings["candidate_warm_us"]) == pytest.approx(10.0, rel=0.03)
    assert got.timing("candidate").median_us == pytest.approx(20.0, rel=0.03)


def test_both_plans_are_compared_with_the_reference(stopwatch):
    plans = FakeReplay(), FakeReplay(us=26.0)
    got = timed(stopwatch([FakeWorker()], [], FakeReplays(c=plans[0], i=plans[1])), incumbent="i")
    assert got.ratio("incumbent").value == pytest.approx(1.3, rel=0.03)
    assert [(plan.checked, plan.swapped) for plan in plans] == [(2, 1), (2, 0)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        pytest.param(WRONG, "48 of 48 elements are wrong", id="wrong"),
        pytest.param(ExecutorFault("ended", "the executor ended"), "the executor ended", id="executor-lost"),
        pytest.param(NotReplayable("RuntimeError: no"), "RuntimeError: no", id="cannot-be-followed"),
    ],
)
@pytest.mark.parametrize("who", ["candidate", "incumbent"])
def test_what_computes_something_else_while_it_is_timed_is_dropped_with_a_note(stopwatch, who, wrong, words):
    plans = {"candidate": FakeReplay(), "incumbent": FakeReplay(us=26.0)}
    plans[who].wrong = wrong
    replays = FakeReplays(c=plans["candidate"], i=plans["incumbent"])
    got = timed(stopwatch([FakeWorker()], [], replays), incumbent="i")
    assert got.timing(who) is None
    assert got.timing("eager") is not None
    assert got.note.startswith(f"{who}: ")
    assert "outputs of timed calls" in got.note
    assert words in got.note
    assert bool(got.refuted) == (who == "candidate" and wrong is WRONG)
    assert got.passing == (wrong is not WRONG)
    assert replays.open_now == 0


@pytest.mark.parametrize(
    "why",
    [Untraceable("reads a value on the host"), NotReplayable("ReplayError: another layout")],
    ids=lambda e: str(e),
)
def test_without_a_plan_the_candidate_is_timed_in_its_own_process(stopwatch, why):
    got = timed(stopwatch([FakeWorker()], [FakeChild(GOOD)], FakeReplays(c=why)))
    assert kinds_of(got)["candidate"] is ScoreKind.UNVERIFIED
    assert got.note == f"candidate is timed in its own process: {why}"
    assert not got.passing


@pytest.mark.parametrize("why", [WRONG, ExecutorFault("timeout", "no answer within 5 s")], ids=["stop", "fault"])
def test_a_plan_that_fails_while_it_is_loaded_is_no_candidate(stopwatch, why):
    got = timed(stopwatch([FakeWorker()], [], FakeReplays(c=why)))
    assert got.timing("candidate") is None
    assert got.note == f"candidate: {why}"
    assert got.ratios == ()


def test_an_executor_that_is_lost_while_it_is_timed_takes_only_its_side_along(stopwatch):
    replays = FakeReplays(c=FakeReplay(fails_after=4), i=FakeReplay(us=26.0))
    got = timed(stopwatch([FakeWorker()], [], replays), incumbent="i")
    assert set(kinds_of(got)) == {"incumbent", "eager", "compile"}
    assert "its timed process was lost: the executor ended" in got.note


@pytest.mark.parametrize(
    ("apart", "timed_at_all"), [(1.001, True), (1.02, True), (0.99, True), (1.05, False), (0.9, False), (4.0, False)]
)
def test_a_time_that_the_hosts_clock_denies_is_none(stopwatch, apart, timed_at_all):
    got = timed(stopwatch([FakeWorker()], [], FakeReplays(c=FakeReplay(clocks_apart=apart))))
    assert (got.timing("candidate") is not None) == timed_at_all
    assert ("host's clock differ" in got.note) == (not timed_at_all)
    assert ("wall_clock_apart" in got.settings) == timed_at_all


@pytest.mark.parametrize(("sustained", "believed"), [(0.5, True), (1.1, True), (1.3, False), (4.0, False)])
def test_a_time_that_calls_in_a_row_cannot_keep_is_none(stopwatch, sustained, believed):
    plan = FakeReplay()
    plan.sustained = sustained
    got = timed(stopwatch([FakeWorker()], [], FakeReplays(c=plan)))
    assert (got.timing("candidate") is not None) == believed


@pytest.mark.parametrize(
    "why", [ExecutorFault("ended", "it ended"), RuntimeError("CUDA out of memory"), NotReplayable("no")], ids=str
)
def test_plans_that_cannot_change_places_are_both_left_out(stopwatch, why):
    plans = FakeReplay(), FakeReplay(us=26.0)
    plans[0].cannot_swap = why
    got = timed(stopwatch([FakeWorker(), FakeWorker()], [], FakeReplays(c=plans[0], i=plans[1])), incumbent="i")
    assert set(kinds_of(got)) == {"eager", "compile"}
    assert "could not change places" in got.note
    assert plans[0].spoiled
    assert plans[1].spoiled
    assert got.refuted == ""


def test_an_executor_whose_outputs_cannot_be_read_serves_nobody_else(stopwatch):
    lost, wrong = FakeReplay(), FakeReplay(us=26.0)
    lost.wrong, wrong.wrong = ExecutorFault("ended", "it ended"), WRONG
    timed(stopwatch([FakeWorker()], [], FakeReplays(c=lost, i=wrong)), incumbent="i")
    assert lost.spoiled
    timed(stopwatch([FakeWorker()], [], FakeReplays(c=wrong)))
    assert not wrong.spoiled


NO_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 6.00 GiB")


def test_what_finds_no_memory_beside_others_is_built_again_alone(stopwatch):
    first, second, plan = FakeWorker(), FakeWorker(), FakeReplay(lacks=1)
    replays = FakeReplays(c=plan)
    got = timed(stopwatch([first, second], [], replays))
    assert kinds_of(got)["candidate"] is ScoreKind.MEASURED
    assert (got.note, got.passing) == ("built again alone on the GPU, for memory lacked", False)
    assert (first.closed, second.alive, plan.spoiled, replays.gave_back) == (True, True, True, 1)


def test_what_finds_no_memory_alone_either_is_no_candidate(stopwatch):
    got = timed(stopwatch([FakeWorker(), FakeWorker()], [], FakeReplays(c=FakeReplay(lacks=2))))
    assert got.timing("candidate") is None
    assert "no memory for its rotated inputs: CUDA out of memory" in got.note
    assert got.passing


def test_a_baseline_that_finds_no_memory_alone_either_is_built_once(stopwatch):
    workers = [FakeWorker(absent=("compile",), why="OutOfMemoryError: CUDA out of memory") for _ in range(2)]
    watch = stopwatch(workers, [FakeChild(GOOD) for _ in range(4)])
    for _ in range(3):
        got = timed(watch)
        assert [ratio.over for ratio in got.ratios] == ["eager"]
        assert got.passing
    assert [worker.closed for worker in workers] == [True, False]


def test_a_plan_that_finds_no_memory_for_its_reference_is_tried_alone(stopwatch):
    replays = FakeReplays(c=RuntimeError("CUDA out of memory. Tried to allocate 6.00 GiB"))
    got = timed(stopwatch([FakeWorker(), FakeWorker()], [], replays))
    assert got.timing("candidate") is None
    assert got.timing("eager") is not None
    assert got.passing
    assert "no memory for its reference" in got.note
    assert replays.gave_back == 1


def test_what_is_wrong_is_not_compared_again(stopwatch):
    plan = FakeReplay()
    plan.wrong = [Stop(Failure(Status.REJECTED, Reason.WRONG_RESULT, "not enough memory in it, says the kernel")), None]
    got = timed(stopwatch([FakeWorker()], [], FakeReplays(c=plan)))
    assert got.refuted
    assert (plan.checked, got.passing) == (1, False)


def test_a_side_that_finds_no_memory_while_it_is_timed_is_timed_again_alone(stopwatch):
    workers = [FakeWorker(loses=("eager",), fault="OutOfMemoryError: CUDA out of memory"), FakeWorker()]
    got = timed(stopwatch(workers, [], FakeReplays(c=FakeReplay())))
    assert {ratio.over for ratio in got.ratios} == {"eager", "compile"}
    assert [worker.closed for worker in workers] == [True, False]


@pytest.mark.parametrize("large", [True, False])
def test_a_plan_that_needs_much_memory_is_built_and_compared_beside_smaller_ones_only(
    stopwatch, tmp_path, monkeypatch, large
):
    held = []
    share = gpu_state.share

    def noted(lock, *, large):
        held.append(large)
        return share(lock, large=large)

    monkeypatch.setattr(clocked, "share", noted)
    plan = FakeReplay()
    plan.is_large = large
    timed(stopwatch([FakeWorker()], [], FakeReplays(c=plan)))
    assert held == [large, large]


def test_a_baseline_that_found_no_memory_is_not_kept(stopwatch):
    got = timed(
        stopwatch(
            [FakeWorker(absent=("eager",), why="OutOfMemoryError: CUDA out of memory"), FakeWorker()],
            [FakeChild(GOOD)] * 2,
        )
    )
    assert {ratio.over for ratio in got.ratios} == {"eager", "compile"}
    assert got.note == "built again alone on the GPU, for memory lacked"


@pytest.mark.parametrize(("times", "timed_at_all"), [(1, True), (2, False)])
def test_outputs_that_find_no_memory_are_compared_again_alone(stopwatch, times, timed_at_all):
    plan = FakeReplay()
    plan.wrong = [*[NO_MEMORY] * times, None]
    replays = FakeReplays(c=plan)
    got = timed(stopwatch([FakeWorker()], [], replays))
    assert (got.timing("candidate") is not None) == timed_at_all
    assert (plan.checked, replays.gave_back) == (2, 1)
    assert got.refuted == ""


def told_by_another(lock, seconds_ago):
    lock.with_suffix(".short").write_text("1")
    told = time.time() - seconds_ago
    os.utime(lock.with_suffix(".short"), (told, told))


def test_when_another_engine_lacked_memory_a_baseline_is_given_up_once(stopwatch, tmp_path, monkeypatch):
    lock, workers = tmp_path / "lock", [FakeWorker() for _ in range(3)]
    watch = stopwatch(workers, [], FakeReplays(c=FakeReplay()))
    timed(watch)
    tell_shortage(lock)
    timed(watch)
    assert not (workers[0].closed or is_short(lock)), "its own shortage"
    for ago, closed in ((20, [True, False, False]), (10, [True, True, False])):
        told_by_another(lock, ago)
        for _ in range(2):
            assert timed(watch).ratio("eager") is not None
            assert [worker.closed for worker in workers] == closed
    monkeypatch.setattr(gpu_state, "SHORT_S", 0.0)
    told_by_another(lock, 1)
    timed(watch)
    assert not (workers[2].closed or is_short(lock)), "long ago"


def test_a_stopwatch_that_waits_makes_room_for_who_lacks_memory(stopwatch, tmp_path):
    lock, worker, replays = tmp_path / "lock", FakeWorker(), FakeReplays(c=FakeReplay())
    watch = stopwatch([worker, FakeWorker()], [], replays)
    timed(watch)
    watch.make_room_if_short()
    assert not (worker.closed or replays.gave_back)
    told_by_another(lock, 1)
    timed(watch)
    assert (worker.closed, replays.gave_back) == (True, 0), "a baseline at least, at the next measurement"
    for _ in range(2):
        watch.make_room_if_short()
    assert replays.gave_back == 1


def test_a_shortage_is_told_through_no_link_and_no_other_users_file(tmp_path):
    lock, elsewhere = tmp_path / "gpu.lock", tmp_path / "elsewhere"
    lock.with_suffix(".short").symlink_to(elsewhere)
    tell_shortage(lock)
    assert not elsewhere.exists()


FORMS = ("eager", "compile", "eager_graph", "compile_graph")
FOUR = dataclasses.replace(CUDA, baselines=FORMS)
FOUR_US = (("eager", 40.0), ("compile", 30.0), ("eager_graph", 25.0), ("compile_graph", 35.0))


def test_baselines_are_screened_once_and_eager_and_the_fastest_are_paired(stopwatch):
    worker = FakeWorker(us=FOUR_US)
    watch = stopwatch([worker], [], FakeReplays(c=FakeReplay()), FOUR)
    got = timed(watch)
    assert set(kinds_of(got)) == {"candidate", "eager", "eager_graph"}
    assert got.ratio("eager_graph").value == pytest.approx(1.25, rel=0.03)
    assert float(got.settings["compile_alone_us"]) == pytest.approx(30.0, rel=0.03)
    assert worker.blocks.count("compile") == measure.SCREEN_BLOCKS
    assert sorted(worker.dropped) == ["compile", "compile_graph"]
    timed(watch)
    assert worker.blocks.count("compile") == measure.SCREEN_BLOCKS
    assert len(worker.dropped) == 2


def test_eager_alone_is_paired_once_where_it_is_the_fastest(stopwatch):
    got = timed(stopwatch([FakeWorker(us=(("eager", 20.0), ("compile", 30.0)))], [], FakeReplays(c=FakeReplay())))
    assert set(kinds_of(got)) == {"candidate", "eager"}


def test_a_baseline_that_is_lost_in_screening_is_noted_and_the_next_fastest_paired(stopwatch):
    worker = FakeWorker(us=FOUR_US, loses=("eager_graph",))
    got = timed(stopwatch([worker], [], FakeReplays(c=FakeReplay()), FOUR))
    assert set(kinds_of(got)) == {"candidate", "eager", "compile"}
    assert got.note == "eager_graph: RuntimeError: a graph cannot be replayed"
    assert "eager_graph_alone_us" not in got.settings
    assert not got.passing


PROBED = dataclasses.replace(CUDA, python_probe=True)
SLOWER = {**GOOD, "time_block": {"times_us": [55.0]}}


@pytest.mark.parametrize(
    ("answers", "call_us", "words"),
    [
        pytest.param(SLOWER, "55", "", id="slower"),
        pytest.param({**GOOD, "time_block": {"times_us": [19.8]}}, "19.8", "", id="as-fast"),
        pytest.param(
            {**GOOD, "time_block": {"times_us": [9.0]}}, "9", "they do not do the same", id="faster-than-its-plan"
        ),
        pytest.param({"start": "dies"}, None, "python: its process did not start", id="dies"),
        pytest.param(
            {**GOOD, "time_block": ChildTimeout("no answer")}, None, "python: its timed process was lost", id="hangs"
        ),
    ],
)
def test_a_new_best_is_also_timed_in_python(stopwatch, answers, call_us, words):
    got = timed(stopwatch([FakeWorker()], [FakeChild(answers)], FakeReplays(c=FakeReplay()), PROBED))
    assert (got.settings["python_call_us"] if call_us else None) == call_us
    assert "python_call_us" not in got.settings or call_us
    assert words in got.note
    assert bool(got.note) == bool(words)
    assert got.timing("candidate").score_kind is ScoreKind.MEASURED


@pytest.mark.parametrize(
    "plans",
    [
        pytest.param({"c": FakeReplay(), "i": FakeReplay(us=15.0)}, id="slower-than-the-incumbent"),
        pytest.param({"c": Untraceable("no plan"), "i": FakeReplay()}, id="without-a-plan"),
    ],
)
def test_what_is_no_new_best_is_not_timed_in_python(stopwatch, plans):
    children = [FakeChild(GOOD)] if isinstance(plans["c"], Exception) else []
    got = timed(stopwatch([FakeWorker()], children, FakeReplays(**plans), PROBED), incumbent="i")
    assert "python_call_us" not in got.settings


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


def test_the_lease_is_one_for_processes_with_temporary_folders_of_their_own(tmp_path):
    code = "from engine.judging.gpu_state import lock_path; print(lock_path('GPU-1'))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(lock_path("GPU-1"))
