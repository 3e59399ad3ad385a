"""Sources, contracts and selection of tasks, and the bundled ones."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from engine.errors import ConfigError, MissingError
from engine.records import Contract, Precision
from engine.settings import TaskSettings
from engine.tasks import find_tasks, load_tasks
from engine.tasks.contracts import SUITES, make_task
from engine.tasks.select import select
from engine.tasks.sources import from_dataset, from_files, natural_key
from engine.tasks.variants import apply_variant, constants

BUNDLED = TaskSettings("bundled", None, False, (), (), (), None, None, None, 0)

BUNDLED_NAMES = [
    "attention", "conv1d", "conv2d_relu_bias", "cross_entropy", "gelu", "gemm_scale_leaky_relu", "gru_last_hidden",
    "gru_sequence", "layer_norm", "matmul_sigmoid_sum", "rms_norm", "softmax", "square_matmul", "sum_reduction",
]  # fmt: skip

OPERATOR = """
import torch
import torch.nn as nn

N = 64


class Model(nn.Module):
    def forward(self, x):
        return torch.relu(x)


def get_inputs():
    return [torch.randn(N, N)]


def get_init_inputs():
    return []
"""


def task(task_id, level=None, number=None):
    return make_task(task_id, task_id.rsplit("/")[-1], OPERATOR, Contract(), "derived", level, number)


BENCH = tuple(task(f"level{level}/{n}_Op{n}", level, n) for level in (1, 2) for n in (1, 2, 10))


@pytest.mark.parametrize(
    ("changes", "names", "expected"),
    [
        ({}, (), ["level1/1_Op1", "level1/2_Op2", "level1/10_Op10", "level2/1_Op1", "level2/2_Op2", "level2/10_Op10"]),
        ({}, ("level2/2_Op2", "level1/1_Op1"), ["level2/2_Op2", "level1/1_Op1"]),
        ({}, ("level1/*",), ["level1/1_Op1", "level1/2_Op2", "level1/10_Op10"]),
        ({}, ("*_Op10", "level1/1_Op1"), ["level1/10_Op10", "level2/10_Op10", "level1/1_Op1"]),
        ({"exclude": ("level1/*", "2_Op2")}, (), ["level2/1_Op1", "level2/10_Op10"]),
        ({"levels": (2,)}, (), ["level2/1_Op1", "level2/2_Op2", "level2/10_Op10"]),
        ({"numbers": "2-9, 10"}, ("level1/*",), ["level1/2_Op2", "level1/10_Op10"]),
        ({"numbers": "1", "levels": (2,)}, (), ["level2/1_Op1"]),
        ({"first": 2}, (), ["level1/1_Op1", "level1/2_Op2"]),
        ({"first": 2, "levels": (2,)}, (), ["level2/1_Op1", "level2/2_Op2"]),
        ({"first": 1, "sample": 5}, (), ["level1/1_Op1"]),
    ],
    ids=[
        "all", "names_keep_their_order", "pattern", "pattern_then_name", "exclude", "levels", "numbers",
        "numbers_and_level", "first", "first_after_level", "sample_of_fewer",
    ],
)  # fmt: skip
def test_selection(changes, names, expected):
    assert [t.task_id for t in select(BENCH, replace(BUNDLED, **changes), names)] == expected


def test_sample_is_seeded_and_keeps_the_order():
    draws = {seed: [t.task_id for t in select(BENCH, replace(BUNDLED, sample=3, seed=seed), ())] for seed in range(5)}
    again = [t.task_id for t in select(BENCH, replace(BUNDLED, sample=3, seed=2), ())]
    ids = [t.task_id for t in BENCH]
    assert draws[2] == again
    assert len({tuple(draw) for draw in draws.values()}) > 1
    assert all(len(draw) == 3 and draw == sorted(draw, key=ids.index) for draw in draws.values())


@pytest.mark.parametrize(
    ("changes", "names", "parts"),
    [
        ({}, ("1_Opl",), ["task.names[0]", "did you mean '1_Op1'?"]),
        ({"exclude": ("nothing*",)}, (), ["task.exclude[0]", "nothing*"]),
        ({"numbers": "3-x"}, (), ["task.numbers", "'3-x'"]),
        ({"numbers": "9-3"}, (), ["task.numbers", "empty"]),
        ({"levels": (3,)}, (), ["leaves no task", "level1/1_Op1"]),
        ({"numbers": "x"}, ("nope_at_all",), ["2 faults"]),
    ],
    ids=["name", "exclude", "numbers", "empty_range", "nothing_left", "all_at_once"],
)
def test_selection_faults(changes, names, parts):
    with pytest.raises(ConfigError) as caught:
        select(BENCH, replace(BUNDLED, **changes), names)
    assert all(part in str(caught.value) for part in parts)


def test_natural_order():
    assert sorted(["b/10_x", "b/9_x", "a/2"], key=natural_key) == ["a/2", "b/9_x", "b/10_x"]


def test_bundled_tasks_are_complete(project):
    tasks = find_tasks(BUNDLED, (), project)
    assert [t.task_id for t in tasks] == BUNDLED_NAMES
    assert all(t.contract_origin == "declared" and t.contract.suites for t in tasks)


def test_representatives_replace_names(project):
    settings = replace(BUNDLED, of_category=True, names=("gelu",))
    assert [t.task_id for t in find_tasks(settings, ("softmax", "conv1d"), project)] == ["softmax", "conv1d"]
    assert [t.task_id for t in find_tasks(settings, (), project)] == ["gelu"]
    assert [t.task_id for t in find_tasks(replace(settings, of_category=False), ("softmax",), project)] == ["gelu"]


@pytest.mark.parametrize("variant", ["small", "odd"])
@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_bundled_variants_run_and_are_small(project, name, variant):
    (found,) = find_tasks(replace(BUNDLED, names=(name,)), (), project)
    values = found.contract.variants[variant]
    module = {}
    exec(compile(apply_variant(found.source, values), name, "exec"), module)
    torch.manual_seed(0)
    inputs = module["get_inputs"]()
    with torch.no_grad():
        output = module["Model"](*module["get_init_inputs"]())(*inputs)
    assert torch.isfinite(output).all()
    assert max(tensor.numel() for tensor in [*inputs, output]) <= 100_000
    assert set(values) == set(constants(found.source)) - {"KERNEL_SIZE"}
    assert all(bool((tensor < 0).any()) for tensor in inputs if tensor.is_floating_point())
    if variant == "odd":
        assert any(value % 16 for value in values.values())
    assert not {"integer"} & set(found.contract.suites) or name in ("square_matmul", "conv1d", "sum_reduction")


def test_contract_is_read(tmp_path):
    (tmp_path / "op.py").write_text(OPERATOR)
    (tmp_path / "op.yaml").write_text(
        "dtype: float16\nprecision: tf32\nsuites: [signed]\nvariants: {tiny: {N: 3}}\nhost_ops: library\nexact: true\n"
    )
    (found,) = from_files(str(tmp_path / "op.py"))
    assert found.contract == Contract(
        dtype="float16", precision=Precision.TF32, suites=("signed",), variants={"tiny": {"N": 3}},
        host_ops="library", exact=True,
    )  # fmt: skip
    assert (found.task_id, found.contract_origin, found.level) == ("op", "declared", None)


@pytest.mark.parametrize(
    ("contract", "parts"),
    [
        ("dtypes: float32", ["dtypes", "did you mean 'dtype'?"]),
        ("dtype: float23", ["dtype", "did you mean 'float32'?"]),
        ("suites: [signd]", ["suites[0]", "did you mean 'signed'?"]),
        ("variants: {small: {M: 3}}", ["variants.small.M", "no integer constant", "N"]),
        ("variants: {small: {N: 0}}", ["variants.small.N", ">= 1"]),
        ("variants: {full: {N: 3}}", ["variants.full", "as it stands"]),
        ("host_ops: some\nstrides: odd", ["2 faults", "host_ops", "strides"]),
        ("exact: maybe", ["exact", "expected bool"]),
        (
            "exact: maybe\ndtype: float23\nvariants: {small: {M: 3}}",
            ["3 faults", "expected bool", "float32", "small.M"],
        ),
        ("dtypes: x\nsuites: [signd]", ["2 faults", "'dtype'", "'signed'"]),
        ("precision: fp8", ["precision", "ieee, tf32, reduced"]),
        ("a: [", ["cannot be read as YAML"]),
    ],
)
def test_contract_faults(tmp_path, contract, parts):
    (tmp_path / "op.py").write_text(OPERATOR)
    (tmp_path / "op.yaml").write_text(contract)
    with pytest.raises(ConfigError) as caught:
        from_files(str(tmp_path))
    assert all(part in str(caught.value) for part in [*parts, "op.yaml"])


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("def broken(:\n", "syntax error in line 1"),
        ("class Model: ...\n", "defines no get_inputs, get_init_inputs"),
    ],
    ids=["syntax", "names"],
)
def test_files_that_are_no_tasks(tmp_path, source, part):
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(ConfigError, match=part):
        from_files(str(tmp_path))


def test_every_fault_of_a_folder_at_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="2 faults"):
        from_files(str(tmp_path))


def test_folder_of_levels(tmp_path):
    for path in ("level1/10_B.py", "level1/2_A.py", "level2/1_C.py", ".hidden/x.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(OPERATOR)
    found = from_files(str(tmp_path))
    assert [(t.task_id, t.level, t.number) for t in found] == [
        ("level1/2_A", 1, 2), ("level1/10_B", 1, 10), ("level2/1_C", 2, 1),
    ]  # fmt: skip
    assert [t.name for t in from_files(str(tmp_path / "level1" / "*.py"))] == ["2_A", "10_B"]


def test_two_tasks_of_one_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "op.py").write_text(OPERATOR)
    with pytest.raises(ConfigError, match="two tasks are called op"):
        from_files(str(tmp_path))


def row(**changes):
    return {"level": 1, "problem_id": 19, "name": "19_ReLU", "code": OPERATOR, **changes}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_dataset(tmp_path, suffix):
    file = tmp_path / f"bench.{suffix}"
    rows = [row(level=2, problem_id=10, name="10_B"), row()]
    if suffix == "jsonl":
        file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        pytest.importorskip("pyarrow")
        pandas = pytest.importorskip("pandas")
        pandas.DataFrame(rows).to_parquet(file)
    found = from_dataset(str(file))
    assert [(t.task_id, t.name, t.level, t.number) for t in found] == [
        ("level1/19_ReLU", "19_ReLU", 1, 19), ("level2/10_B", "10_B", 2, 10),
    ]  # fmt: skip
    assert found[0].source == OPERATOR


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (json.dumps({"name": "x"}), "row 1"),
        (json.dumps(row(level="one")), "expected int"),
        (json.dumps(row(code="x = 1")), "defines no Model"),
        ("{", "line 1 is no JSON"),
        (json.dumps(row()) + "\n" + json.dumps(row()), "two tasks are called level1/19_ReLU"),
    ],
    ids=["columns", "type", "code", "json", "repeated"],
)
def test_dataset_faults(tmp_path, text, part):
    (tmp_path / "bench.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=part):
        from_dataset(str(tmp_path / "bench.jsonl"))


def test_missing_parquet_reader_is_named(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")

    def absent(file):
        raise ImportError("no engine")

    monkeypatch.setattr(pandas, "read_parquet", absent)
    (tmp_path / "bench.parquet").write_bytes(b"")
    with pytest.raises(MissingError) as caught:
        from_dataset(str(tmp_path / "bench.parquet"))
    assert "pyarrow" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "error", "part"),
    [
        (replace(BUNDLED, source="path"), ConfigError, "task.path"),
        (replace(BUNDLED, source="path", path="no/such.py"), MissingError, "no/such.py"),
        (replace(BUNDLED, source="kernelbench", path="no/such.jsonl"), MissingError, "no/such.jsonl"),
    ],
    ids=["no_path", "no_file", "no_dataset"],
)
def test_absent_sources(tmp_path, settings, error, part):
    with pytest.raises(error, match=part):
        find_tasks(settings, (), tmp_path)


def test_hash_covers_source_and_contract():
    hashes = {
        make_task("t", "t", source, contract, "declared", None, None).task_hash
        for source in (OPERATOR, OPERATOR + "\n")
        for contract in (Contract(), Contract(exact=True))
    }
    assert len(hashes) == 4
    assert task("a").task_hash == task("b").task_hash


def test_foreign_tasks_get_variants_once(tmp_path, monkeypatch):
    (tmp_path / "op.py").write_text(OPERATOR)
    settings = replace(BUNDLED, source="path", path=str(tmp_path / "op.py"))
    (first,) = load_tasks(settings, (), tmp_path, cache=tmp_path / "cache")
    assert first.contract_origin == "derived"
    assert first.contract.variants["odd"]["N"] % 16
    monkeypatch.setattr("engine.tasks.derive_variants", lambda *_: pytest.fail("derived again"))
    assert load_tasks(settings, (), tmp_path, cache=tmp_path / "cache") == (first,)


def test_suites_are_known():
    assert set(SUITES) == {"nominal", "signed", "scaled", "shift", "structured", "extreme", "integer"}
