"""A planned call with host operations for a process with PyTorch: what it is told, and that it does the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from engine.codec import decode, encode
from engine.judging import arena, planned_call
from engine.judging.lone_call import LoneCall
from engine.judging.plan import Argument, Launch, Origin, Step
from engine.judging.planned_call import PlannedCall
from engine.judging.replaying import Session
from tests.support.plans import buffer, call, host, plan, ref
from tests.unit.test_lone_call import counted, launch

INPUT, STATE, OP = Origin.INPUT, Origin.STATE, Origin.OP
X, KEPT, MADE, OUT = ref(0, 4), ref(1, 4), ref(2, 4), ref(3, 4)
BUFFERS = [buffer(16, INPUT, name="0"), buffer(16, STATE, kept=True, name="w"), buffer(16, OP, kept=True), buffer(16)]


@pytest.fixture
def shared():
    """An arena of another process's, as far as this one is told."""
    made = arena.create("cpu", 1024)
    yield made
    made.close()


def test_it_replays_the_plan_on_a_copy_of_the_arena(shared):
    """The prelude makes a buffer outside the arena, which the call reads."""
    described = plan(
        BUFFERS,
        call([host("add.out", X, MADE, out=OUT)], OUT),
        prelude=[host("mul.Tensor", KEPT, KEPT, makes=(2,))],
    )
    shared.bytes[0:16].view(torch.float32).fill_(2.0)
    shared.bytes[64:80].view(torch.float32).fill_(3.0)
    before = shared.bytes.clone()
    request = PlannedCall(shared.token, 1024, described, (), (), (0, 64, -1, 128), (), False)
    session = planned_call.opened(decode(PlannedCall, json.loads(json.dumps(encode(request)))), "cpu")
    session.run("steady", 0)
    assert session.tensor(OUT, 0).tolist() == [11.0] * 4
    assert torch.equal(shared.bytes, before)


def test_a_first_call_comes_before_the_others(shared):
    described = plan(
        BUFFERS,
        call([host("add.out", X, KEPT, out=OUT)], OUT),
        first=call([host("fill_.Scalar", KEPT, 5.0)], OUT),
    )
    shared.bytes[0:16].view(torch.float32).fill_(2.0)
    session = planned_call.opened(
        PlannedCall(shared.token, 1024, described, (), (), (0, 64, -1, 128), (), False), "cpu"
    )
    session.run("steady", 0)
    assert session.tensor(OUT, 0).tolist() == [7.0] * 4


def test_choices_are_those_of_the_autotuned_launches():
    one, other = Launch(0, (1, 1, 1), ()), Launch(1, (1, 1, 1), ())
    steps = [Step(launch=(one,)), Step(launch=(one, other)), Step(stream=1, wait=0), Step(launch=(one, other))]
    session = Session(plan([], call(steps)), [], torch.zeros(8, dtype=torch.uint8), [[]], "cpu")
    session.freeze([1, 0])
    assert session._choice == {("steady", 1): 1, ("steady", 3): 0}
    with pytest.raises(ValueError, match="shorter"):
        session.freeze([1])


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([Step(launch=(launch(0, 0),))], LoneCall),
        ([host("relu.default", X), Step(launch=(launch(0, 0),))], PlannedCall),
    ],
)
def test_pytorch_is_there_only_where_the_call_needs_it(tmp_path, monkeypatch, steps, kind):
    prepared = counted(steps)
    monkeypatch.setattr(type(prepared), "precision", None, raising=False)
    file = tmp_path / "call.json"
    module = prepared.write_request(file)
    assert module == kind.__module__
    told = decode(kind, json.loads(file.read_text()))
    assert (told.token, told.bytes) == ("handle", 16384)
    assert prepared.symbols() == ("kernel",)


def test_of_autotuned_launches_the_chosen_kernel_is_named():
    arguments = (Argument("pointer", 0, 0),)
    tuned = Step(launch=(Launch(0, (1, 1, 1), arguments), Launch(1, (1, 1, 1), arguments)))
    prepared = counted([tuned], choices=(1,))
    prepared.compiled.kernels["k1"].symbol = "the second"
    assert prepared.symbols() == ("the second",)


def test_the_process_that_ncu_watches_imports_no_triton():
    code = "import sys, engine.judging.planned_call; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
