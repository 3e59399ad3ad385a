"""The mutation test's operators, and a slice of its mutants; all of them: `python -m tests.adversarial.mutants`."""

from __future__ import annotations

import ast

import pytest

from tests.adversarial.corpus import rows
from tests.adversarial.mutants import CHEAP, Fate, all_mutants, equivalent, judge_all, main, sample
from tests.adversarial.operators import OPERATORS, mutants

SLICE = 8

KERNEL = """
@triton.jit
def kernel(x_ptr, y_ptr, rows, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    for start in range(0, columns, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * columns + offsets, mask=(offsets < columns) & (row < rows), other=-float("inf"))
        x = tl.dot(x, x, input_precision="ieee")
        tl.store(y_ptr + offsets, tl.exp(x - tl.max(x, axis=0)))


class ModelNew:
    def forward(self, x):
        kernel[(triton.cdiv(x.numel(), 64),)](x, *x.stride(), BLOCK=64)
"""
CHANGED = [
    ("mask_dropped", "tl.load(x_ptr + row * columns + offsets)"),
    ("mask_narrowed", "mask=offsets < columns, other"),
    ("mask_narrowed", "mask=row < rows, other"),
    ("bound_off", "(offsets <= columns)"),
    ("bound_off", "(offsets < columns - 1)"),
    ("bound_off", "range(0, columns - BLOCK, BLOCK)"),
    ("grid_floored", "x.numel() // 64"),
    ("fp16_operands", "tl.dot(x.to(tl.float16), x.to(tl.float16))"),
    ("strides_swapped", "*x.stride()[::-1]"),
    ("strides_swapped", "row * 1 + offsets * columns"),
    ("max_removed", "tl.exp(x)"),
    ("other_changed", "other=0.0"),
]


@pytest.mark.parametrize(("operator", "text"), CHANGED, ids=[f"{name}-{n}" for n, (name, _) in enumerate(CHANGED)])
def test_an_operator_changes_one_thing(operator, text):
    found = [mutant for mutant in mutants("case", KERNEL, "float32") if mutant.operator == operator]
    assert [mutant for mutant in found if text in mutant.source], [mutant.source for mutant in found]
    original = ast.unparse(ast.parse(KERNEL)).splitlines()
    for mutant in found:
        changed = sum(a != b for a, b in zip(original, mutant.source.splitlines(), strict=True))
        assert changed == 1, mutant.name


def test_half_precision_tasks_have_no_fp16_mutants():
    assert not [mutant for mutant in mutants("case", KERNEL, "float16") if mutant.operator == "fp16_operands"]


def test_every_operator_applies_to_the_corpus_and_names_are_unique():
    names = [mutant.name for _, mutant in all_mutants("cpu")]
    assert len(set(names)) == len(names)
    assert {name.split(":")[1] for name in names} == set(OPERATORS)
    assert {name.split(":")[0] for name in names} <= {row.name for row in rows() if row.honest}


def test_equivalent_mutants_exist_and_say_why():
    names = {mutant.name for _, mutant in all_mutants("cuda")}
    assert sorted(equivalent().keys() - names) == []
    assert all(len(reason) > 20 for reason in equivalent().values())


def test_a_slice_is_killed():
    known = equivalent()
    pairs = [pair for pair in all_mutants("cpu") if pair[0].task in CHEAP and pair[1].name not in known]
    fates = list(judge_all(sample(pairs, SLICE), "cpu", 1))
    assert [judged.name for judged in fates if judged.fate is not Fate.KILLED] == []


def test_the_command_reports_survivors_and_fails(monkeypatch):
    monkeypatch.setattr("tests.adversarial.mutants.judge", lambda backend, task, source: _correct())
    written: list[str] = []
    assert main(["--only", "a04:mask_dropped"], written.append) == 1
    assert written[0] == "survived  a04:mask_dropped:11.1\n"
    assert written[-1] == "0 killed, 2 survived, 0 equivalent, 0 out_of_bounds, 0 undecided of 2 on cpu\n"


def _correct():
    from engine.records import Mode, Status, Verdict

    return Verdict(Status.CORRECT, None, Mode.INTERPRETER, "")
