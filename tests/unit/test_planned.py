"""From a tracing process's answer to compiled plans: what is believed, what stops the judgement, what is compiled."""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest

from engine.codec import encode
from engine.judging.children import ChildEnded, ChildTimeout
from engine.judging.compiler import CompiledKernel, CompileProblem, DeviceLimits, kernel_key
from engine.judging.judge import Findings, Judge, Place, Stop
from engine.judging.plan import Argument, Kernel, Launch, Origin, Step
from engine.judging.planned import Planner, Untraceable
from engine.judging.references import FULL
from engine.records import Contract, HostOp, Reason, Status, Task
from tests.support.judge import settings
from tests.support.plans import buffer, call, host, plan, ref

INPUT, STATE, OP = Origin.INPUT, Origin.STATE, Origin.OP
SOURCE = """import torch
import torch.nn as nn

ROWS = 16
COLUMNS = 8


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(COLUMNS))

    def forward(self, x):
        return torch.tanh(x * self.scale)


def get_inputs():
    return [torch.rand(ROWS, COLUMNS)]


def get_init_inputs():
    return []
"""
TASK = Task("t", "t", SOURCE, Contract(dtype="float32", variants={"small": {"ROWS": 4}}), "declared", "planned")
ORDER = ("small", FULL)
ROWS = {"small": 4, FULL: 16}
TARGET = "sm_90"


def kernel(name="scale_kernel", warps=4):
    return Kernel(name, f"tt.func public @{name}() {{ tt.return }}", warps, 3)


def launch(*kernels, buffers=(0, 1, 2), stream=0):
    """One launch with so many autotune choices."""
    arguments = tuple(Argument("pointer", index) for index in buffers)
    return Step(stream, tuple(Launch(index, (1, 1, 1), arguments) for index in kernels))


ONE_LAUNCH, ONE_KERNEL = (launch(0),), (kernel(),)


def described(rows, steps=ONE_LAUNCH, kernels=ONE_KERNEL, more=(), **parts):
    buffers = (
        buffer(32 * rows, INPUT, name="0"),
        buffer(32, STATE, kept=True, name="scale"),
        buffer(32 * rows),
        *more,
    )
    made = plan(buffers, call(steps, ref(2, rows, 8)), **parts)
    return dataclasses.replace(made, kernels=tuple(kernels))


def answer(made, **changed):
    """What a tracing process answers."""
    row = {"kernel": "scale_kernel", "grid": [1, 1, 1], "count": 1, "bytes": 64.0, "num_warps": 4, "num_stages": 3}
    row |= {"has_dot": False, "registers": None, "spill_bytes": None, "shared_bytes": None}
    honest = {
        "launches": [row],
        "foreign": {},
        "remarks": [],
        "host_ops": [["aten.empty_like", 1, False, 0.0, 0.0]],
        "interpreter_limit": [],
        "compile_error": None,
        "untraceable": None,
        "grows": False,
        "plan": None if made is None else encode(made),
        "state": {"scale": [8]},
    }
    return honest | changed


class Child:
    """Answers by variant, full size first, as it is asked."""

    def __init__(self, answers):
        self.answers = list(answers)

    def ask(self, message, timeout_s):
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def output(self):
        return "Segmentation fault"


class Compiler:
    """Compiles every kernel but those in `problems`, by name."""

    def __init__(self, **problems):
        self.problems, self.asked, self.abandoned = problems, [], []

    def begin(self, kernels, target, limits, seconds):
        self.asked.append([each.name for each in kernels])
        return {kernel_key(each, target): self._one(each, target) for each in kernels}

    def abandon(self, begun):
        self.abandoned.append(sorted(begun))

    def outcomes(self, kernels, begun, target, limits):
        return {key: begun[key] for key in (kernel_key(each, target) for each in kernels)}

    def _one(self, each, target):
        if each.name in self.problems:
            return CompileProblem(each.name, f"{each.name}: shared memory", resources=self.problems[each.name])
        return CompiledKernel(
            symbol=each.name,
            signature=("*fp32", "*fp32", "*fp32"),
            parameter_bytes=(8, 8, 8, 8, 8),
            num_warps=each.num_warps,
            num_ctas=1,
            cluster=(1, 1, 1),
            shared_bytes=1024,
            global_scratch_bytes=0,
            global_scratch_align=1,
            profile_scratch_bytes=0,
            profile_scratch_align=1,
            cooperative=False,
            registers=40,
            spill_bytes=0,
            key=kernel_key(each, target),
            cubin=b"",
        )


