"""`python -m engine.judge` and its Python API on the CPU, with the real judge behind them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.codec import decode
from engine.judge import Judgement, judge
from engine.records import Reason, Status

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "adversarial" / "cases"
HONEST, UNLAUNCHED, TORCH = CASES / "a01.py", CASES / "b02.py", CASES / "b01.py"
SEED = 20


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "engine.judge", "--backend", "cpu", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """One call over a folder with an honest kernel, one that is never launched and one that does not parse."""
    folder = tmp_path_factory.mktemp("candidates")
    for name, source in (("1", HONEST.read_text()), ("2", UNLAUNCHED.read_text()), ("3", "def (:")):
        (folder / f"{name}.py").write_text(source)
    return command("softmax", folder, "--json", "--seed", str(SEED))


def test_a_folder_is_judged_in_one_call(several):
    assert several.returncode == 3, several.stderr
    assert several.stderr == ""
    made = [decode(Judgement, json.loads(line)) for line in several.stdout.splitlines()]
    outcomes = [(one.status, one.reason) for one in made]
    assert outcomes == [
        (Status.CORRECT, None),
        (Status.REJECTED, Reason.NOT_LAUNCHED),
        (Status.FAILED, Reason.SYNTAX),
    ]
    assert {one.seed for one in made} == {SEED}


def test_a_correct_kernel_is_described(several):
    made = decode(Judgement, json.loads(several.stdout.splitlines()[0]))
    assert {(check.variant, check.passed) for check in made.checks} == {("small", True), ("odd", True)}
    assert made.worst.error_ratio == made.error_ratio == max(check.error_ratio for check in made.checks)
    assert (made.precision_class, made.timing.score_kind, made.launches) == ("ieee", "estimated", 1)
    assert made.launched_bytes == 2 * 4 * 8192 * 16384
    assert [ratio.over for ratio in made.speedups] == ["eager"]
    assert made.kernel_share.bytes == 1.0
    assert made.host_ops
    assert not any(call.computes for call in made.host_ops)


def test_torch_that_answers_for_a_kernel_keeps_it_all(several):
    made = decode(Judgement, json.loads(several.stdout.splitlines()[1]))
    assert (made.launches, made.kernel_share.bytes, made.timing) == (0, 0.0, None)
    assert "aten._softmax" in [call.name for call in made.host_ops if call.computes]


def test_the_api_gives_the_same_verdict_on_the_same_seed(several):
    shown = decode(Judgement, json.loads(several.stdout.splitlines()[0]))
    mine = judge("softmax", HONEST, backend="cpu", seed=SEED, timing=False)
    assert (mine.checks, mine.error_ratio, mine.policy) == (shown.checks, shown.error_ratio, shown.policy)
    assert mine.timing is None


def test_a_reference_of_ones_own_needs_no_contract(tmp_path):
    reference = tmp_path / "mine.py"
    reference.write_text((ROOT / "tasks" / "softmax.py").read_text())
    done = command(reference, TORCH)
    assert done.returncode == 3
    assert "rejected, no_kernel" in done.stdout
    assert "mine on cpu" in done.stdout
    assert "(derived)" in done.stdout


def test_a_reference_that_does_not_import_ends_with_2(tmp_path):
    reference = tmp_path / "mine.py"
    reference.write_text("import nothing_of_this_name\n" + (ROOT / "tasks" / "softmax.py").read_text())
    done = command(reference, HONEST)
    assert (done.returncode, done.stdout) == (2, "")
    assert "No module named 'nothing_of_this_name'" in done.stderr
