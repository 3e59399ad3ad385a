"""Verdicts beyond the corpus: what they say, repeatability, contracts, and what the judge cannot know."""

from __future__ import annotations

import dataclasses

import pytest

from engine.errors import MissingError
from engine.judging import sandbox
from engine.judging.answers import Called
from engine.judging.messages import state_problem
from engine.judging.policy import Work, goes_beyond, policy_problem
from engine.records import Contract, HostOp, Judged, Mode, Operator, Precision, Reason, Status, Task
from tests.support.judge import FACTS, backend, bundled_tasks, case, judged

HALF_TASK = """import torch
import torch.nn as nn

ROWS = 64
COLUMNS = 64


class Model(nn.Module):
    def forward(self, x, y):
        return BODY


def get_inputs():
    return [torch.rand(ROWS, COLUMNS, dtype=torch.DTYPE), torch.rand(ROWS, COLUMNS, dtype=torch.DTYPE)]


def get_init_inputs():
    return []
"""
ADD = """import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def add_kernel(x_ptr, y_ptr, z_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(z_ptr + offsets, tl.load(x_ptr + offsets, mask=mask) + tl.load(y_ptr + offsets, mask=mask), mask=mask)


class ModelNew(nn.Module):
    def forward(self, x, y):
        z = torch.empty_like(x)
        n = x.numel()
        add_kernel[(triton.cdiv(n, 256),)](x, y, z, n, BLOCK=256)
        return RESULT
"""


def task(dtype="float32", body="x + y", **contract):
    source = HALF_TASK.replace("DTYPE", dtype).replace("BODY", body)
    declared = Contract(dtype=dtype, variants={"odd": {"ROWS": 7, "COLUMNS": 33}}, **contract)
    return Task("add", "add", source, declared, "declared", f"{dtype}{body}{contract}")


def add(result="z"):
    return ADD.replace("RESULT", result)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int64"])
def test_honest_kernels_of_every_dtype(dtype):
    if dtype == "int64":
        operator = task("int64")
        source = operator.source.replace(
            "torch.rand(ROWS, COLUMNS, dtype", "torch.randint(0, 9, (ROWS, COLUMNS), dtype"
        )
        operator = dataclasses.replace(operator, source=source)
    else:
        operator = task(dtype)
    verdict = judged(operator, add())
    assert verdict.status is Status.CORRECT, verdict.message


@pytest.mark.parametrize(
    ("body", "result", "reason", "words"),
    [
        ("(x + y, x - y)", "z", Reason.STRUCTURE, "expected a tuple of 2"),
        ("(x + y, x - y)", "(z, z)", Reason.WRONG_RESULT, "output 1"),
        ("(x + y, x + y)", "[z, z]", Reason.STRUCTURE, "a list of 2"),
        ("{'sum': x + y}", "{'total': z}", Reason.STRUCTURE, "a dict of total"),
        ("(x + y, x + y)", "(z, z)", None, ""),
    ],
)
def test_all_outputs_count(body, result, reason, words):
    verdict = judged(task(body=body), add(result))
    assert verdict.reason is reason, verdict.message
    assert words in verdict.message


def test_bf16_products_are_undecided_in_the_interpreter():
    source = case("a02").replace('tl.dot(a, b, input_precision="ieee")', "tl.dot(a, b)")
    verdict = judged(task("bfloat16", body="x @ y"), source)
    assert (verdict.status, verdict.reason) == (Status.UNDECIDED, Reason.INTERPRETER_LIMIT)
    assert verdict.trace is not None


def test_tf32_is_right_where_the_contract_says_so():
    operator = bundled_tasks()["square_matmul"]
    relaxed = dataclasses.replace(operator.contract, precision=Precision.TF32)
    verdict = judged(dataclasses.replace(operator, contract=relaxed, task_hash="tf32"), case("b09"))
    assert verdict.status is Status.CORRECT, verdict.message
    assert verdict.precision_class == "tf32"


def test_message_for_a_repair_says_where_and_how_much():
    verdict = judged("sum_reduction", case("b21"))
    assert "variant small, suite nominal" in verdict.message
    assert "first at [0, 0, 0]: got" in verdict.message
    assert "expected" in verdict.message
    assert verdict.variant == "small"
    assert verdict.suite == "nominal"
    assert not verdict.checks[-1].passed


def test_an_exception_shows_the_candidates_line():
    source = case("a04").replace("        n = x.numel()", "        n = x.missing()")
    verdict = judged("gelu", source)
    assert verdict.reason is Reason.EXCEPTION
    assert "AttributeError" in verdict.message
    assert "in forward: n = x.missing()" in verdict.message


def test_verdict_carries_seed_layers_and_mode():
    verdict = judged("gelu", case("a04"))
    assert verdict.mode is Mode.INTERPRETER
    assert verdict.seed is not None
    assert set(verdict.sandbox) >= set(sandbox.LAYERS) - set(sandbox.OPTIONAL)
    assert {check.variant for check in verdict.checks} == {"small", "odd"}
    assert verdict.seed != judged("gelu", case("a04")).seed