def prepared(tmp_path, answers, compiler=None, host_ops="library", variants=ORDER):
    """What Planner makes of these answers, the findings, and how often executors were asked to warm up."""
    judge = Judge(settings().judge, Place("cpu", TARGET, False, tmp_path), None, None)
    judge.child = lambda kind, found: contextlib.nullcontext(Child(answers))
    found, traced = Findings(1), []
    planner = Planner(judge, compiler or Compiler(), DeviceLimits(), lambda: traced.append(True))
    made = planner.prepare(TASK, "the candidate", host_ops, found, variants)
    return SimpleNamespace(made=made, found=found, traced=traced)


def honest(**parts):
    return [answer(described(ROWS[variant], **parts)) for variant in (FULL, "small")]


def stopped(tmp_path, answers, **more):
    with pytest.raises(Stop) as caught:
        prepared(tmp_path, answers, **more)
    return caught.value.failure, caught.value.variant


def test_honest_answers_become_compiled_plans_of_every_variant(tmp_path):
    got = prepared(tmp_path, honest())
    assert tuple(got.made.variants) == ORDER
    for variant, compiled in got.made.variants.items():
        assert compiled.plan == described(ROWS[variant])
        assert compiled.keys == (kernel_key(kernel(), TARGET),)
        assert list(compiled.kernels) == list(compiled.keys)
    assert len(got.traced) == 1
    (launched,) = got.made.trace.launches
    assert (launched.registers, launched.spill_bytes, launched.shared_bytes) == (40, 0, 1024)
    assert set(got.found.stages) == {"trace", "compile"}


def test_kernels_that_variants_share_are_compiled_once_and_unused_ones_are_not_loaded(tmp_path):
    compiler = Compiler()
    got = prepared(tmp_path, honest(kernels=(kernel(), kernel("unused"))), compiler)
    assert [sorted(names) for names in compiler.asked] == [["scale_kernel", "unused"], []]
    assert got.made.variants["small"].keys[1] is None


CHOICES = (kernel("narrow"), kernel("wide"), kernel("huge"))
TUNED = {"steps": (launch(0, 1, 2),), "kernels": CHOICES}


def test_autotune_choices_that_do_not_compile_are_left_out(tmp_path):
    got = prepared(tmp_path, honest(**TUNED), Compiler(huge=True, narrow=False))
    for compiled in got.made.variants.values():
        (step,) = compiled.plan.steady.steps
        assert [choice.kernel for choice in step.launch] == [1]
        assert compiled.keys == (None, kernel_key(CHOICES[1], TARGET), None)
    assert any("does not fit" in remark for remark in got.found.remarks)


@pytest.mark.parametrize(
    ("problems", "reason"),
    [
        ({"narrow": True, "wide": True, "huge": True}, Reason.RESOURCES),
        ({"narrow": False, "wide": False, "huge": False}, Reason.COMPILE),
    ],
)
def test_a_launch_without_a_usable_choice_stops_the_judgement(tmp_path, problems, reason):
    failure, variant = stopped(tmp_path, honest(**TUNED), compiler=Compiler(**problems))
    assert (failure.status, failure.reason) == (Status.FAILED, reason)
    assert "shared memory" in failure.message
    assert variant == "small"


@pytest.mark.parametrize("part", ["prelude", "first"])
def test_choices_of_every_part_are_looked_at(tmp_path, part):
    step = launch(1, buffers=(1,))
    parts = {"prelude": [step]} if part == "prelude" else {"first": call([step, launch(0)], ref(2, 4, 8))}
    answers = [answer(described(16)), answer(described(4, kernels=(kernel(), kernel("other")), **parts))]
    failure, variant = stopped(tmp_path, answers, compiler=Compiler(other=False))
    assert (failure.reason, variant) == (Reason.COMPILE, "small")


UNORDERED = (launch(0, stream=1), launch(0))
KEPT_OUTPUT = (buffer(32 * 16, kept=True),)


