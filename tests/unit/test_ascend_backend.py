"""The Ascend back-end without an NPU: what it refuses for, its processes with the CPU in the NPU's place, its clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from engine.backends import npu_child, open_backend
from engine.backends.ascend import AscendBackend, describe_device
from engine.backends.ascend_probe import Environment, devices, examine, find_python, refusal
from engine.backends.npu_clock import call_times
from engine.doctor.ascend import ascend_line, ascend_lines
from engine.errors import ConfigError, MissingError
from engine.records import Contract, Facts, Judged, Operator, Reason, ScoreKind, Status, Task
from profilers.msprof import parse_tasks
from tests.support.compose import compose
from tests.support.npu import DATA, stand_in

WHOLE = Environment((3, 11), "2.7.1", "2.7.1", "3.2.0")

REFERENCE = """
import torch
N = 4096
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
    def forward(self, x):
        return torch.relu(x) * 2.0
def get_inputs():
    return [torch.randn(N)]
def get_init_inputs():
    return []
"""

KERNEL = """
import torch
import torch.nn as nn
import triton
import triton.language as tl
# fake: us=40

@triton.jit
def own_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    for block in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        offsets = block * BLOCK + tl.arange(0, BLOCK)
        mask = offsets < n
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
        tl.store(y_ptr + offsets, tl.maximum(x, 0.0) * 2.0, mask=mask)


class ModelNew(nn.Module):
    def forward(self, x):
        y = torch.empty_like(x)
        own_kernel[(4,)](x, y, x.numel(), BLOCK=256)
        return y