def test_what_the_reference_cannot_take_is_left_out():
    verdict = judged(
        task(body="torch.log(x) + y"),
        add().replace(
            "tl.load(x_ptr + offsets, mask=mask) +", "tl.log(tl.load(x_ptr + offsets, mask=mask, other=1.0)) +"
        ),
    )
    assert verdict.status is Status.CORRECT, verdict.message
    assert any("suite signed left out" in remark for remark in verdict.remarks)


def test_a_task_that_cannot_be_replayed_is_undecided():
    operator = task()
    broken = dataclasses.replace(operator, source=operator.source.replace("torch.rand(", "object() or torch.rand(", 1))
    verdict = judged(dataclasses.replace(broken, task_hash="broken"), add())
    assert (verdict.status, verdict.reason) == (Status.UNDECIDED, Reason.UNSUPPORTED)


def test_profile_and_measure_are_estimates():
    operator = Operator(bundled_tasks()["gelu"], FACTS)
    candidate = Judged(case("a04"), backend().judge(operator, case("a04")).trace)
    measured = backend().measure(operator, candidate, None)
    assert measured.timing("candidate").score_kind == "estimated"
    assert measured.timing("candidate").n == 0
    wanted = ("registers", "launches", "dram_pct")
    values = {value.metric: value for value in backend().profile(operator, candidate, wanted)}
    assert values["registers"].value > 0
    assert values["launches"].value == 1
    assert values["dram_pct"].value is None
    assert values["dram_pct"].note


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"w": [3]}, None),
        ({"v": [3]}, "missing w"),
        ({"w": [3], "b": [1]}, "not in the reference: b"),
        ({"w": [4]}, "w has shape [4], expected [3]"),
    ],
)
def test_state_differences(found, words):
    problem = state_problem({"w": (3,)}, found)
    assert problem is None if words is None else words in problem


MATMUL = HostOp("aten.mm", 1, True, 1e9, 3e6)
RELU = HostOp("aten.relu", 1, True, 1e6, 2e6)


@pytest.mark.parametrize(
    ("launches", "host", "policy", "reason"),
    [
        (0, (), "any", Reason.NOT_LAUNCHED),
        (1, (), "none", None),
        (1, (HostOp("aten.empty_like", 1, False, 0, 0),), "none", None),
        (1, (RELU,), "none", Reason.HOST_OP),
        (1, (MATMUL,), "library", None),
        (1, (MATMUL, RELU), "library", Reason.HOST_OP),
        (1, (MATMUL, RELU), "any", None),
        (1, (HostOp("aten.fft_fft", 1, True, 1, 1),), "library", Reason.HOST_OP),
        (1, (HostOp("flash_attn.forward", 1, True, 1, 1),), "library", Reason.HOST_OP),
    ],
)
def test_policy(launches, host, policy, reason):
    problem = policy_problem(launches, host, policy, Work((MATMUL, RELU), 3e6), 0.1)
    assert (None if problem is None else problem.reason) is reason


def work(name, size):
    return HostOp(f"aten.{name}", 1, True, size, size)


FORMULA = Work((work("mul", 12.0), work("tanh", 6.0), work("add", 6.0)), 6.0)
FUSED = Work((work("native_layer_norm", 6.0), work("mul", 6.0)), 6.0)
EPILOGUE = Work((HostOp("aten.convolution", 1, True, 1e3, 6.0), work("relu", 4.0)), 6.0)


@pytest.mark.parametrize(
    ("own", "host", "refused"),
    [
        pytest.param(FORMULA, (work("gelu", 6.0),), True, id="fused-form-of-a-formula"),
        pytest.param(FORMULA, (work("sigmoid", 6.0),), True, id="as-much-as-inputs-and-outputs"),
        pytest.param(FORMULA, (work("relu_", 6.0),), True, id="in-place"),
        pytest.param(FORMULA, (work("mean", 4.0), work("var", 4.0)), False, id="reductions-before-a-kernel"),
        pytest.param(FORMULA, (work("cat", 9.0),), False, id="data-movement"),
        pytest.param(FUSED, (work("native_group_norm", 6.0),), False, id="a-norm-where-the-reference-has-one"),
        pytest.param(FUSED, (work("_softmax", 1.0),), True, id="a-softmax-where-it-has-none"),
        pytest.param(EPILOGUE, (EPILOGUE.ops[0],), False, id="library-convolution-fused-epilogue"),
        pytest.param(Work((), 0.0), (work("gelu", 6.0),), False, id="unknown-reference"),
    ],
)
def test_what_host_operations_leave_to_kernels(own, host, refused):
    problem = policy_problem(1, host, "library", own, 0.1)
    assert (problem is not None) == refused
    assert problem is None or problem.reason is Reason.HOST_OP


def test_the_least_share_of_kernels_is_a_setting():
    assert policy_problem(1, (MATMUL,), "library", Work((MATMUL, RELU), 3e6), 0.5).reason is Reason.HOST_OP


