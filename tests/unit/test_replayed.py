"""Candidates judged from launch plans, on the CPU: hand-made plans of host operations against a real reference."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from engine.judging import timed
from engine.judging.allowance import Allowance
from engine.judging.executors import ExecutorFault, NoRoom
from engine.judging.gpu_graphs import _groups
from engine.judging.judge import Findings, Judge, Place, Stop
from engine.judging.on_device import ReplayJudge
from engine.judging.plan import Origin
from engine.judging.planned import Prepared, Untraceable
from engine.judging.references import FULL
from engine.judging.replayed import RACE_CALLS, Compiled, NotReplayable, ReplayedVariant
from engine.judging.timed import TimedReplay, rotation
from engine.records import Contract, Reason, Status, Task
from tests.support import executors
from tests.support.judge import settings
from tests.support.plans import buffer, call, host, literal, plan, ref

INPUT, STATE, OP = Origin.INPUT, Origin.STATE, Origin.OP
ROWS, COLUMNS = 6, 8
SIZE = ROWS * COLUMNS
BYTES = 4 * SIZE
SOURCE = """import torch
import torch.nn as nn

ROWS = 6
COLUMNS = 8


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(COLUMNS))

    def forward(self, x):
        return RESULT


def get_inputs():
    return [torch.rand(ROWS, COLUMNS)]


def get_init_inputs():
    return []