"""

FACTS = Facts(2, 0, 0, 0, 0, 0, 2, 0, 0, None, None, 8192.0, 32768.0, 0.25, "float32", "full")


def operator() -> Operator:
    contract = Contract(variants={"small": {"N": 100}, "odd": {"N": 257}})
    return Operator(Task("relu", "relu", REFERENCE, contract, "declared", "0" * 16), FACTS)


@pytest.fixture(scope="module")
def npu(tmp_path_factory):
    """A back-end on a stand-in, with msprof on PATH."""
    folder = tmp_path_factory.mktemp("npu")
    made = stand_in(folder)
    settings, _ = compose(
        "backend=ascend",
        "judge.seeds=1",
        "judge.suites=[nominal]",
        f"backends.ascend.ascend.python={made.python}",
        "backends.ascend.ascend.device=cpu",
        "backends.ascend.ascend.warm_up=1",
        "backends.ascend.ascend.active=3",
        f"backends.ascend.profilers.msprof_op.path={made.tools}/msprof",
        f"backends.ascend.profilers.msprof.path={made.tools}/msprof",
    )
    with open_backend("ascend", settings, folder, folder / "scratch") as backend:
        (folder / "scratch").mkdir()
        yield backend


def test_an_interpreter_says_what_it_has(tmp_path):
    found = examine(str(stand_in(tmp_path).python))
    assert (found.torch_npu, found.triton_ascend, found.lacks) == ("unknown", "3.2.0", ())
    assert found.python == sys.version_info[:2]


def test_an_ordinary_environment_is_refused_in_one_line_that_names_what_is_missing(tmp_path):
    python = str(stand_in(tmp_path, torch_npu=False).python)
    reason = refusal(python, examine(python), "no-such-msprof")
    assert reason is not None
    assert "\n" not in reason
    assert reason.startswith(f"backend=ascend needs torch_npu, triton-ascend in {python}")
    assert "no-such-msprof is not on PATH either" in reason


@pytest.mark.parametrize(
    ("found", "lacks"),
    [
        (WHOLE, ()),
        (Environment((3, 12), "2.9", "2.9", "3.5.0"), ()),
        (Environment((3, 10), "2.7.1", "2.7.1", "3.2.0"), ("Python 3.11",)),
        (Environment((3, 11), "2.7.1", "2.7.1", None), ("triton-ascend",)),
    ],
    ids=["whole", "newer", "python too old", "no triton-ascend"],
)
def test_what_an_environment_lacks(found, lacks):
    assert found.lacks == lacks
    assert (refusal("python", found, "msprof") is None) == (lacks == ())


@pytest.mark.parametrize("name", ["no-such-python", "false"], ids=["absent", "says nothing"])
def test_an_interpreter_that_does_not_answer_is_missing(name):
    with pytest.raises(MissingError, match="backend=ascend") as caught:
        examine(find_python(name))
    assert "engine.doctor" in caught.value.hint


def test_the_backend_refuses_to_open_with_exit_code_2(tmp_path):
    python = stand_in(tmp_path, torch_npu=False).python
    settings, _ = compose("backend=ascend", f"backends.ascend.ascend.python={python}")
    with pytest.raises(MissingError, match="torch_npu") as caught:
        AscendBackend(settings, tmp_path, tmp_path)
    assert caught.value.exit_code == 2


def test_a_command_line_is_refused_before_anything_is_spent(tmp_path):
    words = ["-m", "engine", "backend=ascend", "llm=replay", f"paths.results={tmp_path}/results"]
    python = stand_in(tmp_path, torch_npu=False).python
    environment = {**os.environ, "ASCEND_PYTHON": str(python)}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2
    assert "backend=ascend needs torch_npu, triton-ascend" in done.stderr
    assert "engine.doctor" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("backends.ascend.ascend.active=0", "backends.ascend.ascend.active"),
        ("backends.ascend.ascend.vector_cores=many", "backends.ascend.ascend.vector_cores"),
        ("backends.ascend.ascend=null", "backends.ascend.ascend"),
        ("backends.ascend.kind=npu", "backends.ascend.kind"),
        ("backends.ascend.hardware.dram_gbps=0", "backends.ascend.hardware.dram_gbps"),
        ("backends.ascend.dialect=triton_ascned", "backends.ascend.dialect"),
    ],
)
def test_wrong_values_are_faults_with_their_path(override, path):
    with pytest.raises(ConfigError) as caught:
        compose("backend=ascend", override)
    assert path in {fault.path for fault in caught.value.faults}


def test_device_files_of_npus_only(tmp_path):
    for name in ("davinci0", "davinci1", "davinci_manager", "null"):
        (tmp_path / name).touch()
    assert devices(tmp_path) == (str(tmp_path / "davinci0"), str(tmp_path / "davinci1"))


def test_the_doctor_explains_what_the_backend_refuses_for(monkeypatch, tmp_path):
    absent = ascend_line("python3", Environment((3, 11), None, None, None), (), None, cann=False, wanted=True)
    assert absent.state == "warn"
    for word in ("no torch_npu", "no triton-ascend", "/dev/davinci*", "ASCEND_HOME_PATH", "msprof is not on PATH"):
        assert word in absent.found
    assert "ASCEND_PYTHON" in absent.remedy
    ready = ascend_line("python3", WHOLE, ("/dev/davinci0",), "/x/msprof", cann=True, wanted=True)
    assert (ready.state, "never run" in ready.found) == ("ok", True)
    quiet = ascend_line("python3", None, (), None, cann=False, wanted=False, problem="nothing there")
    assert (quiet.state, "would refuse here: nothing there" in quiet.found) == ("ok", True)
    monkeypatch.setenv("ASCEND_PYTHON", str(tmp_path / "none"))
    (line,) = ascend_lines()
    assert line.state == "warn"
    assert "no interpreter" in line.found


def test_versions_and_the_protocol_are_part_of_the_devices_identity():
    settings, _ = compose("backend=ascend")
    slower, _ = compose("backend=ascend", "backends.ascend.ascend.active=31")
    elsewhere, _ = compose("backend=ascend", "backends.ascend.ascend.python=/other/python")

    def facts(of):
        backend = of.backends["ascend"]
        return describe_device("ascend", backend, backend.ascend, WHOLE).facts

    assert facts(settings)["torch_npu"] == "2.7.1"
    assert facts(settings)["protocol"] != facts(slower)["protocol"]
    assert facts(settings) == facts(elsewhere)


def test_the_hardware_is_said_to_be_from_documents():
    settings, _ = compose("backend=ascend")
    assert "never measured by us" in settings.backends["ascend"].hardware_source


def test_a_candidate_is_judged_in_the_npus_process_and_unverified(npu):
    verdict = npu.judge(operator(), KERNEL)
    assert (verdict.status, verdict.mode.value) == (Status.CORRECT, "fallback")
    assert {check.variant for check in verdict.checks} == {"small", "odd"}
    assert verdict.trace is not None
    assert verdict.trace.launch_count == 1
    assert any("reference is computed on the CPU" in remark for remark in verdict.remarks)


def test_a_wrong_candidate_is_rejected(npu):
    verdict = npu.judge(operator(), KERNEL.replace("* 2.0", "* 3.0"))
    assert (verdict.status, verdict.reason) == (Status.REJECTED, Reason.WRONG_RESULT)


def test_a_candidate_that_ends_its_process_is_a_failure_of_its_own(npu):
    dying = KERNEL.replace("y = torch.empty_like(x)", "y = torch.empty_like(x, _x=1)")
    assert npu.judge(operator(), dying).status is Status.FAILED


def test_times_are_the_profilers_and_a_candidates_are_unverified(npu):
    judged = Judged(KERNEL, npu.judge(operator(), KERNEL).trace)
    slower = Judged(KERNEL.replace("us=40", "us=50"), judged.trace)
    made = npu.measure(operator(), judged, slower)
    kinds = {timing.who: timing.score_kind for timing in made.timings}
    assert kinds == {
        "candidate": ScoreKind.UNVERIFIED,
        "incumbent": ScoreKind.UNVERIFIED,
        "eager": ScoreKind.MEASURED,
    }
    medians = {timing.who: timing.median_us for timing in made.timings}
    # Warm-up calls, whose durations the stand-in counts up from, are not among those timed.
    assert medians == {"candidate": 40.02, "incumbent": 50.02, "eager": 100.02}
    ratio = made.ratio("eager")
    assert ratio is not None
    assert ratio.value == pytest.approx(100.02 / 40.02)
    assert made.floor_us is not None
    assert "never measured by us" in made.settings["floor"]


def test_a_candidate_that_cannot_be_timed_leaves_the_baseline_and_a_note(npu):
    broken = Judged(KERNEL.replace("class ModelNew", "class Other"), None)
    made = npu.measure(operator(), broken, None)
    assert [timing.who for timing in made.timings] == ["eager"]
    assert made.note.startswith("candidate: ")
    assert made.ratios == ()


def test_metrics_say_which_tool_they_come_from(npu):
    trace = npu.judge(operator(), KERNEL).trace
    wanted = ["dram_pct", "l2_hit_pct", "launches", "sector_bytes", "headroom"]
    values = {value.metric: value for value in npu.profile(operator(), Judged(KERNEL, trace, 41.0), wanted)}
    assert {name: value.source for name, value in values.items()} == {
        "dram_pct": "msprof_op",
        "l2_hit_pct": "msprof_op",
        "launches": "trace",
        "sector_bytes": "",
        "headroom": "algebra",
    }
    assert values["dram_pct"].confidence < 1
    assert "96.7 % of its rated clock" in values["dram_pct"].note
    assert "rated clock" not in values["launches"].note
    assert values["sector_bytes"].value is None


def test_the_reference_has_no_kernel_of_its_own_so_msprof_counts_it(npu):
    (value,) = npu.profile(operator(), None, ["dram_pct"])
    assert (value.source, value.confidence) == ("msprof", 0.3)
    assert "msprof_op: msprof op counts named kernels only" in value.note


def test_confirmation_draws_other_shapes(npu):
    made = npu.confirm(operator(), Judged(KERNEL, None))
    assert made.confirmed
    assert made.variants
    assert set(made.variants) & {check.variant for check in made.verdict.checks}


def test_a_sandbox_that_is_demanded_is_refused(tmp_path):
    made = stand_in(tmp_path)
    settings, _ = compose(
        "backend=ascend",
        "judge.sandbox=required",
        f"backends.ascend.ascend.python={made.python}",
        "backends.ascend.ascend.device=cpu",
    )
    with open_backend("ascend", settings, tmp_path, tmp_path) as backend, pytest.raises(MissingError, match="confined"):
        backend.judge(operator(), KERNEL)


def test_calls_are_divided_into_equal_parts_without_the_warm_up():
    tasks = parse_tasks((DATA / "kernel_details.csv").read_text())
    durations = [task.duration_us or 0.0 for task in tasks]
    pairs = [durations[i] + durations[i + 1] for i in range(2, 10, 2)]
    assert call_times(tasks, 5, 1) == pytest.approx(pairs)
    with pytest.raises(ValueError, match="multiple of 3 device tasks for 3 equal calls, found 10"):
        call_times(tasks, 3, 1)
    with pytest.raises(ValueError, match="found 0"):
        call_times((), 3, 1)


def test_cann_s_own_packages_are_found_where_cann_is_set_up(monkeypatch, tmp_path):
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", "/cann")
    monkeypatch.setenv("ASCEND_OPP_PATH", "/cann/opp")
    monkeypatch.setenv("SOME_API_KEY", "secret")
    found = npu_child.environment(tmp_path)
    assert found["PYTHONPATH"].split(os.pathsep)[1:] == [
        "/cann/python/site-packages",
        "/cann/opp/built-in/op_impl/ai_core/tbe",
    ]
    assert found["HOME"] == str(tmp_path)
    assert "SOME_API_KEY" not in found


def test_child_run_is_redirected_to_another_device(tmp_path):
    """`meta` stands for a device that is not the CPU: what is drawn arrives there, what waits calls its functions."""
    code = """
import json, sys, types, torch
torch.meta = types.SimpleNamespace(**{name: (lambda *a, name=name: f"meta {name}") for name in
    ("set_device", "synchronize", "memory_reserved", "empty_cache")})
from engine.backends import npu_worker
from engine.judging import child_run
from engine.judging.inputs import record
npu_worker.redirect("meta")
program = record(lambda: [torch.randn(3)])
drawn = child_run.replay(program, "ignored", 1, "nominal")
print(json.dumps([drawn[0].device.type, torch.cuda.synchronize(), child_run._same(torch.ones(2), torch.ones(2))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == ["meta", "meta synchronize", True]