GELU_FORMULA = "0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))) + y * 0.0"


def test_a_copy_of_a_fused_library_form_is_no_kernel_for_a_formula():
    source = add().replace("add_kernel[(", 'x = torch.nn.functional.gelu(x, approximate="tanh")\n        add_kernel[(')
    source = source.replace("tl.load(y_ptr + offsets, mask=mask)", "0.0 * tl.load(y_ptr + offsets, mask=mask)")
    verdict = judged(task(body=GELU_FORMULA), source)
    assert verdict.reason is Reason.HOST_OP, verdict.message
    assert "aten.gelu" in verdict.message


@pytest.mark.parametrize(
    ("real", "same_size", "beyond"),
    [
        pytest.param((RELU,), True, False, id="as-traced"),
        pytest.param((RELU, HostOp("aten.clone", 1, False, 0, 9e9)), True, False, id="copies-do-not-count"),
        pytest.param((RELU, MATMUL), False, True, id="another-operation"),
        pytest.param((HostOp("aten.relu", 9, True, 9e6, 9e6),), True, True, id="more-of-one"),
        pytest.param((HostOp("aten.relu", 9, True, 9e6, 9e6),), False, False, id="another-size"),
    ],
)
def test_what_really_ran_beyond_the_trace(real, same_size, beyond):
    assert goes_beyond(real, (RELU,), same_size=same_size) == beyond


def test_a_result_that_goes_stale_after_some_calls_is_found(monkeypatch):
    import shutil
    import tempfile
    from pathlib import Path

    from engine.judging import own_process
    from engine.judging.service import Opening, Service
    from tests.support.judge import settings

    monkeypatch.setitem(own_process.UNJUDGED, "cpu", (40, 40))
    monkeypatch.setitem(own_process.UNJUDGED_S, "cpu", 30.0)
    scratch = Path(tempfile.mkdtemp(prefix="judge-test-"))
    service = Service(Opening(settings().judge, "cpu", "sm_90", False, str(scratch), {}))
    try:
        verdict = service.judge.judge(bundled_tasks()["gelu"], case("b38"), 7)
    finally:
        service.close()
        shutil.rmtree(scratch, ignore_errors=True)
    assert verdict.reason is Reason.WRONG_RESULT, verdict.message


def test_required_sandbox_refuses_a_missing_layer(monkeypatch, tmp_path):
    from engine.judging.judge import Findings, Judge, Place
    from tests.support.judge import settings

    class Bare:
        def spawn(self, kind, confinement):
            import socket

            from engine.judging.wire import Channel

            ours, theirs = socket.socketpair()
            Channel(theirs).send({"ready": True, "sandbox": ["process_group"]})
            self.theirs = theirs
            return 1, Channel(ours)

        def end(self, pid):
            self.theirs.close()
            return 0

    strict = dataclasses.replace(settings().judge, sandbox="required")
    judge = Judge(strict, Place("cpu", "sm_90", False, tmp_path), Bare(), Bare())
    with pytest.raises(MissingError, match="landlock"), judge.child("run", Findings(1)):
        pass


@pytest.mark.parametrize(
    ("launches", "host", "traced", "late", "reason"),
    [
        pytest.param(1, (MATMUL,), (MATMUL,), False, None, id="as-traced"),
        pytest.param(0, (), (), False, Reason.NOT_LAUNCHED, id="no-real-launch"),
        pytest.param(0, (), (), True, None, id="graph-replayed-later"),
        pytest.param(0, (MATMUL, RELU), (), True, Reason.HOST_OP, id="torch-answers-later"),
        pytest.param(1, (MATMUL, RELU), (), False, Reason.HOST_OP, id="other-operations-than-traced"),
        pytest.param(1, (MATMUL, RELU), None, False, Reason.HOST_OP, id="no-trace"),
    ],
)
def test_on_a_device_what_really_ran_counts(monkeypatch, launches, host, traced, late, reason):
    from types import SimpleNamespace

    from engine.judging import own_process
    from engine.judging.judge import Findings, Stop
    from engine.judging.runs import Call
    from engine.records import Trace
    from tests.support.judge import settings

    monkeypatch.setattr(own_process, "work_of", lambda model, inputs: Work((MATMUL, RELU), 3e6))
    monkeypatch.setattr(own_process, "replay", lambda *arguments: [])
    run = object.__new__(own_process.OwnProcessVariant)
    run.judge = SimpleNamespace(place=SimpleNamespace(device="cuda:0"), settings=settings().judge)
    run.found = Findings(1, trace=None if traced is None else Trace((), traced, ()))
    run.reference = SimpleNamespace(inputs=None, device="cuda:0", model=None)
    run.variant, run.host_ops, run._work = "small", "library", None
    answer = Called(0.0, (), (), (), 0, launches, tuple(host))
    call = Call("nominal0", "nominal", 1, 2, "nan")
    try:
        run._policy(answer, call, late=late)
        found = None
    except Stop as stop:
        found = stop.failure.reason
    assert found is reason
