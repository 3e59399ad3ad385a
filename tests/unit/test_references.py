"""What is remembered of a task's results: values where they fit, errors always."""

from __future__ import annotations

import pytest
import torch

from engine.judging import references
from engine.judging.inputs import replay
from engine.judging.references import References
from engine.records import Contract, Precision, Task

FLOAT = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
    def forward(self, x):
        return self.linear(x).relu(), x.sum(1)
def get_inputs():
    return [torch.rand(4096, 8)]
def get_init_inputs():
    return []
"""
WHOLE = FLOAT.replace("self.linear(x).relu(), x.sum(1)", "x.argmin(1)")


def task(source):
    return Task("t", "t", source, Contract(), "declared", source)


def drawn(kept, source, draw=1, suite="nominal"):
    return kept.expected(task(source), "full", draw, draw + 100, suite, Precision.IEEE)


@pytest.fixture
def runs(monkeypatch):
    """How often the reference ran in full, and in fp64 alone."""
    counts = {"run": 0, "exact": 0}
    for name in counts:
        original = getattr(references.Reference, name)

        def counted(self, *arguments, name=name, original=original):
            counts[name] += 1
            return original(self, *arguments)

        monkeypatch.setattr(references.Reference, name, counted)
    return counts


def test_values_that_fit_are_computed_once(runs):
    kept = References("cpu")
    assert drawn(kept, FLOAT) is drawn(kept, FLOAT)
    assert runs == {"run": 1, "exact": 0}


def test_of_values_that_do_not_fit_only_these_are_computed_again(runs, monkeypatch):
    monkeypatch.setitem(references.REMEMBERED_BYTES, "cpu", 0)
    kept = References("cpu")
    first, other = drawn(kept, FLOAT), drawn(kept, FLOAT, draw=2)
    again = drawn(kept, FLOAT)
    assert runs == {"run": 2, "exact": 1}
    assert again is not first
    assert all(map(torch.equal, first.exact, again.exact))
    assert not torch.equal(first.exact[0], other.exact[0]), "parameters and inputs of its own draw"
    assert (again.own, again.tree, again.finite) == (first.own, first.tree, first.finite)
    assert [plain.shape for plain in again.plain] == [(4096, 8), (4096,)]


COUNTING = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
    def forward(self, x):
        self.seen += 1
        return x * self.seen
def get_inputs():
    return [torch.rand(4096, 8)]
def get_init_inputs():
    return []
"""


def test_a_reference_that_changes_itself_gives_one_answer_for_a_draw(runs, monkeypatch):
    monkeypatch.setitem(references.REMEMBERED_BYTES, "cpu", 0)
    kept = References("cpu")
    first, again = drawn(kept, COUNTING), drawn(kept, COUNTING)
    assert runs == {"run": 1, "exact": 1}
    assert torch.equal(first.exact[0], again.exact[0])


def test_whole_numbers_are_compared_with_the_results_themselves(runs, monkeypatch):
    monkeypatch.setitem(references.REMEMBERED_BYTES, "cpu", 0)
    kept = References("cpu")
    assert torch.equal(drawn(kept, WHOLE).plain[0], drawn(kept, WHOLE).plain[0])
    assert runs == {"run": 2, "exact": 0}


def test_so_many_draws_are_remembered(runs, monkeypatch):
    monkeypatch.setitem(references.REMEMBERED_BYTES, "cpu", 0)
    monkeypatch.setattr(references, "REMEMBERED_DRAWS", 1)
    kept = References("cpu")
    for draw in (1, 2, 2, 1):
        drawn(kept, FLOAT, draw)
    assert runs == {"run": 3, "exact": 1}


def test_inputs_are_those_of_a_seeded_torch_and_leave_its_generator_alone():
    kept = References("cpu")
    program = kept.full(task(FLOAT)).program
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    (x,) = replay(program, "cpu", 11, "nominal")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(11)
    assert torch.equal(x, torch.rand(4096, 8))