"""


def task(result="x * self.scale"):
    declared = Contract(dtype="float32", suites=("nominal", "signed"), variants={"same": {"ROWS": ROWS}})
    return Task("scale", "scale", SOURCE.replace("RESULT", result), declared, "declared", result)


@pytest.fixture(scope="module")
def judge():
    """Nothing here runs a candidate, so both fork servers are one that is never asked."""
    place = Place("cpu", "sm_90", False, executors.scratch())
    return Judge(settings().judge, place, executors.server(), executors.server())


@pytest.fixture(scope="module")
def executor():
    with executors.executor() as taken:
        yield taken


def variant(judge, executor, steady_plan, *, of=None, seconds=60.0, kind=ReplayedVariant):
    allowance = Allowance(seconds, lambda: executor.waited_s)
    return kind(judge, executor, Compiled(steady_plan, (), {}), of or task(), "same", Findings(3), allowance)


def outcome(judge, executor, steady_plan, **more):
    """How the judgement of a plan ends: the reason and the message of its Stop, or None and what was found."""
    run = variant(judge, executor, steady_plan, **more)
    try:
        run.all_suites("")
    except Stop as stop:
        return stop.failure.reason, stop.failure.message
    return None, run.found


IN, SCALE, OUT = ref(0, ROWS, COLUMNS), ref(1, COLUMNS), ref(2, ROWS, COLUMNS)
BUFFERS = (buffer(BYTES, INPUT, name="0"), buffer(4 * COLUMNS, STATE, kept=True, name="scale"), buffer(BYTES))
SCALED = host("mul.out", IN, SCALE, out=OUT)
HONEST = plan(BUFFERS, call([SCALED], OUT))


def counting(limit):
    """Right as long as the plan has been called at most `limit` times: a kept counter adds to the result after that."""
    counter, excess = ref(3, 1), ref(4, 1)
    steps = [
        SCALED,
        host("add_.Scalar", counter, 1.0),
        host("gt.Scalar_out", counter, float(limit), out=excess),
        host("add_.Tensor", OUT, excess),
    ]
    return plan((*BUFFERS, literal([0.0], kept=True), buffer(4)), call(steps, OUT))


def test_an_honest_plan_is_correct_under_every_suite(judge, executor):
    reason, found = outcome(judge, executor, HONEST)
    assert reason is None, found
    assert {check.suite for check in found.checks} == {"nominal", "signed"}
    # Two suites, each call of the race probe that differed, and the first again on other poison.
    assert len(found.checks) == 4
    assert found.precision_class in ("exact", "ieee")


MADE = plan((*BUFFERS[:2], buffer(BYTES, OP)), call([host("mul.Tensor", IN, SCALE, makes=(2,))], OUT))
PAIR = task("(x * self.scale, x + 1.0)")
SECOND = ref(3, ROWS, COLUMNS)
PAIRED = plan(
    (*BUFFERS, buffer(BYTES, OP)),
    call([SCALED, host("add.Scalar", IN, 1.0, makes=(3,))], OUT, SECOND, tree={"tuple": ["t", "t"]}),
)
TRANSFORMED = (*BUFFERS, buffer(4 * COLUMNS, OP))
IN_STEADY = plan(
    TRANSFORMED, call([host("clone", SCALE, makes=(3,)), host("mul.out", IN, ref(3, COLUMNS), out=OUT)], OUT)
)
LAZY = plan(
    (*BUFFERS, buffer(BYTES, OP)),
    call([SCALED], OUT),
    first=call([host("mul.Tensor", IN, SCALE, makes=(3,))], SECOND),
)


@pytest.mark.parametrize(
    ("described", "of"),
    [
        pytest.param(MADE, task(), id="made-by-an-operation"),
        pytest.param(PAIRED, PAIR, id="two-outputs"),
        pytest.param(IN_STEADY, task(), id="parameter-transformed-in-each-call"),
        pytest.param(LAZY, task(), id="first-call-by-another-way"),
        pytest.param(counting(1000), task(), id="counter-that-changes-nothing"),
    ],
)
def test_right_plans_of_other_forms_are_correct(judge, executor, described, of):
    reason, message = outcome(judge, executor, described, of=of)
    assert reason is None, message


HALF = host("mul.out", ref(0, ROWS // 2, COLUMNS), SCALE, out=ref(2, ROWS // 2, COLUMNS))
CACHED = (*BUFFERS, buffer(4 * COLUMNS, OP, kept=True))
FROM_CACHE = call([host("mul.out", IN, ref(3, COLUMNS), out=OUT)], OUT)
COPY = host("clone", SCALE, makes=(3,))
KEPT_INPUT = (buffer(BYTES, INPUT, kept=True, name="0"), *BUFFERS[1:])
RANDOM = host("rand", [ROWS, COLUMNS], makes=(3,), device={"device": 0})
NOISY = call([SCALED, RANDOM, host("add_.Tensor", OUT, SECOND)], OUT)
FLAT = dataclasses.replace(HONEST, steady=call([SCALED], ref(2, SIZE)))
WHOLE = dataclasses.replace(HONEST, steady=call([SCALED], ref(2, ROWS, COLUMNS, dtype="int32")))
AS_PAIR = dataclasses.replace(HONEST, steady=call([SCALED], OUT, tree={"tuple": ["t"]}))
TWICE = dataclasses.replace(PAIRED, steady=call([SCALED], OUT, OUT, tree={"tuple": ["t", "t"]}))
CHANGES_STATE = plan(BUFFERS, call([SCALED, host("mul_.Scalar", SCALE, 2.0)], OUT))


@pytest.mark.parametrize(
    ("described", "of", "reason", "words"),
    [
        pytest.param(
            plan(BUFFERS, call([host("add.out", IN, SCALE, out=OUT)], OUT)),
            task(),
            Reason.WRONG_RESULT,
            "variant same, suite nominal",
            id="another-operation",
        ),
        pytest.param(plan(BUFFERS, call([], OUT)), task(), Reason.UNWRITTEN, "never written", id="never-written"),
        pytest.param(plan(BUFFERS, call([HALF], OUT)), task(), Reason.UNWRITTEN, "never written", id="half-written"),
        pytest.param(
            plan(BUFFERS, call([SCALED, host("add_.Tensor", IN, IN)], OUT)),
            task(),
            Reason.MUTATED_INPUT,
            "changed its input 0",
            id="input-changed",
        ),
        pytest.param(CHANGES_STATE, task(), Reason.MUTATED_INPUT, "parameter", id="parameter-changed"),
        pytest.param(
            plan(KEPT_INPUT, call([SCALED], OUT), first=call([SCALED], OUT)),
            task(),
            Reason.WRONG_RESULT,
            "suite nominal",
            id="input-of-the-first-call",
        ),
        pytest.param(
            plan(CACHED, FROM_CACHE, prelude=[COPY]),
            task(),
            Reason.WRONG_RESULT,
            "variant same",
            id="parameter-copied-in-init",
        ),
        pytest.param(
            plan(CACHED, FROM_CACHE, first=call([COPY, *FROM_CACHE.steps], OUT)),
            task(),
            Reason.WRONG_RESULT,
            "suite nominal",
            id="parameter-copied-in-the-first-call",
        ),
        pytest.param(
            plan((*BUFFERS, buffer(BYTES, OP)), NOISY), task(), Reason.WRONG_RESULT, "suite nominal", id="random"
        ),
        pytest.param(counting(3), task(), Reason.UNSTABLE, "right once, wrong when repeated", id="wrong-from-call-4"),
        pytest.param(
            counting(2 + RACE_CALLS), task(), Reason.UNSTABLE, "wrong when repeated", id="wrong-from-the-last-call"
        ),
        pytest.param(FLAT, task(), Reason.SHAPE, "shape [48], expected [6, 8]", id="shape"),
        pytest.param(WHOLE, task(), Reason.DTYPE, "dtype int32, expected float32", id="dtype"),
        pytest.param(AS_PAIR, task(), Reason.STRUCTURE, "a tuple of 1", id="tuple-of-one"),
        pytest.param(HONEST, PAIR, Reason.STRUCTURE, "expected a tuple of 2", id="one-of-two"),
        pytest.param(TWICE, PAIR, Reason.WRONG_RESULT, "output 1", id="the-same-twice"),
    ],
)
def test_wrong_plans_are_rejected(judge, executor, described, of, reason, words):
    got, message = outcome(judge, executor, described, of=of)
    assert got is reason, message
    assert words in message


@pytest.mark.parametrize(
    "outside",
    [
        pytest.param(ref(2, 1, offset=SIZE), id="element-behind"),
        pytest.param(ref(2, 1, offset=4 * SIZE, dtype="uint8"), id="byte-behind"),
        pytest.param(ref(1, 1, offset=COLUMNS), id="behind-a-parameter"),
    ],
)
def test_a_write_beside_a_tensor_is_a_crash(judge, executor, outside):
    reason, message = outcome(judge, executor, plan(BUFFERS, call([SCALED, host("fill_.Scalar", outside, 1)], OUT)))
    assert reason is Reason.CRASH
    assert "outside its tensors" in message


@pytest.mark.parametrize(
    "described",
    [
        pytest.param(
            plan(
                (*BUFFERS, buffer(BYTES, OP)),
                call([host("neg", ref(0, COLUMNS, ROWS, stride=(1, COLUMNS)), makes=(3,)), SCALED], OUT),
            ),
            id="operation-with-another-layout",
        ),
        pytest.param(
            plan((buffer(BYTES + 4, INPUT, name="0"), *BUFFERS[1:]), call([SCALED], OUT)), id="input-of-another-size"
        ),
        pytest.param(
            plan((BUFFERS[0], buffer(8 * COLUMNS, STATE, kept=True, name="scale"), BUFFERS[2]), call([SCALED], OUT)),
            id="parameter-of-another-size",
        ),
        pytest.param(plan(BUFFERS, call([host("no_such", IN)], OUT)), id="unknown-operation"),
    ],
)
def test_what_the_executor_cannot_follow_is_no_verdict(judge, executor, described):
    with pytest.raises(NotReplayable):
        variant(judge, executor, described).all_suites("")


class Dying(ReplayedVariant):
    """Its executor is killed before the third call."""

    def _forward_part(self, call, part, *, traffic=False):
        if self._turn == 2:
            os.kill(executors.pid_of(self.executor), signal.SIGKILL)
        return super()._forward_part(call, part, traffic=traffic)


def test_an_executor_that_dies_in_a_call_is_a_crash(judge):
    with executors.executor() as taken:
        reason, message = outcome(judge, taken, HONEST, kind=Dying)
    assert reason is Reason.CRASH
    assert "in forward()" in message
    assert "status -9" in message


def test_an_executor_that_is_dead_already_is_a_crash_too(judge):
    with executors.executor() as taken:
        os.kill(executors.pid_of(taken), signal.SIGKILL)
        reason, message = outcome(judge, taken, HONEST)
    assert reason is Reason.CRASH
    assert "while its plan was loaded" in message


def test_a_call_without_end_is_a_timeout(judge):
    side = 1024
    large = (*BUFFERS, buffer(4 * side * side), buffer(4 * side * side))
    product = host("mm.out", ref(3, side, side), ref(3, side, side), out=ref(4, side, side))
    with executors.executor() as taken:
        reason, message = outcome(judge, taken, plan(large, call([product] * 300, OUT)), seconds=1.0)
        assert executors.is_gone(executors.pid_of(taken))
    assert reason is Reason.TIMEOUT
    assert "the executor was killed" in message


class Planner:
    """Hands over a plan, or says why there is none."""

    def __init__(self, described):
        self.described, self.asked = described, 0

    def prepare(self, task, source, host_ops, found, variants=None):
        self.asked += 1
        if isinstance(self.described, Exception):
            raise self.described
        return Prepared({"same": Compiled(self.described, (), {})}, None)


@contextlib.contextmanager
def replay_judge(judge, described):
    with executors.pool() as pool:
        yield ReplayJudge(judge, Planner(described), pool, executors.scratch() / "lock"), pool


@pytest.mark.parametrize(
    ("described", "status", "serves_on"),
    [
        pytest.param(HONEST, None, True, id="correct"),
        pytest.param(FLAT, Status.REJECTED, True, id="rejected"),
        pytest.param(
            plan(BUFFERS, call([SCALED, host("fill_.Scalar", ref(2, 1, offset=SIZE), 1.0)], OUT)),
            Status.FAILED,
            False,
            id="guard-overwritten",
        ),
    ],
)
def test_an_executor_serves_on_unless_memory_was_overwritten(judge, described, status, serves_on):
    found = Findings(3)
    with replay_judge(judge, described) as (decider, pool):
        first = pool.take()
        pool.give_back(first, intact=True)
        try:
            assert decider.decide(task(), "text", "any", found)
            got = None
        except Stop as stop:
            got = stop.failure.status
        again = pool.take()
        pool.give_back(again, intact=True)
    assert got is status
    assert (executors.pid_of(again) == executors.pid_of(first)) == serves_on


@pytest.mark.parametrize(
    "described",
    [
        pytest.param(Untraceable("reads a value on the host"), id="no-plan"),
        pytest.param(
            dataclasses.replace(HONEST, steady=call([SCALED, host("no_such", IN)], OUT)), id="cannot-be-followed"
        ),
    ],
)
def test_without_a_plan_the_candidates_own_process_decides(judge, described):
    found = Findings(3)
    with replay_judge(judge, described) as (decider, _):
        assert not decider.decide(task(), "text", "any", found)
    assert (found.checks, found.precision_class) == ([], None)
    assert found.trace_error


def test_plans_are_kept_for_the_clock(judge):
    with replay_judge(judge, HONEST) as (decider, _):
        for _ in range(2):
            assert decider.decide(task(), "text", "any", Findings(3))
        assert decider.planner.asked == 1
        assert decider.decide(task(), "other text", "any", Findings(3))
        assert decider.planner.asked == 2


MIB = 1 << 20


@pytest.mark.parametrize(
    ("size", "cache", "free", "sets"),
    [
        pytest.param(MIB, 50 * MIB, 1 << 40, timed.MAX_SETS, id="small"),
        pytest.param(10 * MIB, 50 * MIB, 1 << 40, 15, id="three-times-L2"),
        pytest.param(11 * MIB, 50 * MIB, 1 << 40, 14, id="rounded-up"),
        pytest.param(1 << 30, 50 * MIB, 1 << 40, timed.LEAST_SETS, id="one-fills-L2"),
        pytest.param(10 * MIB, 50 * MIB, 100 * MIB, 3, id="little-memory"),
        pytest.param(1 << 30, 50 * MIB, 1 << 30, 1, id="no-room-for-two"),
        pytest.param(0, 50 * MIB, 1 << 30, timed.MAX_SETS, id="no-buffers"),
    ],
)
def test_sets_exceed_the_cache_within_the_memory(size, cache, free, sets):
    assert rotation(size, cache, free) == sets


@pytest.mark.parametrize("sets", [1, 2, 3, 5, 16, 17, 64])
@pytest.mark.parametrize("copies", [1, 2, 3, 9, 40, 64])
def test_graphs_together_go_through_every_set(sets, copies):
    copies = min(copies, sets)
    groups = _groups(sets, copies)
    assert {number for group in groups for number in group} == set(range(sets))
    assert all(len(set(group)) == copies for group in groups)
    assert all(len(group) == copies for group in groups)
    assert len(groups) * copies < sets + copies


class Clocked:
    """An executor whose graphs are calls one after another; `replays` False: it says so and runs nothing. `first`: a
    block goes through so many sets only, as one of slow calls does."""

    def __init__(self, taken, *, replays=True, first=None):
        self._taken, self._replays, self._sets, self._first, self._seen = taken, replays, [], first, set()
        self.anew = []

    def __getattr__(self, name):
        return getattr(self._taken, name)

    def ask(self, message, timeout_s):
        if message["op"] == "graphs":
            self._sets, self.graphs = message["sets"], message
            self._replay(self._sets, timeout_s)
            return {"call_us": 10.0}
        if message["op"] == "replayed":
            self.anew.append(message["anew"])
            seen, self._seen = sorted(self._seen), set()
            return {"sets": seen}
        if message["op"] == "time_block":
            sets = self._sets[: self._first]
            self._seen |= set(sets)
            if self._replays:
                self._replay(sets, timeout_s)
            return {"times_us": [10.0], "cold": message["cold"]}
        return self._taken.ask(message, timeout_s)

    def _replay(self, sets, timeout_s):
        self._seen |= set(sets)
        for number in sets:
            self._taken.ask({"op": "run", "part": "steady", "set": number, "traffic": False}, timeout_s)


@pytest.fixture
def clock(monkeypatch):
    """A device of which nothing but its memory is asked."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 1 << 30))
    monkeypatch.setattr(timed, "_cache_bytes", lambda: 20000)