def test_streams_that_nothing_orders_are_unstable(tmp_path):
    failure, variant = stopped(tmp_path, honest(steps=UNORDERED))
    assert (failure.status, failure.reason, variant) == (Status.REJECTED, Reason.UNSTABLE, FULL)
    assert "stream 1" in failure.message


def test_a_first_call_is_ordered_too(tmp_path):
    failure, _ = stopped(tmp_path, honest(first=call(UNORDERED, ref(2, 4, 8))))
    assert failure.reason is Reason.UNSTABLE


def test_an_output_that_the_next_call_overwrites_is_a_wrong_result(tmp_path):
    made = described(16, steps=(launch(0, buffers=(0, 1, 3)),), more=KEPT_OUTPUT)
    made = dataclasses.replace(made, steady=dataclasses.replace(made.steady, outputs=(ref(3, 16, 8),)))
    failure, _ = stopped(tmp_path, [answer(made)])
    assert (failure.status, failure.reason) == (Status.REJECTED, Reason.WRONG_RESULT)
    assert "every call writes again" in failure.message


def without(name):
    return {key: value for key, value in answer(described(16)).items() if key != name}


def changed_plan(**parts):
    return answer(None, plan=encode(described(16)) | parts)


NONSENSE = {
    "a-list": [1, 2],
    "a-number": 7,
    "empty": {},
    "no-plan": without("plan"),
    "no-state": without("state"),
    "launches-of-words": answer(described(16), launches=["scale_kernel"]),
    "launch-without-a-grid": answer(described(16), launches=[{"kernel": "k"}]),
    "short-grid": answer(described(16), launches=[answer(None)["launches"][0] | {"grid": [1]}]),
    "infinite-count": answer(described(16), launches=[answer(None)["launches"][0] | {"count": float("inf")}]),
    "foreign-list": answer(described(16), foreign=["triton"]),
    "operations-of-words": answer(described(16), host_ops=["aten.add"]),
    "state-list": answer(described(16), state=["scale"]),
    "state-of-numbers": answer(described(16), state={"scale": 8}),
    "state-of-words": answer(described(16), state={"scale": ["eight"]}),
    "compile-error-of-words": answer(described(16), compile_error="no"),
    "compile-error-without-a-message": answer(described(16), compile_error={"resources": True}),
    "error-of-words": {"error": "no"},
    "error-without-a-type": {"error": {"message": "m"}},
    "plan-of-words": answer(None, plan="plan"),
    "plan-without-a-call": changed_plan(steady=None),
    "plan-with-an-unknown-field": changed_plan(forged=1),
    "plan-of-another-operator": answer(described(32)),
    "plan-that-reads-unknown-state": changed_plan(
        buffers=[encode(buffer(32 * 16, STATE, kept=True, name="secret")), *encode(described(16))["buffers"][1:]]
    ),
    "plan-that-calls-what-no-tracer-does": answer(
        described(16, steps=(host("set_.source_Tensor", ref(0, 16, 8), ref(1, 8)),))
    ),
    "plan-of-an-impossible-product": answer(
        described(
            16, steps=(host("mm.default", ref(0, 16, 8), ref(0, 16, 8), makes=(3,)), launch(0)), more=(buffer(4, OP),)
        )
    ),
    "plan-that-leaves-its-buffers": answer(described(16, steps=(host("neg.out", ref(0, 17, 8), out=ref(2, 16, 8)),))),
}


@pytest.mark.parametrize("given", NONSENSE.values(), ids=NONSENSE)
def test_an_answer_of_another_form_is_the_candidates_crash(tmp_path, given):
    failure, variant = stopped(tmp_path, [given])
    assert (failure.status, failure.reason, variant) == (Status.FAILED, Reason.CRASH, FULL), failure.message


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (ChildEnded(-11, "ended"), Reason.CRASH),
        (ChildTimeout("late"), Reason.TIMEOUT),
        (answer(None, compile_error={"resources": True, "message": "m"}), Reason.RESOURCES),
        (answer(None, compile_error={"resources": False, "message": "m"}), Reason.COMPILE),
        (answer(described(16), state={}), Reason.STATE_MISMATCH),
        (answer(described(16), state={"scale": [9]}), Reason.STATE_MISMATCH),
        (
            {"error": {"type": "CompileFailed", "message": "m", "origin": "", "outer": "", "frames": []}},
            Reason.RESOURCES,
        ),
    ],
    ids=["dies", "hangs", "resources", "compile", "no-state", "other-state", "cannot-be-lowered"],
)
def test_a_candidate_that_fails_on_the_way(tmp_path, given, reason):
    failure, variant = stopped(tmp_path, [given])
    assert (failure.status, failure.reason, variant) == (Status.FAILED, reason, FULL)


