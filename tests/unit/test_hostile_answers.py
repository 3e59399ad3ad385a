"""Whatever a candidate's process answers ends in a verdict on the candidate, never in a fault of the judge."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from engine.judging import answers
from engine.judging.allowance import Allowance
from engine.judging.judge import Findings, Stop
from engine.judging.own_process import OwnProcessVariant
from engine.judging.references import Expected
from engine.judging.runs import Call
from engine.records import Precision, Reason, Status
from tests.support.judge import settings

CALL = Call("nominal0", "nominal", 1, 2, "nan")
CALLED = {
    "wall_s": 0.1,
    "mutated": [],
    "rewritten": [],
    "replaced": [],
    "overwritten": 0,
    "launches": {"kernel": 1},
    "host_ops": [],
}
ROW = {
    "at": "nominal0_0.bin",
    "plain": True,
    "type": "Tensor",
    "dtype": "float32",
    "shape": [2, 3],
    "stride": [3, 1],
    "device": "cpu",
}
COLLECTED = {"outputs": {"nominal0": {"tree": "t", "tensors": [ROW]}}}
ERROR = {"type": "ValueError", "message": "no", "frames": [], "origin": "", "outer": "ValueError"}


def run_of(folder, answer, number=1):
    """A variant whose process answers `answer`, with one result of two by three to compare; files in `folder`."""
    run = object.__new__(OwnProcessVariant)
    run.judge = SimpleNamespace(
        place=SimpleNamespace(device="cpu", target="sm_90"),
        settings=settings().judge,
        references=SimpleNamespace(variants=lambda task: ("small",)),
    )
    run.task = SimpleNamespace(
        contract=SimpleNamespace(exact=False, tolerance="default", suites=None, strides="contiguous")
    )
    run.found, run.variant, run.host_ops = Findings(1), "small", "library"
    run.allowance = Allowance(60.0, lambda: 0.0)
    run.reference = SimpleNamespace(inputs=SimpleNamespace(steps=(), result=[]), device="cpu", params=())
    run.reference.init_inputs, run.reference.kept, run.reference.model = [], {}, torch.nn.Identity()
    run.precision, run.slack, run._calls, run._work = Precision.IEEE, 1.0, 0, None
    text = answer if isinstance(answer, str) else json.dumps(answer)
    child = SimpleNamespace(scratch=folder, output=lambda: "", ask=lambda message, timeout_s: json.loads(text))
    run.child = child
    return run


def expected():
    exact = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    own = SimpleNamespace(rms=1e-8, largest=1e-8)
    return Expected((exact,), (exact.float(),), (own,), "t", True)


def replaced_in(value, path, what):
    """`value` with what stands at `path` replaced; `what` absent: removed."""
    copy = json.loads(json.dumps(value))
    holder = copy
    for step in path[:-1]:
        holder = holder[step]
    if what is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = what
    return copy


HOSTILE_CALLS = {
    "no-answer": {},
    "error-is-a-number": {"error": 3},
    "error-is-null": {"error": None},
    "error-lacks-its-type": {"error": replaced_in(ERROR, ["type"], ...)},
    "error-of-lists": {"error": {name: [] for name in ERROR}},
    "frames-are-a-number": {"error": replaced_in(ERROR, ["frames"], 7)},
    "wall-is-nan": '{"wall_s": NaN, "mutated": [], "rewritten": [], "replaced": [], "overwritten": 0, "launches": {}}',
    "wall-is-infinite": replaced_in(CALLED, ["wall_s"], float("inf")),
    "wall-is-negative": replaced_in(CALLED, ["wall_s"], -1),
    "wall-is-text": replaced_in(CALLED, ["wall_s"], "0"),
    "wall-is-true": replaced_in(CALLED, ["wall_s"], True),
    "mutated-is-text": replaced_in(CALLED, ["mutated"], "0"),
    "mutated-holds-objects": replaced_in(CALLED, ["mutated"], [{}]),
    "rewritten-holds-numbers": replaced_in(CALLED, ["rewritten"], [1]),
    "replaced-is-absent": replaced_in(CALLED, ["replaced"], ...),
    "overwritten-is-negative": replaced_in(CALLED, ["overwritten"], -1),
    "launches-is-a-list": replaced_in(CALLED, ["launches"], [1]),
    "launches-are-infinite": replaced_in(CALLED, ["launches"], {"kernel": float("inf")}),
    "launches-are-negative": replaced_in(CALLED, ["launches"], {"kernel": -3}),
    "launches-are-huge": replaced_in(CALLED, ["launches"], {"kernel": 10**400}),
    "operation-is-text": replaced_in(CALLED, ["host_ops"], ["aten.mm"]),
    "operation-lacks-columns": replaced_in(CALLED, ["host_ops"], [["aten.mm", 1]]),
    "operation-is-nan": replaced_in(CALLED, ["host_ops"], [["aten.mm", 1, True, float("nan"), 1.0]]),
    "operation-is-negative": replaced_in(CALLED, ["host_ops"], [["aten.mm", 1, True, -1.0, -1.0]]),
    "operation-has-a-surrogate": replaced_in(CALLED, ["host_ops"], [["aten.\ud800", 1, True, 1.0, 1.0]]),
}


@pytest.mark.parametrize("answer", HOSTILE_CALLS.values(), ids=HOSTILE_CALLS)
def test_a_call(tmp_path, answer):
    with pytest.raises(Stop) as stopped:
        run_of(tmp_path, answer)._forward(CALL, count_ops=False)
    assert (stopped.value.failure.status, stopped.value.failure.reason) == (Status.FAILED, Reason.CRASH)


def test_an_honest_answer_goes_further(tmp_path, monkeypatch):
    from engine.judging import own_process
    from engine.judging.policy import Work

    monkeypatch.setattr(own_process, "work_of", lambda model, inputs: Work((), 0.0))
    assert run_of(tmp_path, CALLED)._forward(CALL, count_ops=False) == 0.1
    run = run_of(tmp_path, COLLECTED)
    (tmp_path / "nominal0_0.bin").write_bytes(torch.arange(6, dtype=torch.float32).numpy().tobytes())
    run._compare_all([(CALL, expected())])
    assert [check.passed for check in run.found.checks] == [True]


@pytest.mark.parametrize("state", [None, [], {"w": "x"}, {"w": [-1]}, {"w": [1.5]}, {"w": [True]}, {"w": None}])
def test_a_state(tmp_path, state):
    with pytest.raises(Stop) as stopped:
        run_of(tmp_path, {"state": state, "replaced": []})._load("")
    assert stopped.value.failure.reason is Reason.CRASH


DEEP = "t"
for _ in range(200):
    DEEP = {"list": [DEEP]}
IN_ROW = ["outputs", "nominal0", "tensors", 0]
HOSTILE_RESULTS = {
    "outputs-absent": {},
    "outputs-of-another-call": {"outputs": {"shift0": COLLECTED["outputs"]["nominal0"]}},
    "tensors-are-text": replaced_in(COLLECTED, ["outputs", "nominal0", "tensors"], "x"),
    "row-is-a-number": replaced_in(COLLECTED, IN_ROW, 3),
    "tree-is-deep": replaced_in(COLLECTED, ["outputs", "nominal0", "tree"], DEEP),
    "tree-is-a-number": replaced_in(COLLECTED, ["outputs", "nominal0", "tree"], 3),
    "tree-of-another-kind": replaced_in(COLLECTED, ["outputs", "nominal0", "tree"], {"set": []}),
    "tree-of-two-kinds": replaced_in(COLLECTED, ["outputs", "nominal0", "tree"], {"list": [], "tuple": []}),
    "plain-is-text": replaced_in(COLLECTED, [*IN_ROW, "plain"], "yes"),
    "dtype-is-a-list": replaced_in(COLLECTED, [*IN_ROW, "dtype"], []),
    "shape-is-negative": replaced_in(COLLECTED, [*IN_ROW, "shape"], [-2, 3]),
    "shape-of-fractions": replaced_in(COLLECTED, [*IN_ROW, "shape"], [2.0, 3]),
    "stride-is-short": replaced_in(COLLECTED, [*IN_ROW, "stride"], [1]),
    "stride-is-negative": replaced_in(COLLECTED, [*IN_ROW, "stride"], [-3, 1]),
    "file-absent": replaced_in(COLLECTED, [*IN_ROW, "at"], ...),
    "file-above": replaced_in(COLLECTED, [*IN_ROW, "at"], "../nominal0_0.bin"),
    "file-elsewhere": replaced_in(COLLECTED, [*IN_ROW, "at"], "/etc/passwd"),
    "file-of-another-call": replaced_in(COLLECTED, [*IN_ROW, "at"], "shift0_0.bin"),
    "file-with-nul": replaced_in(COLLECTED, [*IN_ROW, "at"], "nominal0_0.bin\0"),
    "file-is-a-list": replaced_in(COLLECTED, [*IN_ROW, "at"], ["part", 0, 0]),
    "nothing-written": COLLECTED,
}


@pytest.mark.parametrize("answer", HOSTILE_RESULTS.values(), ids=HOSTILE_RESULTS)
def test_a_result(tmp_path, answer):
    with pytest.raises(Stop) as stopped:
        run_of(tmp_path, answer)._compare_all([(CALL, expected())])
    assert stopped.value.failure.reason is Reason.CRASH


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        pytest.param("shape", [2**60, 3], Reason.SHAPE, id="huge"),
        pytest.param("stride", [0, 0], Reason.STRUCTURE, id="overlapping"),
        pytest.param("stride", [1, 1], Reason.STRUCTURE, id="overlapping-rows"),
        pytest.param("dtype", "float31", Reason.DTYPE, id="unknown-dtype"),
        pytest.param("dtype", "Tensor", Reason.DTYPE, id="no-dtype"),
        pytest.param("device", "cuda", Reason.STRUCTURE, id="another-device"),
        pytest.param("type", "\ud800", None, id="surrogate"),
        pytest.param("plain", False, Reason.STRUCTURE, id="not-plain"),
    ],
)
def test_a_described_tensor(tmp_path, field, value, reason):
    (tmp_path / "nominal0_0.bin").write_bytes(torch.arange(6, dtype=torch.float32).numpy().tobytes())
    run = run_of(tmp_path, replaced_in(COLLECTED, [*IN_ROW, field], value))
    if reason is None:
        run._compare_all([(CALL, expected())])
        return
    with pytest.raises(Stop) as stopped:
        run._compare_all([(CALL, expected())])
    assert stopped.value.failure.reason is reason


@pytest.mark.parametrize("kind", ["link", "folder", "short"])
def test_a_file(tmp_path, kind):
    path = tmp_path / "nominal0_0.bin"
    if kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"x")
    with pytest.raises(Stop) as stopped:
        run_of(tmp_path, COLLECTED)._compare_all([(CALL, expected())])
    assert stopped.value.failure.reason is Reason.CRASH


def test_text_is_made_fit_for_files():
    raised = answers.raised_in({"error": {**ERROR, "message": "a\ud800b" + "x" * 20000}})
    assert raised is not None
    assert raised.message.startswith("a\\ud800b")
    assert len(raised.message.encode()) < 10000


def test_what_is_handed_over_follows_no_link(tmp_path):
    (folder := tmp_path / "scratch").mkdir()
    (other := tmp_path / "other").write_bytes(b"ours")
    (folder / "param_0.bin").symlink_to(other)
    run_of(folder, {})._hand_over("param_0.bin", b"values")
    assert other.read_bytes() == b"ours"
    assert (folder / "param_0.bin").read_bytes() == b"values"


def test_a_folder_in_the_place_of_a_file_is_the_candidates_end(tmp_path):
    (tmp_path / "param_0.bin").mkdir()
    with pytest.raises(Stop) as stopped:
        run_of(tmp_path, {})._hand_over("param_0.bin", b"values")
    assert stopped.value.failure.reason is Reason.CRASH


def test_an_answer_that_cannot_be_read_is_the_candidates_end():
    from engine.judging.judge import ask

    def recursion(message, timeout_s):
        return json.loads("[" * 100_000)

    with pytest.raises(Stop) as stopped:
        ask(SimpleNamespace(ask=recursion), {}, 1.0, "when asked", "small")
    assert stopped.value.failure.reason is Reason.CRASH


@pytest.mark.parametrize("described", [2**63, 2**60, 1, 0])
def test_an_output_of_another_size_than_described_is_never_allocated(tmp_path, described):
    (tmp_path / "nominal0_0.bin").write_bytes(bytes(24))
    made = object.__new__(OwnProcessVariant)
    made.child, made.variant = SimpleNamespace(scratch=tmp_path), "full"
    made.judge = SimpleNamespace(place=SimpleNamespace(device="cpu"))
    with pytest.raises(Stop, match="24 bytes"):
        made._raw({"at": "nominal0_0.bin"}, described)
    assert made._raw({"at": "nominal0_0.bin"}, 24).numel() == 24