def opened(judge, taken, described):
    run = variant(judge, taken, described, kind=TimedReplay)
    run.variant = FULL
    run.open(cold=True)
    return run


@pytest.mark.parametrize(
    "described", [HONEST, MADE, LAZY], ids=["in-the-arena", "made-by-an-operation", "with-a-first"]
)
def test_timed_calls_that_compute_what_judged_ones_do_pass(judge, executor, clock, described):
    run = opened(judge, Clocked(executor), described)
    assert run.replay.sets > 1
    assert run.ask({"op": "time_block", "ms": 1.0}, 5.0) == {"times_us": [10.0], "cold": True}
    run.check()
    assert {check.suite for check in run.found.checks} == {"nominal"}
    assert run.cold_matters


def test_sets_of_a_timing_have_values_of_their_own(judge, executor, clock):
    run = opened(judge, Clocked(executor), HONEST)
    run.ask({"op": "time_block", "ms": 1.0}, 5.0)
    results = [run.replay.result("steady", number, 0, 5.0) for number in range(run.replay.sets)]
    assert len({tuple(result.flatten().tolist()) for result in results}) == run.replay.sets


def seeded(judge, taken, seed):
    run = variant(judge, taken, HONEST, kind=TimedReplay)
    run.variant, run.found = FULL, Findings(seed)
    run.reference = judge.references.reference(run.task, FULL)
    run.open(cold=True)
    return run


