"""get_inputs recorded without values, replayed from a seed under value suites; parameters redrawn."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.codec import decode, encode
from engine.judging.inputs import (
    SUITES,
    ParamSpec,
    Program,
    UnsupportedTask,
    derive_seed,
    parameter_specs,
    parameter_value,
    record,
    replay,
)


def mixed():
    a = torch.rand(6, 6)
    a = (a + a.T) / 2
    mask = torch.tril(torch.ones(6, 6))
    labels = torch.randint(0, 5, (6,))
    weights = torch.rand(6, 5).softmax(dim=-1)
    values = torch.randn(4, 3)
    values[:, 1] = 7.0
    return [a, mask, labels, weights, 3, (values, None)]


def test_a_program_replays_equal_values_for_equal_seeds():
    program = record(mixed)
    assert decode(Program, encode(program)) == program
    one, two, other = (replay(program, "cpu", seed, "nominal") for seed in (5, 5, 6))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[2], two[2])
    assert not torch.equal(one[0], other[0])
    assert one[4] == 3
    assert one[5][1] is None
    assert bool((one[5][0][:, 1] == 7.0).all())


def test_tensors_in_a_list_are_arguments_as_well():
    program = record(lambda: [torch.cat([torch.randn(4, 3), torch.rand(4, 5)], 1)])
    assert replay(program, "cpu", 5, "signed")[0].shape == (4, 8)


@pytest.mark.parametrize("suite", SUITES)
def test_suites_keep_structure_integers_and_finiteness(suite):
    a, mask, labels, weights, *_ = replay(record(mixed), "cpu", 5, suite)
    assert torch.equal(a, a.T)
    assert torch.equal(mask, torch.tril(torch.ones(6, 6)))
    assert labels.dtype == torch.int64
    assert int(labels.min()) >= 0
    assert int(labels.max()) < 5
    assert torch.allclose(weights.sum(-1), torch.ones(6))
    assert bool(torch.isfinite(a).all())


@pytest.mark.parametrize(
    ("suite", "holds"),
    [
        ("nominal", lambda x: float(x.min()) >= 0),
        ("signed", lambda x: float(x.min()) < 0),
        ("scaled", lambda x: float(x.std()) > 10 or float(x.std()) < 0.1),
        ("shift", lambda x: abs(float(x.mean()) - 100) < 1),
        ("structured", lambda x: bool((x[0] == x[-1]).all()) and float((x[1] == 0).float().mean()) > 0.5),
        ("extreme", lambda x: float(x.abs().mean()) > 70),
        ("integer", lambda x: bool((x == x.round()).all())),
    ],
)
def test_suite_values(suite, holds):
    assert holds(replay(record(lambda: [torch.rand(32, 64)]), "cpu", 9, suite)[0])


def test_full_size_costs_no_memory():
    program = record(lambda: [torch.rand(1 << 20, 1 << 20)])
    with FakeTensorMode():
        assert replay(program, "cpu", 1, "nominal")[0].shape == (1 << 20, 1 << 20)


def test_what_cannot_be_replayed_is_refused():
    with pytest.raises(UnsupportedTask):
        record(lambda: [torch.rand(3).tolist()])
    with pytest.raises(UnsupportedTask):
        record(lambda: [object()])


def test_parameters_vary_also_where_they_start_constant():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64))
    specs = {spec.name: spec for spec in parameter_specs(dict(model.state_dict(keep_vars=True)))}
    assert specs["1.num_batches_tracked"].kind == "keep"
    assert specs["1.running_var"].kind == "positive"
    weight = parameter_value(specs["1.weight"], "cpu", 1, "nominal")
    assert 0.3 < float(weight.std()) < 0.8
    assert 0.7 < float(weight.mean()) < 1.3
    assert float(parameter_value(specs["1.running_var"], "cpu", 1, "nominal").min()) > 0
    assert float(parameter_value(specs["0.weight"], "cpu", 1, "nominal").std()) == pytest.approx(
        float(model[0].weight.detach().std()), rel=0.1
    )


def test_parameter_values_repeat_and_differ_by_seed():
    spec = ParamSpec("w", (3, 4), "float16", "normal", 0.0, 1.0)
    assert torch.equal(parameter_value(spec, "cpu", 1, "nominal"), parameter_value(spec, "cpu", 1, "nominal"))
    assert not torch.equal(parameter_value(spec, "cpu", 1, "nominal"), parameter_value(spec, "cpu", 2, "nominal"))
    assert parameter_value(spec, "cpu", 1, "integer").abs().max() <= 1


def test_seeds_of_different_uses_differ():
    assert len({derive_seed(7, variant, suite) for variant in "ab" for suite in SUITES}) == 2 * len(SUITES)
