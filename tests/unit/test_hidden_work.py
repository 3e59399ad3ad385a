"""What a candidate may do where no dispatch mode looks: whole composites, subclasses, values handed to Python, shared
memory, replaced functions."""

from __future__ import annotations

import types

import pytest
import torch

from engine.judging import child_run, pretend
from engine.judging.host_ops import FEW_VALUES, OpRecorder, allowed, values_read
from engine.judging.policy import Work, kernel_share, policy_problem
from engine.judging.untouched import Untouched
from engine.records import HostOp, Reason

A = torch.randn(6, 6)


class Wrapper(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.clone.default:
            return torch.mm(A, A)
        return func(*[A if isinstance(arg, Wrapper) else arg for arg in args], **(kwargs or {}))


def whole_product():
    with torch.inference_mode():
        torch.matmul(A, A)


@pytest.mark.parametrize("work", [whole_product, lambda: A.as_subclass(Wrapper).clone()], ids=["composite", "subclass"])
def test_products_count_wherever_they_are_made(work):
    with torch.no_grad(), OpRecorder() as recorder:
        work()
    assert {op.name: op.flops for op in recorder.ops() if op.compute} == {"aten.mm": 2.0 * 6**3}


@pytest.mark.parametrize(
    ("work", "least"),
    [
        pytest.param(lambda: [torch.mv(A, A[i]) for i in range(6)], 2 * 6**3, id="vectors"),
        pytest.param(lambda: [torch.addcmul(A, A[:, i : i + 1], A[i]) for i in range(6)], 2 * 6**3, id="outer"),
    ],
)
def test_products_in_parts_are_worth_a_product(work, least):
    with torch.no_grad(), OpRecorder() as recorder:
        work()
    assert sum(op.flops for op in recorder.ops()) >= least


@pytest.mark.parametrize(
    ("read", "count"),
    [
        pytest.param(lambda x: x.tolist(), 6, id="tolist"),
        pytest.param(lambda x: x.numpy(), 6, id="numpy"),
        pytest.param(lambda x: [float(v) for v in x], 6, id="float"),
        pytest.param(lambda x: f"{x[0]:.3f}", 1, id="format"),
        pytest.param(lambda x: str(x), 6, id="text"),
        pytest.param(lambda x: bool(x[0] > 0), 1, id="bool"),
        pytest.param(lambda x: x.clone().apply_(lambda value: value), 6, id="callback"),
        pytest.param(lambda x: x.sum(), 0, id="none"),
    ],
)
def test_values_given_to_python_are_counted(read, count):
    pretend.GIVEN.values = 0
    with torch.no_grad(), pretend.Pretend(cuda=True):
        read(torch.arange(6, dtype=torch.float32))
    assert (pretend.GIVEN.values >= count) if count else pretend.GIVEN.values == 0


@pytest.mark.parametrize(
    ("count", "policy", "reason"),
    [
        pytest.param(FEW_VALUES, "library", None, id="few"),
        pytest.param(FEW_VALUES + 1, "library", Reason.HOST_OP, id="many"),
        pytest.param(FEW_VALUES + 1, "none", Reason.HOST_OP, id="none"),
        pytest.param(FEW_VALUES + 1, "any", None, id="any"),
    ],
)
def test_the_policy_on_values(count, policy, reason):
    row = values_read(count)
    assert not allowed(row.name, "library")
    problem = policy_problem(1, (row,), policy, Work((), 0.0), 0.1)
    assert (None if problem is None else problem.reason) is reason


def test_arrays_and_tensors_share_no_memory(monkeypatch):
    for name in ("from_numpy", "frombuffer", "from_dlpack"):
        monkeypatch.setattr(torch, name, getattr(torch, name))
    pretend.part_memory()
    buffer = bytearray(8)
    made = torch.frombuffer(buffer, dtype=torch.float32)
    with pretend.Pretend(cuda=True):
        array = torch.zeros(3).numpy()
        other = torch.as_tensor(array)
        source = torch.zeros(3)
        seen = source.numpy()
    made.fill_(1.0)
    other.fill_(1.0)
    source.fill_(1.0)
    assert buffer == bytearray(8)
    assert array.tolist() == seen.tolist() == [0.0] * 3


MOVED = HostOp("aten.clone", 1, False, 0.0, 64.0)


@pytest.mark.parametrize(
    ("host", "share"), [((), 1.0), ((MOVED,), 0.0), ((HostOp("aten.view", 1, False, 0.0, 0.0),), 1.0)]
)
def test_a_reference_that_only_moves_data(host, share):
    assert kernel_share(host, Work((MOVED,), 64.0)) == share


def test_what_was_replaced_is_named(monkeypatch):
    untouched = Untouched()
    assert untouched.replaced() == []
    monkeypatch.setattr(torch.Tensor, "detach", lambda self: self, raising=False)
    monkeypatch.setattr(pretend, "poison", lambda tensor, pattern: tensor)
    assert untouched.replaced() == ["engine.judging.pretend.poison", "torch.Tensor.detach"]


def message(seed, *, reuse):
    step = {"f": "torch.randn", "a": [4], "k": {"map": {}}}
    program = {"steps": [step], "result": [{"ref": 0, "item": None}]}
    return {"program": program, "seed": seed, "suite": "nominal", "reuse": reuse}


@pytest.mark.parametrize(
    ("reuse", "held", "same"),
    [
        pytest.param(True, None, True, id="the-same-tensors"),
        pytest.param(False, None, False, id="new-tensors"),
        pytest.param(True, "view", False, id="a-result-lies-in-them"),
    ],
)
def test_inputs_of_the_call_before(reuse, held, same):
    state = child_run.RunState(folder=None)
    (first,) = child_run._inputs(state, message(1, reuse=False))
    before, version = first.clone(), first._version
    if held:
        state.held["nominal0"] = [first[1:]], "t"
    (second,) = child_run._inputs(state, message(2, reuse=reuse))
    assert (second is first) is same
    assert first._version == version
    assert torch.equal(first, before) is not same
    assert not torch.equal(second, before)


def test_the_least_number_of_calls_has_its_time(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(child_run, "time", types.SimpleNamespace(perf_counter=lambda: float(next(clock))))
    state = child_run.RunState(folder=None, model=lambda x: x)
    asked = {**message(1, reuse=False), "least": 3, "count": 50, "seconds": 1.0}
    assert 3 <= child_run.repeat(state, asked)["calls"] < 50