def test_two_that_are_timed_together_have_parameters_of_their_own(judge, clock):
    """Their module is one: what it holds are the parameters of whoever drew last."""
    with executors.executor() as one, executors.executor() as other:
        candidate, incumbent = seeded(judge, Clocked(one), 1000), seeded(judge, Clocked(other), 1001)
        for turn in range(3):
            if turn:
                candidate.swap(incumbent)
            for run in (candidate, incumbent):
                run.ask({"op": "time_block", "ms": 1.0}, 5.0)
            for run in (candidate, incumbent):
                run.check()


def test_what_outlives_a_replay_is_put_back_before_the_next(judge, executor, clock):
    """A literal could carry a result from the capture to the replays that are timed."""
    values = [1.0] * COLUMNS
    described = plan((*BUFFERS, literal(values), literal(values, kept=True), buffer(BYTES, kept=True)), HONEST.steady)
    clocked = Clocked(executor)
    run = opened(judge, clocked, described)
    offsets, kept = run.replay.layout.offsets, run.replay.layout.kept_fresh
    assert kept[0] <= offsets[0][5] < kept[1]
    size = 4 * COLUMNS
    for number, spans in enumerate(clocked.graphs["restored"]):
        assert sorted(map(tuple, spans)) == sorted(
            [kept, (offsets[0][4], offsets[0][4] + size), (offsets[number][3], offsets[number][3] + size)]
        )


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_call_adds_to_its_literal_is_not_held_against_it(judge, executor, clock, kept):
    """Calls in a row that nothing is renewed between add to it again and again: those compared are made once more, and
    there is no time of calls in a row on one set."""
    clocked = Clocked(executor)
    run = opened(judge, clocked, plan((*BUFFERS, literal([0.0], kept=kept)), HONEST.steady))
    run.ask({"op": "time_block", "ms": 1.0}, 5.0)
    run.check()
    assert clocked.anew == [False, not kept]
    assert run.cold_matters == kept


