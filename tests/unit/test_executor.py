"""Executors on the CPU: plans of host operations replayed in a process of their own, and what becomes of faults."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import os
import signal
import time
import weakref

import pytest
import torch

from engine.errors import EngineError, MissingError
from engine.judging import executor as process
from engine.judging import executors, sandbox
from engine.judging.driver import Function
from engine.judging.executors import ExecutorFault, ExecutorPool, Seat
from engine.judging.gpu_state import lease
from engine.judging.plan import Argument, Launch, Origin, Step
from engine.judging.replayed import POISON, Compiled, Replay
from engine.judging.replaying import LoadedKernel, ReplayError, Session
from tests.support.executors import (
    CPU,
    LIMITS,
    TIMEOUT_S,
    children,
    executor,
    folders,
    is_gone,
    pid_of,
    pool,
    scratch,
    server,
)
from tests.support.plans import buffer, call, host, literal, plan, ref

INPUT, STATE, OP = Origin.INPUT, Origin.STATE, Origin.OP
X = ref(0, 4)
SEED = 11


def replay(taken, described, sets=1):
    return Replay(taken, Compiled(described, (), {}), sets, SEED, tf32=False, timeout_s=TIMEOUT_S)


def run(replayed, values, part="steady", number=0, index=0):
    """One call on float inputs in a freshly poisoned set; its output `index`."""
    replayed.fill(number, POISON["garbage"])
    replayed.write_inputs(number, [torch.tensor(values)], first=part == "first")
    replayed.run(part, number, TIMEOUT_S)
    return replayed.result(part, number, index, TIMEOUT_S)


@pytest.fixture(scope="module")
def shared():
    """An executor for tests that leave it alive."""
    with executor() as taken:
        yield taken


DOUBLE = plan([buffer(16, INPUT, name="0"), buffer(16)], call([host("add.out", X, X, out=ref(1, 4))], ref(1, 4)))


def test_two_sets_hold_results_of_their_own(shared):
    replayed = replay(shared, DOUBLE, sets=2)
    for number, values in enumerate([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]):
        run(replayed, values, number=number)
    assert replayed.result("steady", 0, 0, TIMEOUT_S).tolist() == [2.0, 4.0, 6.0, 8.0]
    assert replayed.result("steady", 1, 0, TIMEOUT_S).tolist() == [10.0, 12.0, 14.0, 16.0]
    assert replayed.inputs_changed(0, [torch.tensor([1.0, 2.0, 3.0, 4.0])]) == []
    assert replayed.inputs_changed(1, [torch.tensor([1.0, 2.0, 3.0, 4.0])]) == [0]
    for number in range(2):
        assert not replayed.guards.overwritten(number, POISON["garbage"], POISON["nan"])


CACHING = plan(
    [
        buffer(16, INPUT, name="0"),
        buffer(16, STATE, kept=True, name="w"),
        buffer(16, OP, kept=True),
        buffer(16, kept=True),
        buffer(16),
    ],
    call([host("add.out", ref(3, 4), X, out=ref(4, 4))], ref(4, 4)),
    first=call([host("mul.out", ref(2, 4), X, out=ref(3, 4)), host("add.out", ref(3, 4), X, out=ref(4, 4))], ref(4, 4)),
    prelude=[host("mul.Tensor", ref(1, 4), ref(1, 4), makes=(2,))],
)


def test_what_is_kept_passes_from_the_prelude_to_the_first_call_and_on_to_later_ones(shared):
    replayed = replay(shared, CACHING, sets=2)
    replayed.write_state({"w": torch.tensor([1.0, 2.0, 3.0, 4.0])})
    replayed.run("prelude", 0, TIMEOUT_S)
    # w² x + x, and from then on w² x of the first call.
    assert run(replayed, [1.0] * 4, part="first").tolist() == [2.0, 5.0, 10.0, 17.0]
    assert run(replayed, [10.0] * 4, number=1).tolist() == [11.0, 14.0, 19.0, 26.0]
    assert run(replayed, [20.0] * 4, number=0).tolist() == [21.0, 24.0, 29.0, 36.0]


def test_a_plan_without_a_first_part_has_none(shared):
    replayed = replay(shared, DOUBLE)
    with pytest.raises(ExecutorFault, match="no part first"):
        replayed.run("first", 0, TIMEOUT_S)


ON_TWO_STREAMS = plan(
    [buffer(16, INPUT, name="0"), buffer(16), buffer(16)],
    call(
        [
            Step(event=0),
            Step(1, wait_event=0),
            dataclasses.replace(host("neg.out", X, out=ref(1, 4)), stream=1),
            Step(wait=1),
            host("add.out", X, ref(1, 4), out=ref(2, 4)),
        ],
        ref(2, 4),
    ),
)


def test_what_orders_streams_is_no_work(shared):
    assert run(replay(shared, ON_TWO_STREAMS), [1.0, 2.0, 3.0, 4.0]).tolist() == [0.0] * 4


LITERALS = plan(
    [
        buffer(16, INPUT, name="0"),
        literal([1.0, 2.0, 3.0, 4.0]),
        literal([10.0, 20.0, 30.0, 40.0], kept=True),
        literal([]),
        buffer(16),
    ],
    call(
        [
            host("add.out", X, ref(1, 4), out=ref(4, 4)),
            host("add_.Tensor", ref(4, 4), ref(2, 4)),
            host("fill_.Scalar", ref(1, 4), 0.0),
        ],
        ref(4, 4),
    ),
)


def test_literals_are_there_again_in_each_call(shared):
    replayed = replay(shared, LITERALS, sets=2)
    for number in (0, 1, 0):
        assert run(replayed, [0.0] * 4, number=number).tolist() == [11.0, 22.0, 33.0, 44.0]


EXPORTED = plan(
    [
        buffer(24, INPUT, name="0"),
        buffer(24, OP),
        buffer(48, OP, dtype="int64"),
        buffer(6, OP, dtype="bool"),
        buffer(4, OP),
        buffer(0, OP),
        buffer(24),
    ],
    call(
        [
            host("mul.Tensor", ref(0, 2, 3), ref(0, 2, 3), makes=(1,)),
            host("_to_copy", ref(0, 2, 3), makes=(2,), dtype={"dtype": "int64"}, layout={"layout": "strided"}),
            host("gt.Scalar", ref(0, 2, 3), 2.5, makes=(3,)),
            host("sum", ref(0, 2, 3), makes=(4,)),
            host("empty.memory_format", [0, 3], makes=(5,), device={"device": 0}),
            host("neg.out", ref(0, 2, 3), out=ref(6, 2, 3)),
        ],
        ref(1, 3, 2, stride=(1, 3)),
        ref(2, 2, 3, dtype="int64"),
        ref(3, 6, dtype="bool"),
        ref(4),
        ref(5, 0, 3),
        ref(6, 2, offset=1),
        ref(1, 2, offset=4),
        tree={"tuple": ["t"] * 7},
    ),
)


def test_results_of_operations_come_back_as_the_plan_describes_them(shared):
    replayed = replay(shared, EXPORTED, sets=2)
    run(replayed, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], number=1)
    got = [replayed.result("steady", 1, index, TIMEOUT_S) for index in range(7)]
    assert got[0].tolist() == [[1.0, 16.0], [4.0, 25.0], [9.0, 36.0]]
    assert (got[1].dtype, got[1].tolist()) == (torch.int64, [[1, 2, 3], [4, 5, 6]])
    assert (got[2].dtype, got[2].tolist()) == (torch.bool, [False, False, True, True, True, True])
    assert got[3].item() == 21.0
    assert got[4].shape == (0, 3)
    assert got[5].tolist() == [-2.0, -3.0]
    assert got[6].tolist() == [25.0, 36.0]
    assert all(tensor.is_contiguous() for tensor in got)


OTHER_FORM = plan(
    [buffer(16, INPUT, name="0"), buffer(16, OP), buffer(16)],
    call([host("neg.out", X, out=ref(2, 4))], ref(2, 4)),
    first=call([host("neg", X, makes=(1,))], ref(1, 4)),
)


def test_an_operations_result_that_only_the_first_call_returns(shared):
    replayed = replay(shared, OTHER_FORM, sets=2)
    assert run(replayed, [1.0, 2.0, 3.0, 4.0], part="first", number=1).tolist() == [-1.0, -2.0, -3.0, -4.0]
    assert run(replayed, [5.0, 6.0, 7.0, 8.0]).tolist() == [-5.0, -6.0, -7.0, -8.0]


def of_one_step(step, output=X, *more):
    return plan([buffer(16, INPUT, name="0"), buffer(16, OP), *more], call([step], output))


@pytest.mark.parametrize(
    ("described", "kind", "words"),
    [
        pytest.param(
            of_one_step(host("mul.Tensor", ref(0, 2, 2, stride=(1, 2)), 2.0, makes=(1,))),
            "ReplayError",
            "another layout",
            id="strides-differ",
        ),
        pytest.param(
            of_one_step(host("mul.Tensor", ref(0, 2), 2.0, makes=(1,))), "ReplayError", "another layout", id="too-small"
        ),
        pytest.param(of_one_step(host("neg.out", X, out=ref(1, 4))), "ReplayError", "is used before", id="unmade"),
        pytest.param(of_one_step(host("neg", ref(7, 4))), "IndexError", "range", id="unknown-buffer"),
        pytest.param(of_one_step(host("neg", {"secret": 1})), "ReplayError", "no known form", id="unknown-argument"),
        pytest.param(of_one_step(host("no_such_operation", X)), "AttributeError", "no_such", id="unknown-operation"),
        pytest.param(of_one_step(host("neg", X, makes=(1, 1))), "ValueError", "zip", id="fewer-results"),
        pytest.param(of_one_step(host("mm", X, X)), "RuntimeError", "matrix", id="refused-by-torch"),
    ],
)
def test_what_cannot_be_followed_is_a_fault_that_says_so(shared, described, kind, words):
    replayed = replay(shared, described)
    with pytest.raises(ExecutorFault, match=words) as caught:
        run(replayed, [1.0] * 4)
    assert caught.value.kind == kind


NO_PLAN = {"op": "plan", "plan": {}, "keys": [], "offsets": [], "tf32": False}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"op": "run", "part": "steady", "set": 0, "traffic": False}], "no plan"),
        ([{"op": "time_block", "ms": 1.0, "cold": True}], "before graphs"),
        ([NO_PLAN], "before an arena"),
        ([{"op": "reserve", "bytes": 64}, NO_PLAN], "plan"),
        ([{"op": "dance"}], "dance"),
    ],
)
def test_commands_out_of_order_are_faults(messages, words):
    with executor() as taken:
        for message in messages[:-1]:
            taken.ask(message, TIMEOUT_S)
        with pytest.raises(ExecutorFault, match=words):
            taken.ask(messages[-1], TIMEOUT_S)


def test_a_larger_plan_takes_a_larger_arena(monkeypatch):
    monkeypatch.setattr(executors, "LEAST_ARENA_BYTES", 1 << 16)
    large = plan(
        [buffer(16, INPUT, name="0"), buffer(1 << 20)],
        call([host("fill_.Scalar", ref(1, 1 << 18), 2.0)], ref(1, 2, offset=100)),
    )
    with executor() as taken:
        assert run(replay(taken, DOUBLE), [1.0] * 4).tolist() == [2.0] * 4
        assert run(replay(taken, large), [1.0] * 4).tolist() == [2.0, 2.0]
        assert run(replay(taken, DOUBLE), [3.0] * 4).tolist() == [6.0] * 4


def test_a_killed_executor_has_ended():
    with executor() as taken:
        replayed = replay(taken, DOUBLE)
        os.kill(pid_of(taken), signal.SIGKILL)
        with pytest.raises(ExecutorFault, match="status -9") as caught:
            run(replayed, [1.0] * 4)
        assert caught.value.kind == "ended"
        with pytest.raises(ExecutorFault):
            run(replayed, [1.0] * 4)


def test_an_executor_that_does_not_answer_in_time_is_killed():
    side = 1024
    size = 4 * side * side
    slow = plan(
        [buffer(size), buffer(size)],
        call([host("mm.out", ref(0, side, side), ref(0, side, side), out=ref(1, side, side))] * 300, ref(1, side)),
    )
    with executor() as taken:
        replayed = replay(taken, slow)
        with pytest.raises(ExecutorFault, match=r"within 0\.2 s") as caught:
            replayed.run("steady", 0, 0.2)
        assert caught.value.kind == "timeout"
        assert is_gone(pid_of(taken))


def test_what_stands_by_is_replaced():
    with pool(standby=2) as executors_:
        executors_.warm()
        taken = [executors_.take() for _ in range(3)]
        assert len({pid_of(each) for each in taken}) == 3
        for each in taken:
            assert run(replay(each, DOUBLE), [1.0] * 4).tolist() == [2.0] * 4
            executors_.give_back(each, intact=False)
        assert all(is_gone(pid_of(each)) for each in taken)
        replacement = executors_.take()
        assert not is_gone(pid_of(replacement))
        executors_.give_back(replacement, intact=True)


def test_an_executor_serves_so_many_candidates(monkeypatch):
    monkeypatch.setattr(executors, "RECYCLE", 3)
    served = []
    with pool() as executors_:
        for _ in range(7):
            taken = executors_.take()
            served.append(pid_of(taken))
            executors_.give_back(taken, intact=True)
    assert [len(list(same)) for _, same in itertools.groupby(served)] == [3, 3, 1]
    assert len(set(served)) == 3


def test_an_executor_that_is_not_intact_serves_no_more():
    with pool() as executors_:
        first = executors_.take()
        executors_.give_back(first, intact=False)
        assert is_gone(pid_of(first))
        second = executors_.take()
        assert pid_of(second) != pid_of(first)
        executors_.give_back(second, intact=True)
        third = executors_.take()
        assert pid_of(third) == pid_of(second)
        executors_.give_back(third, intact=True)


def test_an_executor_that_once_failed_serves_no_more_whoever_gives_it_back():
    with pool() as executors_:
        first = executors_.take()
        with pytest.raises(ExecutorFault):
            first.ask({"op": "time_block", "ms": 1.0, "cold": True}, 30.0)
        executors_.give_back(first, intact=True)
        assert is_gone(pid_of(first))


def sizes(taken):
    return taken.shared_memory[1]


@pytest.mark.parametrize("scarce", [True, False])
def test_an_arena_is_kept_for_the_next_candidate_unless_memory_is_scarce(monkeypatch, scarce):
    monkeypatch.setattr(executors, "KEPT_ARENA_BYTES", executors.LEAST_ARENA_BYTES)
    monkeypatch.setattr(executors, "is_scarce", lambda: scarce)
    large = 2 * executors.LEAST_ARENA_BYTES
    with pool() as executors_:
        taken = executors_.take()
        taken.memory(large, TIMEOUT_S)
        executors_.give_back(taken, intact=True)
        again = executors_.take()
        assert pid_of(again) == pid_of(taken)
        assert sizes(again) == (executors.LEAST_ARENA_BYTES if scarce else large)
        executors_.give_back(again, intact=True)
        executors_.make_room()
        slim = executors_.take()
        assert (pid_of(slim), sizes(slim)) == (pid_of(taken), executors.LEAST_ARENA_BYTES)
        executors_.give_back(slim, intact=True)


def test_an_arena_too_large_to_stand_by_with_is_given_back(monkeypatch):
    monkeypatch.setattr(executors, "KEPT_ARENA_BYTES", executors.LEAST_ARENA_BYTES)
    monkeypatch.setattr(executors, "stays", lambda size: size <= executors.LEAST_ARENA_BYTES)
    with pool() as executors_:
        taken = executors_.take()
        taken.memory(2 * executors.LEAST_ARENA_BYTES, TIMEOUT_S)
        executors_.give_back(taken, intact=True)
        again = executors_.take()
        assert (pid_of(again), sizes(again)) == (pid_of(taken), executors.LEAST_ARENA_BYTES)
        executors_.give_back(again, intact=True)


def test_arenas_of_all_that_stand_by_leave_others_room(monkeypatch):
    monkeypatch.setattr(executors, "KEPT_ARENA_BYTES", executors.LEAST_ARENA_BYTES)
    large = 2 * executors.LEAST_ARENA_BYTES
    monkeypatch.setattr(executors, "stays", lambda size: size <= large + executors.LEAST_ARENA_BYTES)
    with pool() as executors_:
        both = [executors_.take(), executors_.take()]
        for taken in both:
            taken.memory(large, TIMEOUT_S)
        for taken in both:
            executors_.give_back(taken, intact=True)
        assert [sizes(taken) for taken in both] == [large, executors.LEAST_ARENA_BYTES]


def test_what_failed_to_start_is_given_to_nobody(monkeypatch):
    """Memory lacked when it started, and a check that is made again alone must not find that failure."""
    with pool() as executors_:
        started, failed = executors_._start, []

        def refused():
            failed.append(True)
            raise ExecutorFault("ended", "an executor did not start: out of memory")

        monkeypatch.setattr(executors_, "_start", refused)
        with pytest.raises(ExecutorFault):
            executors_.take()
        executors_.warm()
        while not all(future.done() for future in executors_._waiting):
            time.sleep(0.01)
        assert len(failed) > 1
        monkeypatch.setattr(executors_, "_start", started)
        executors_.make_room()
        assert not executors_._waiting
        executors_.give_back(executors_.take(), intact=True)


def test_what_a_plans_operations_made_is_freed_when_it_is_forgotten():
    described = plan(
        (buffer(16, INPUT, name="0"), buffer(16, OP)), call([host("neg", ref(0, 4), makes=(1,))], ref(1, 4))
    )
    made = Session(described, [], torch.zeros(256, dtype=torch.uint8), [[64, -1]], "cpu")
    made.run("steady", 0)
    kept = weakref.ref(made._made[0][1])
    state = process.State(device="cpu", session=made)
    del made
    assert kept() is not None
    gc.disable()
    try:
        process.HANDLERS["forget"](state, {})
        assert kept() is None
    finally:
        gc.enable()


def test_an_arena_that_cannot_be_unmapped_keeps_no_process_alive(monkeypatch):
    monkeypatch.setattr(executors, "RECYCLE", 1)
    with pool() as executors_:
        taken = executors_.take()
        taken.memory(executors.LEAST_ARENA_BYTES, TIMEOUT_S)

        def refused():
            raise EngineError("unmapping shared memory: invalid context")

        monkeypatch.setattr(taken._arena, "close", refused)
        executors_.give_back(taken, intact=True)
        assert is_gone(pid_of(taken))


def test_one_that_has_served_enough_ends_while_nobody_is_alone(monkeypatch):
    monkeypatch.setattr(executors, "RECYCLE", 1)
    with pool() as executors_:
        first = executors_.take()
        with lease(scratch() / "lock"):
            executors_.give_back(first, intact=True)
            assert not is_gone(pid_of(first))
    assert is_gone(pid_of(first))


def test_a_closed_pool_leaves_no_process_and_no_folder():
    before = children(), folders()
    with pool(standby=2) as executors_:
        first, second = executors_.take(), executors_.take()
        executors_.give_back(first, intact=True)
        assert {pid_of(first), pid_of(second)} <= children()
    assert is_gone(pid_of(first))
    executors_.give_back(second, intact=True)
    assert (children(), folders()) == before


def test_a_closed_pool_gives_no_executor():
    with pool() as executors_:
        executors_.close()
        with pytest.raises(EngineError, match="closed pool"):
            executors_.take()


@pytest.mark.parametrize("required", [True, False])
def test_a_required_layer_that_an_executor_lacks_is_missing(monkeypatch, required):
    before = children(), folders()
    monkeypatch.setattr(sandbox, "LAYERS", (*sandbox.LAYERS, "moat"))
    opened = ExecutorPool(server(), CPU, LIMITS, scratch(), scratch() / "lock", standby=1, required=required)
    with contextlib.closing(opened):
        if required:
            with pytest.raises(MissingError, match="but moat is not available"):
                opened.take()
        else:
            opened.give_back(opened.take(), intact=False)
    assert (children(), folders()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device answers here")
def test_an_executor_that_cannot_open_its_device_is_a_fault_and_leaves_nothing():
    before = children(), folders()
    with pool(Seat("cuda")) as executors_:
        for _ in range(2):
            with pytest.raises(ExecutorFault, match="did not start") as caught:
                executors_.take()
            assert caught.value.kind == "ended"
    assert (children(), folders()) == before


def session(*buffers):
    return Session(plan(buffers, call([], tree=None)), [], torch.zeros(256, dtype=torch.uint8), [[64]], "cpu")


def test_a_kernel_with_other_arguments_than_the_plans_is_refused():
    kernel = LoadedKernel(Function(None, None, 32, 0, (1, 1, 1), False), ("pointer", "i32"), 0)
    with pytest.raises(ReplayError, match="takes 2 arguments, the plan gives 1"):
        session(buffer(16))._prepared(kernel, Launch(0, (1, 1, 1), (Argument("pointer"),)), 0)
