"""The task lint: which tasks let wrong kernels pass, what the judge's suites repair, and who is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

from engine.codec import decode, encode
from engine.judging import lint_draws
from engine.judging.client import LintClient
from engine.judging.inputs import derive_seed
from engine.judging.lint import lint, lint_problem
from engine.judging.references import References, expected
from engine.project import conf_dir
from engine.records import Contract, LintCode, LintFinding, LintSeverity, Precision, Reason, Status, Task, TaskLint
from engine.settings import JudgeSettings, TaskSettings
from engine.tasks import __main__ as command
from engine.tasks import load_tasks
from tests.support.judge import bundled_tasks

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "kernelbench.parquet"
MODEL = """import torch
import torch.nn as nn
import torch.nn.functional as F

ROWS = 16
COLUMNS = 32


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        INIT

    def forward(self, ARGUMENTS):
        return BODY


def get_inputs():
    return [INPUTS]


def get_init_inputs():
    return []
"""
RAND, RANDN = "torch.rand(ROWS, COLUMNS)", "torch.randn(ROWS, COLUMNS)"


def make(body: str, inputs: str = RANDN, init: str = "pass", arguments: str = "x", **contract: object) -> Task:
    source = MODEL.replace("BODY", body).replace("INPUTS", inputs).replace("INIT", init).replace("ARGUMENTS", arguments)
    declared = {"variants": {"small": {"ROWS": 8}, "odd": {"ROWS": 7, "COLUMNS": 33}}, **contract}
    return Task("made", "made", source, Contract(**declared), "declared", f"{body}{inputs}{init}{contract}")  # type: ignore[arg-type]


def settings() -> JudgeSettings:
    return decode(JudgeSettings, yaml.safe_load((conf_dir() / "judge" / "default.yaml").read_text()))


def linted(task: Task, seed: int = 0) -> TaskLint:
    return lint(task, References("cpu"), settings(), seed)


def told(found: TaskLint) -> set[tuple[str, str, str]]:
    return {(finding.severity.value, finding.code.value, finding.tensor) for finding in found.findings}


ZERO = {("error", "zero_output", "output"), ("error", "constant_output", "output")}
NO_INPUT = ("error", "insensitive_to_input", "inputs")
WEIGHT = "self.weight = nn.Parameter(torch.randn(COLUMNS))"
CASES = {
    "honest": ("torch.tanh(x)", RANDN, "pass", "x", set()),
    "zero": ("F.relu(x) * 0", RANDN, "pass", "x", {*ZERO, NO_INPUT}),
    "zero_where_inputs_are_small": (
        "F.relu(x - 2)",
        RAND,
        "pass",
        "x",
        {
            ("repaired", "zero_output", "output"),
            ("repaired", "constant_output", "output"),
            ("repaired", "insensitive_to_input", "inputs"),
            ("repaired", "non_negative_inputs", "input 0"),
        },
    ),
    "constant": ("x * 0 + 3", RANDN, "pass", "x", {("error", "constant_output", "output"), NO_INPUT}),
    "one_number_of_the_input": (
        "x.mean().expand(16, 32)",
        RANDN,
        "pass",
        "x",
        {("warning", "constant_output", "output")},
    ),
    "nearly_constant": (
        "1 + 1e-4 * torch.tanh(x)",
        RANDN,
        "pass",
        "x",
        {("warning", "constant_output", "output"), ("warning", "insensitive_to_input", "inputs")},
    ),
    "rounding_noise": (
        "(x - x.mean(1, keepdim=True)).mean(1)",
        RANDN,
        "pass",
        "x",
        {*ZERO, NO_INPUT},
    ),
    "equal_rows": (
        "torch.tanh(x).mean(0, keepdim=True).expand(x.shape)",
        RANDN,
        "pass",
        "x",
        {("warning", "row_constant", "output, dimension 0")},
    ),
    "identity": ("F.dropout(x, training=self.training)", RANDN, "pass", "x", {("error", "returns_input", "input 0")}),
    "relu_of_rand": (
        "F.relu(x)",
        RAND,
        "pass",
        "x",
        {("repaired", "returns_input", "input 0"), ("repaired", "non_negative_inputs", "input 0")},
    ),
    "squares_stay_positive": (
        "torch.sqrt(x) - 2",
        "torch.rand(ROWS, COLUMNS) ** 2",
        "pass",
        "x",
        {("warning", "non_negative_inputs", "input 0")},
    ),
    "unused_input": (
        "torch.tanh(x)",
        f"{RANDN}, {RANDN}",
        "pass",
        "x, y",
        {("warning", "insensitive_to_input", "input 1")},
    ),
    "fixed_input": (
        "torch.tanh(x) + y",
        f"{RANDN}, torch.ones(COLUMNS)",
        "pass",
        "x, y",
        {("warning", "insensitive_to_input", "input 1")},
    ),
    "unused_parameter": (
        "torch.tanh(x)",
        RANDN,
        "self.weight = nn.Parameter(torch.randn(4))",
        "x",
        {("warning", "insensitive_to_parameter", "weight")},
    ),
    "weight_that_starts_at_one": (
        "torch.tanh(x) * self.weight",
        RANDN,
        "self.weight = nn.Parameter(torch.ones(()))",
        "x",
        {("repaired", "insensitive_to_parameter", "weight")},
    ),
    "dropout_left_on": ("F.dropout(x)", RANDN, "pass", "x", {("error", "stochastic", "output")}),
    "all_infinite": (
        "x * 0 + float('inf')",
        RANDN,
        "pass",
        "x",
        {("error", "non_finite", "output")},
    ),
    "zero_in_one_of_two": (
        "(torch.tanh(x), x * 0)",
        RANDN,
        "pass",
        "x",
        {("warning", "zero_output", "output 1"), ("warning", "constant_output", "output 1")},
    ),
    "integers": ("x.argmax(1)", RANDN, "pass", "x", set()),
    "integers_that_never_change": ("(x > 1e9).long()", RANDN, "pass", "x", {*ZERO, NO_INPUT}),
}


@pytest.mark.parametrize("name", CASES)
def test_findings(name):
    body, inputs, init, arguments, findings = CASES[name]
    found = linted(make(body, inputs, init, arguments))
    assert told(found) == findings, found
    assert all(finding.suites and finding.message for finding in found.findings)
    assert (found.variants, found.suites) == (("small", "odd"), settings().suites)


def test_a_repair_names_the_suites_with_and_without_the_fault():
    found = next(f for f in linted(make("F.relu(x)", RAND)).findings if f.code is LintCode.RETURNS_INPUT)
    assert found.suites == ("shipped", "nominal", "shift")
    assert found.measured == 0.0
    assert "not under signed (variant small)" in found.message


def test_a_repair_needs_a_suite_that_the_contract_lists():
    found = linted(make("F.relu(x)", RAND, suites=("nominal", "shift")))
    assert ("error", "returns_input", "input 0") in told(found)
    assert found.suites == ("nominal", "shift")


def test_another_variant_can_repair():
    """Of one column the maximum is the input itself; the odd variant has several."""
    task = make("x.amax(1, keepdim=True)", "torch.randn(ROWS, COLUMNS)")
    declared = {"small": {"COLUMNS": 1}, "odd": {"ROWS": 9}}
    task = dataclasses.replace(task, contract=Contract(variants=declared), task_hash="columns")
    assert told(linted(task)) == {("repaired", "returns_input", "input 0")}
    only = dataclasses.replace(task, contract=Contract(variants={"small": declared["small"]}), task_hash="one column")
    assert ("error", "returns_input", "input 0") in told(linted(only))


def test_what_passes_by_chance_is_an_error():
    """All outputs are 0 in about a third of the judgements: where none of the 15 sums over a row is large."""
    task = make("F.relu(x.sum(1) / 32 ** 0.5 - 1.5)", suites=("nominal",))
    by_seed = [linted(task, seed).findings for seed in range(6)]
    zero = [finding for found in by_seed for finding in found if finding.code is LintCode.ZERO_OUTPUT]
    assert {finding.severity for finding in zero} == {LintSeverity.ERROR}
    assert any("in draw" in finding.message for finding in zero)


def test_more_draws_a_judgement_leave_less_to_chance():
    task = make("F.relu(x.sum(1) / 32 ** 0.5 - 1.5)", suites=("nominal",))
    many = dataclasses.replace(settings(), seeds=10)
    assert all(linted(task, seed).errors for seed in range(2))
    assert not any(lint(task, References("cpu"), many, seed).errors for seed in range(2))


@pytest.mark.parametrize(
    ("variants", "codes"),
    [
        ({}, {"single_shape", "no_odd_shape"}),
        ({"small": {"ROWS": 8}, "smaller": {"ROWS": 4}}, {"no_odd_shape"}),
        ({"odd": {"ROWS": 7}}, {"single_shape", "no_odd_shape"}),
        ({"small": {"ROWS": 8}, "odd": {"ROWS": 9}}, set()),
    ],
)
def test_shapes(variants, codes):
    found = linted(make("torch.tanh(x)", variants=variants))
    assert {finding.code.value for finding in found.findings} == codes


def test_a_suite_that_the_operator_does_not_admit_is_a_remark():
    found = linted(make("torch.log(x)", RAND))
    assert ("warning", "non_negative_inputs", "input 0") in told(found)
    assert "small: suite signed left out, the reference is not finite there" in found.remarks


def test_floats_of_eight_bits_are_examined():
    found = linted(make("x.float() * 2", f"{RAND}.to(torch.float8_e4m3fn)"))
    assert ("repaired", "non_negative_inputs", "input 0") in told(found)


def test_what_cannot_be_examined_is_a_remark():
    found = linted(make("x.nonsense()"))
    assert (found.findings, found.variants) == ((), ("small", "odd"))
    assert "not examined further" in found.remarks[-1]


def test_lack_of_time_is_a_remark():
    found = lint(make("F.relu(x) * 0"), References("cpu"), settings(), limit_s=0.0)
    assert (found.findings, found.remarks) == ((), ("not examined further: 0 s are over",))


def test_lack_of_memory_is_a_remark(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(lint_draws, "expected", refuse)
    found = linted(make("torch.tanh(x)"))
    assert found.findings == ()
    assert "memory ran out" in found.remarks[-1]


def test_one_seed_gives_one_answer():
    task = make("1 + 1e-4 * torch.tanh(x)")
    assert linted(task, 3) == linted(task, 3)
    assert linted(task, 3).findings[0].measured != linted(task, 4).findings[0].measured


def test_the_references_of_the_judge_answer_as_before():
    task = make("torch.tanh(x * self.weight)", RANDN, WEIGHT)
    references = References("cpu")
    reference = references.reference(task, "small")

    def answer() -> torch.Tensor:
        seeds = (derive_seed(1, "inputs"), derive_seed(1, "parameters"))
        return expected(reference, *seeds, "nominal", Precision.IEEE).exact[0]

    before = answer()
    lint(task, references, settings())
    assert torch.equal(before, answer())


@pytest.mark.parametrize("name", sorted(bundled_tasks()))
def test_no_bundled_task_has_an_error(name):
    found = linted(bundled_tasks()[name])
    assert found.errors == ()
    assert found.remarks == ()


KNOWN = {
    "level2/80_Gemm_Max_Subtract_GELU": ("error", "zero_output", "output"),
    "level2/9_Matmul_Subtract_Multiply_ReLU": ("repaired", "zero_output", "output"),
    "level1/19_ReLU": ("repaired", "returns_input", "input 0"),
    "level1/40_LayerNorm": ("repaired", "insensitive_to_parameter", "parameters"),
}


@pytest.mark.skipif(not DATA.exists(), reason="needs the KernelBench problems, which are not part of the project")
def test_known_problems_of_kernelbench():
    tasks = load_tasks(
        TaskSettings("kernelbench", str(DATA), False, tuple(KNOWN), (), (), None, None, None, 0), (), DATA
    )
    assert {task.task_id for task in tasks} == set(KNOWN)
    for task in tasks:
        assert KNOWN[task.task_id] in told(linted(task)), task.task_id


def test_only_errors_withhold_a_verdict():
    finding = LintFinding(LintCode.ZERO_OUTPUT, LintSeverity.ERROR, "output", ("nominal",), 0.0, "output: zeros pass")
    found = TaskLint("t", (finding,), ("small",), ("nominal",))
    failure = lint_problem(found)
    assert failure is not None
    assert (failure.status, failure.reason) == (Status.UNDECIDED, Reason.DEGENERATE_TASK)
    assert "zero_output: output: zeros pass" in failure.message
    mild = dataclasses.replace(finding, severity=LintSeverity.WARNING)
    assert lint_problem(dataclasses.replace(found, findings=(mild,))) is None
    assert decode(TaskLint, json.loads(json.dumps(encode(found)))) == found


@pytest.fixture
def client(tmp_path):
    opened = LintClient(settings(), tmp_path, limit_s=10.0)
    yield opened
    opened.close()


def test_a_task_that_hangs_or_dies_costs_only_itself(client):
    good = make("torch.tanh(x)")
    assert client.lint(good).variants == ("small", "odd")
    hanging = client.lint(make("torch.tanh(x)", "[torch.randn(ROWS, 4) for _ in iter(int, 1)]"))
    assert "gave no answer within 10 s" in hanging.remarks[0]
    died = client.lint(make("torch.tanh(x)", init="import os; os._exit(3)"))
    assert "ended with status 3" in died.remarks[0]
    wrong = client.lint(make("torch.tanh(x)", init="raise KeyError('width')"))
    assert "KeyError: 'width'" in wrong.remarks[0]
    assert not any(found.variants for found in (hanging, died, wrong))
    assert client.lint(good).variants == ("small", "odd")


def test_command_on_a_folder(tmp_path, capsys):
    (tmp_path / "nothing.py").write_text(make("F.relu(x) * 0").source)
    (tmp_path / "plain.py").write_text(make("torch.tanh(x)").source)
    assert command.main(["lint", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "nothing: error: zero_output: output: zeros pass for it" in printed
    assert "plain: nothing found" in printed
    assert printed.endswith("2 tasks, 1 with errors, 0 not examined\n")


def test_command_on_bundled_names_and_a_data_set(tmp_path, capsys):
    rows = [{"level": 1, "problem_id": n, "name": f"{n}_made", "code": make("x").source} for n in (1, 2)]
    data = tmp_path / "set.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command.main(["lint", "so*max", str(data), "--numbers", "2", "--json"]) == 1
    found = [decode(TaskLint, json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert [(lint.task_id, bool(lint.errors)) for lint in found] == [("softmax", False), ("level1/2_made", True)]


def test_command_names_what_is_not_there(capsys):
    assert command.main(["lint", "sofmax"]) == 2
    assert "did you mean 'softmax'" in capsys.readouterr().err