def test_nothing_is_left_of_the_candidate_before(judge, executor):
    first = opened_for_check(judge, executor)
    place = first.layout.regions[0][0]
    first.memory[place : place + 64].fill_(7)
    again = opened_for_check(judge, executor)
    assert not bool((again.memory[place : place + 64] == 7).any())


def opened_for_check(judge, taken):
    run = variant(judge, taken, HONEST)
    run._load("")
    return run.replay


def test_sets_that_a_short_timing_left_out_are_not_compared(judge, executor, clock):
    run = opened(judge, Clocked(executor, first=1), HONEST)
    run.ask({"op": "time_block", "ms": 1.0}, 5.0)
    assert run.replay.sets > 1
    run.check()
    assert len(run.found.checks) == 1


def test_a_timing_without_a_replay_has_nothing_to_show(judge, executor, clock):
    run = opened(judge, Clocked(executor), HONEST)
    with pytest.raises(NotReplayable, match="no set was replayed"):
        run.check()


def test_a_timing_that_replays_nothing_is_noticed(judge, executor, clock):
    run = opened(judge, Clocked(executor, replays=False), HONEST)
    run.ask({"op": "time_block", "ms": 1.0}, 5.0)
    with pytest.raises(Stop) as caught:
        run.check()
    assert caught.value.failure.reason is Reason.WRONG_RESULT


