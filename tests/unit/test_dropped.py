"""The drop test: plans without some launches, what their replays show, and what follows for the candidate."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from engine.judging import dropped
from engine.judging.allowance import Allowance
from engine.judging.dropped import MOST_KERNELS, DroppedVariant, DropTest, launched, without
from engine.judging.judge import Findings, Judge, Place, Stop
from engine.judging.messages import Failure
from engine.judging.plan import Argument, Kernel, Launch, Step
from engine.judging.replayed import Compiled, NotReplayable
from engine.records import Reason, Status
from tests.support import executors
from tests.support.judge import settings
from tests.support.plans import call, host, plan
from tests.unit.test_replayed import BUFFERS, HONEST, IN, OUT, SCALE, task


def kernel(name):
    return Kernel(name, f"tt.func public @{name}() {{ tt.return }}", 4, 3)


def launch(*kernels):
    return Step(0, tuple(Launch(index, (1, 1, 1), (Argument("pointer", 2),)) for index in kernels))


def launching(*kernels, names="abc", prelude=()):
    """A plan whose steady call launches these, by position in `names`."""
    made = plan(BUFFERS, call([launch(index) for index in kernels], OUT), prelude=[launch(index) for index in prelude])
    return type(made)(made.buffers, tuple(map(kernel, names)), made.prelude, made.first, made.steady)


def test_kernels_are_found_and_left_out_wherever_they_are_launched():
    made = launching(0, 1, 0, prelude=(2,))
    assert launched(made) == ("c", "a", "b")
    assert launched(without(made, ["a"])) == ("c", "b")
    assert launched(without(made, ["c", "b"])) == ("a",)
    assert without(made, ()) == made


def test_specialisations_of_one_kernel_are_left_out_together():
    made = launching(0, 1, names=("row", "row"))
    assert without(made, ["row"]).steady.steps == ()


def test_host_operations_stay():
    mixed = call([launch(0), host("mul.out", IN, SCALE, out=OUT)], OUT)
    made = launching()
    made = type(made)(made.buffers, made.kernels, (), mixed, mixed)
    assert [step.call is not None for step in without(made, ["a"]).steady.steps] == [True]
    assert len(without(made, ["a"]).first.steps) == 1


@pytest.fixture(scope="module")
def judge():
    place = Place("cpu", "sm_90", False, executors.scratch())
    return Judge(settings().judge, place, executors.server(), executors.server())


SIMULATED = {
    "both matter": lambda names: [float("a" in names), float("b" in names)],
    "b is a decoy": lambda names: [float("a" in names)],
    "either will do": lambda names: [float(bool(names))],
    "none matters": lambda names: [7.0],
    "b needs a": lambda names: None if "a" not in names and "b" in names else [float("a" in names)],
    "no result": lambda names: [],
}


@pytest.mark.parametrize(
    ("which", "effects", "remarks"),
    [
        ("both matter", [True, True], []),
        ("b is a decoy", [True, False], ["launch of b has no effect (variant same)"]),
        ("either will do", [False, False], [f"launch of {name} has no effect (variant same)" for name in "ab"]),
        ("b needs a", [True, False], ["launch of b has no effect (variant same)"]),
        ("no result", [], []),
    ],
)
def test_a_kernel_without_effect_is_a_remark(judge, monkeypatch, which, effects, remarks):
    found, results = drop(judge, monkeypatch, SIMULATED[which])
    assert [result.effect for result in results] == effects
    assert found.remarks == remarks


def test_a_candidate_none_of_whose_kernels_matters_is_rejected(judge, monkeypatch):
    with pytest.raises(Stop) as stopped:
        drop(judge, monkeypatch, SIMULATED["none matters"])
    assert (stopped.value.failure.status, stopped.value.failure.reason) == (Status.REJECTED, Reason.HOST_OP)
    assert stopped.value.variant == "same"


def test_a_plan_that_cannot_be_replayed_is_not_tested(judge, monkeypatch):
    found, results = drop(judge, monkeypatch, lambda names: None)
    assert results == ()
    (remark,) = found.remarks
    assert remark == "no drop test: the whole plan gave no results (variant same): a kernel waits for another"


def lacking(status, reason):
    return Stop(Failure(status, reason, "told"))


def test_a_replay_that_runs_out_of_time_gives_no_result(judge, monkeypatch):
    def results_of(names):
        return [float("a" in names)] if "b" in names else lacking(Status.FAILED, Reason.TIMEOUT)

    found, results = drop(judge, monkeypatch, results_of)
    assert [(result.kernel, result.effect) for result in results] == [("a", True)]
    assert found.remarks == ["the drop test of b did not end within 20 s (variant same): no result"]


def test_a_plan_that_crashes_without_a_kernel_shows_an_effect(judge, monkeypatch):
    def results_of(names):
        return [float("a" in names)] if "b" in names else lacking(Status.FAILED, Reason.CRASH)

    found, results = drop(judge, monkeypatch, results_of)
    assert ([result.effect for result in results], found.remarks) == ([True, True], [])


@pytest.mark.parametrize("left", [("a", "b"), ("a",)])
def test_want_of_memory_leaves_the_candidate_undecided(judge, monkeypatch, left):
    def results_of(names):
        return lacking(Status.FAILED, Reason.OUT_OF_MEMORY) if names == left else [float("a" in names)]

    with pytest.raises(Stop, match="told") as stopped:
        drop(judge, monkeypatch, results_of)
    assert (stopped.value.failure.status, stopped.value.failure.reason) == (Status.UNDECIDED, Reason.OUT_OF_MEMORY)


def test_no_executor_is_no_effect(judge, monkeypatch):
    @contextlib.contextmanager
    def none_starts():
        raise lacking(Status.UNDECIDED, Reason.OUT_OF_MEMORY)
        yield

    test = DropTest(judge, none_starts, Compiled(launching(0, names=("a",)), (), {}), task(), "same", Findings(3))
    with pytest.raises(Stop, match="told") as stopped:
        test.run()
    assert stopped.value.failure.status is Status.UNDECIDED


def test_the_start_of_an_executor_takes_no_time_from_the_replay(judge, monkeypatch):
    left = []

    @contextlib.contextmanager
    def slow():
        yield SimpleNamespace(waited_s=300.0)

    def outputs(run):
        left.append(run.allowance.left_s)
        return []

    monkeypatch.setattr(DroppedVariant, "outputs", outputs)
    DropTest(judge, slow, Compiled(launching(0, names=("a",)), (), {}), task(), "same", Findings(3)).run()
    assert left == [dropped.CALL_S]


def test_of_many_kernels_some_are_left_out(judge, monkeypatch):
    names = [f"k{number}" for number in range(MOST_KERNELS + 4)]
    found, results = drop(judge, monkeypatch, lambda left: [float(len(left))], names=names)
    assert len(results) == MOST_KERNELS
    assert "20 kernels" in found.remarks[0]


def drop(judge, monkeypatch, results_of, names=("a", "b")):
    """The drop test of a plan that launches `names`, the results of a replay being told by those that are left."""

    def outputs(run):
        results = results_of(launched(run.compiled.plan))
        if results is None:
            raise NotReplayable("a kernel waits for another")
        if isinstance(results, Stop):
            raise results
        return [torch.tensor(results)]

    monkeypatch.setattr(DroppedVariant, "outputs", outputs)
    found = Findings(3)
    made = launching(*range(len(names)), names=names)
    nobody = contextlib.nullcontext(SimpleNamespace(waited_s=0.0))
    return found, DropTest(judge, lambda: nobody, Compiled(made, (), {}), task(), "same", found).run()


def test_replays_without_a_step_show_poison(judge):
    with executors.executor() as executor:
        allowance = Allowance(60.0, lambda: executor.waited_s)

        def outputs(steps):
            compiled = Compiled(plan(BUFFERS, call(steps, OUT)), (), {})
            return DroppedVariant(judge, executor, compiled, task(), "same", Findings(3), allowance).outputs()

        whole, again, dropped = outputs(HONEST.steady.steps), outputs(HONEST.steady.steps), outputs(())
    assert torch.equal(whole[0], again[0]), "the same values each time"
    assert bool((dropped[0] == 0xFF).all())