def test_the_record_of_what_does_not_compile_is_kept(tmp_path):
    judge = Judge(settings().judge, Place("cpu", TARGET, False, tmp_path), None, None)
    judge.child = lambda kind, found: contextlib.nullcontext(
        Child([answer(None, compile_error={"resources": False, "message": "m"})])
    )
    found = Findings(1)
    with pytest.raises(Stop):
        Planner(judge, Compiler(), DeviceLimits(), lambda: None).prepare(TASK, "", "library", found, ORDER)
    assert found.trace.launch_count == 1


RAISED = {"type": "ValueError", "message": "reads a value", "origin": "candidate.py", "outer": "", "frames": []}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param({"error": RAISED}, "reads a value", id="raises"),
        pytest.param(answer(None, untraceable="a CUDA graph"), "a CUDA graph", id="says-so"),
    ],
)
def test_what_has_no_plan_is_untraceable(tmp_path, given, words):
    with pytest.raises(Untraceable, match=words):
        prepared(tmp_path, [given])


def test_a_small_variant_without_a_plan_is_untraceable_too(tmp_path):
    with pytest.raises(Untraceable, match="branches"):
        prepared(tmp_path, [answer(described(16)), answer(None, untraceable="branches on a value")])


NO_LAUNCH = (host("neg.out", ref(0, 4, 8), out=ref(2, 4, 8)),)
TORCH = [
    launch(0),
    host("mul.Tensor", ref(0, 4, 8), ref(1, 8), makes=(3,)),
    host("tanh.out", ref(3, 4, 8), out=ref(2, 4, 8)),
]
RESULT = (buffer(32 * 4, OP),)


@pytest.mark.parametrize(
    ("small", "policy", "reason"),
    [
        pytest.param(described(4, steps=NO_LAUNCH, kernels=()), "library", Reason.NOT_LAUNCHED, id="no-launch"),
        pytest.param(described(4, steps=TORCH, more=RESULT), "library", Reason.HOST_OP, id="torch-computes"),
        pytest.param(described(4, steps=TORCH, more=RESULT), "any", None, id="whatever-is-allowed"),
        pytest.param(described(4), "none", None, id="as-at-full-size"),
    ],
)
def test_the_policy_holds_at_a_small_variant_too(tmp_path, small, policy, reason):
    answers = [answer(described(16)), answer(small, launches=[] if not small.kernels else answer(None)["launches"])]
    if reason is None:
        assert prepared(tmp_path, answers, host_ops=policy).made.variants
    else:
        failure, variant = stopped(tmp_path, answers, host_ops=policy)
        assert (failure.status, failure.reason, variant) == (Status.REJECTED, reason, "small")


def test_what_a_plan_runs_counts_not_what_its_maker_says(tmp_path):
    steps = [
        launch(0),
        host("mul.Tensor", ref(0, 16, 8), ref(1, 8), makes=(3,)),
        host("tanh.out", ref(3, 16, 8), out=ref(2, 16, 8)),
    ]
    silent = answer(described(16, steps=steps, more=(buffer(32 * 16, OP),)), host_ops=[])
    failure, variant = stopped(tmp_path, [silent])
    assert (failure.reason, variant) == (Reason.HOST_OP, FULL)


def test_launches_that_a_plan_does_not_have_do_not_count(tmp_path):
    claimed = answer(described(16, steps=(host("neg.out", ref(0, 16, 8), out=ref(2, 16, 8)),)))
    failure, _ = stopped(tmp_path, [claimed])
    assert failure.reason is Reason.NOT_LAUNCHED


def test_only_the_variants_that_are_asked_for_are_traced(tmp_path):
    got = prepared(tmp_path, [answer(described(16))], variants=(FULL,))
    assert tuple(got.made.variants) == (FULL,)
    assert got.made.trace.host_ops == ()
    assert HostOp("aten.tanh", 1, True, 0.0, 0.0) not in got.found.trace.host_ops