def test_what_could_not_be_compared_for_want_of_memory_is_compared_the_next_time(judge, executor, clock, monkeypatch):
    run = opened(judge, Clocked(executor), HONEST)
    run.ask({"op": "time_block", "ms": 1.0}, 5.0)
    compared, checked = [], TimedReplay._check

    def lacking(self, call, *rest):
        compared.append(call.name)
        if len(compared) == 2:
            raise RuntimeError("CUDA out of memory")
        checked(self, call, *rest)

    monkeypatch.setattr(TimedReplay, "_check", lacking)
    with pytest.raises(RuntimeError, match="out of memory"):
        run.check()
    run.check()
    assert compared[2] == compared[1]
    assert len(set(compared)) == len(compared) - 1 > 1


def test_a_wrong_result_is_one_whatever_else_memory_is_wanted_for(judge, executor, monkeypatch):
    def lacking(*rest):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(ReplayedVariant, "_looks_like", lacking)
    with pytest.raises(Stop) as caught:
        variant(judge, executor, plan((*BUFFERS, buffer(BYTES, OP)), NOISY)).all_suites("")
    assert caught.value.failure.reason is Reason.WRONG_RESULT


def test_results_that_go_wrong_while_they_are_timed_are_noticed(judge, executor, clock):
    run = opened(judge, Clocked(executor), counting(30))
    for _ in range(30):
        run.ask({"op": "time_block", "ms": 1.0}, 5.0)
    with pytest.raises(Stop) as caught:
        run.check()
    assert caught.value.failure.reason is Reason.WRONG_RESULT


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (ExecutorFault("timeout", "late"), Reason.TIMEOUT),
        (ExecutorFault("ended", "gone"), Reason.CRASH),
        (ExecutorFault("DriverError", "illegal address"), Reason.CRASH),
        (ExecutorFault("AcceleratorError", "CUDA error"), Reason.CRASH),
        (ExecutorFault("RuntimeError", "CUDA error: misaligned address"), Reason.CRASH),
        (ExecutorFault("OutOfMemoryError", "tried to allocate"), Reason.OUT_OF_MEMORY),
        (ExecutorFault("ReplayError", "another layout"), None),
        (ExecutorFault("RuntimeError", "expected a matrix"), None),
    ],
)
def test_what_a_fault_means(judge, fault, expected):
    run = variant(judge, SimpleNamespace(waited_s=0.0), HONEST)
    meant = run._stop(fault, "in forward()", "nominal")
    if expected is None:
        assert isinstance(meant, NotReplayable)
    else:
        assert isinstance(meant, Stop)
        assert (meant.failure.status, meant.failure.reason, meant.suite) in [
            (Status.FAILED, expected, "nominal"),
            (Status.FAILED, expected, None),
        ]


@pytest.mark.parametrize(("kind", "status"), [(NoRoom, Status.UNDECIDED), (ExecutorFault, Status.FAILED)])
def test_tensors_that_only_others_keep_from_the_device_are_not_held_against_a_candidate(judge, kind, status):
    def memory(size, timeout_s):
        raise kind("DriverError", "allocating 25769838304 bytes: out of memory (CUDA error 2)")

    executor = SimpleNamespace(waited_s=0.0, memory=memory, loaded=set())
    with pytest.raises(Stop) as caught:
        variant(judge, executor, HONEST).all_suites("")
    assert (caught.value.failure.status, caught.value.failure.reason) == (status, Reason.OUT_OF_MEMORY)


def test_an_executor_is_taken_before_the_lease_that_lets_nobody_start_one(judge):
    order = []

    class Pool:
        def take(self):
            order.append("executor")
            return SimpleNamespace(uses=0, waited_s=0.0)

        def give_back(self, executor, *, intact):
            order.append("given back")

    @contextlib.contextmanager
    def held():
        order.append("lease")
        yield
        order.append("released")

    replays = ReplayJudge(judge, None, Pool(), None)
    replays._check = lambda *_: order.append("checked")
    replays._checked(held(), task(), "", None, Findings(3))
    assert order == ["executor", "lease", "checked", "released", "given back"]
