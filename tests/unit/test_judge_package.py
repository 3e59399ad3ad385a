"""`python -m engine.judge` and its Python API with the device replaced: what is asked of it, said, and ended with."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from engine.codec import decode, encode
from engine.errors import ConfigError, MissingError, WorkerError
from engine.judge import Judgement, configuration, inputs, judge, judge_many, session
from engine.judge.__main__ import main
from engine.judge.judgement import KernelShare, kernel_share
from engine.records import (
    CheckResult,
    Device,
    Facts,
    HostOp,
    Launch,
    Mode,
    OpCost,
    Reason,
    Status,
    Trace,
    Verdict,
)
from tests.support.compose import compose
from tests.support.fake_backend import FakeBackend

ROOT = Path(__file__).resolve().parents[2]
MATMUL = OpCost("matmul", "matmul", 1, 100.0, 40.0)
RELU = OpCost("relu", "pointwise", 2, 5.0, 20.0)
FACTS = Facts(3, 0, 1, 0, 0, 0, 2, 0, 0, None, None, 110.0, 60.0, 1.8, "float32", "full", (MATMUL, RELU))
LAUNCH = Launch("kernel", (4, 1, 1), 3, 1e6, 4, 2, has_dot=True)
REFERENCE = """import torch
import torch.nn as nn

ROWS = 64


class Model(nn.Module):
    def forward(self, x):
        return x


def get_inputs():
    return [torch.rand(ROWS, 8)]


def get_init_inputs():
    return []
"""
CONTRACT = "precision: tf32\nhost_ops: none\nvariants:\n  small: {ROWS: 4}\n  odd: {ROWS: 3}\n"


class StandIn(FakeBackend):
    """Answers by `# fake:` comments of the source, and remembers what it was opened with and asked."""

    def __init__(self):
        super().__init__()
        versions = {"judge": "7", "torch": "9.9", "triton": "8.8"}
        self.device = Device("fake", "fake device", versions, {})
        self.opened, self.closed, self.operators, self.measured = [], 0, [], []

    def open(self, name, settings, root, scratch):
        self.opened.append(settings)
        self.scratch = scratch
        return self

    def __exit__(self, *_):
        self.closed += 1

    def judge(self, operator, source):
        self.operators.append(operator)
        if "breaks the judge" in source:
            raise WorkerError("the judge died", hint="its log: somewhere")
        verdict = replace(super().judge(operator, source), seed=5, sandbox=("rlimits",), remarks=("uses try/except",))
        if "undecided" in source:
            return replace(verdict, status=Status.UNDECIDED, reason=Reason.INTERPRETER_LIMIT, message="bf16")
        if "infinite" in source:
            check = CheckResult("small", "nominal", math.inf, math.inf, False)
            return replace(verdict, status=Status.REJECTED, checks=(check,), error_ratio=math.inf)
        return verdict

    def measure(self, operator, candidate, incumbent):
        self.measured.append(candidate.source)
        if "breaks the clock" in candidate.source:
            raise WorkerError("nothing could be timed")
        return super().measure(operator, candidate, incumbent)


@pytest.fixture
def device(monkeypatch, tmp_path):
    made = StandIn()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(session, "open_backend", made.open)
    monkeypatch.setattr(inputs, "describe", lambda tasks, scratch: tuple(FACTS for _ in tasks))
    monkeypatch.setattr(inputs, "derive_variants", lambda sources, scratch: ({"small": {"ROWS": 9}},))
    return made


@pytest.fixture
def reference(tmp_path):
    path = tmp_path / "operator.py"
    path.write_text(REFERENCE)
    path.with_suffix(".yaml").write_text(CONTRACT)
    return path


@pytest.fixture
def write(tmp_path):
    """Writes candidate files into one folder; the folder."""

    def named(**sources):
        folder = tmp_path / "candidates"
        folder.mkdir(exist_ok=True)
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)
        return folder

    return named


GOOD, WRONG = "# fake: us=50", "# fake: reason=wrong_result"


@pytest.mark.parametrize(
    ("sources", "code"),
    [
        ({"a": GOOD}, 0),
        ({"a": GOOD, "b": GOOD}, 0),
        ({"a": WRONG}, 3),
        ({"a": "# undecided"}, 3),
        ({"a": GOOD, "b": WRONG}, 3),
        ({"a": "# breaks the judge", "b": WRONG, "c": GOOD}, 1),
        ({"a": "# breaks the clock"}, 0),
    ],
)
def test_exit_codes_and_one_json_line_each(capsys, device, reference, write, sources, code):
    assert main([str(reference), str(write(**sources)), "--json"]) == code
    captured = capsys.readouterr()
    trees = [json.loads(line, parse_constant=pytest.fail) for line in captured.out.splitlines()]
    assert [Path(tree["candidate"]).stem for tree in trees] == sorted(sources)
    assert all(list(tree) == [field.name for field in fields(Judgement)] for tree in trees)
    assert all(encode(decode(Judgement, tree)) == tree for tree in trees)
    assert captured.err == ""


def test_a_judgement_says_all_that_is_known(device, reference, write):
    made = judge(reference, write(a=f"{GOOD} launches=3") / "a.py")
    assert (made.status, made.reason, made.mode, made.correct) == (Status.CORRECT, None, Mode.PLAN, True)
    assert (made.precision_class, made.error_ratio, made.seed) == ("ieee", 1.0, 5)
    assert (made.timing.who, made.timing.median_us, made.timing.score_kind) == ("candidate", 50.0, "measured")
    assert [timing.who for timing in made.baselines] == ["eager"]
    assert [(ratio.over, ratio.value, ratio.lo, ratio.hi) for ratio in made.speedups] == [("eager", 2.0, 1.98, 2.02)]
    assert (made.launches, made.launched_bytes, made.host_ops, made.floor_us) == (3, 3e6, (), 20.0)
    assert made.kernel_share == KernelShare(1.0, 1.0)
    assert (made.sandbox, made.remarks) == (("rlimits",), ("uses try/except",))
    assert (made.versions.judge, made.versions.torch, made.versions.triton) == ("7", "9.9", "8.8")
    assert (made.reference, made.backend, made.device, made.error) == ("operator", "fake", "fake device", None)


@pytest.mark.parametrize(
    ("marks", "code", "status", "reason"),
    [
        (GOOD, 0, "correct", None),
        (f"{GOOD} confirm=unstable", 3, "rejected", "unstable"),
        (f"{GOOD} confirm=unsupported", 3, "undecided", "unsupported"),
        (WRONG, 3, "rejected", "wrong_result"),
    ],
)
def test_a_last_look_decides(capsys, device, reference, write, marks, code, status, reason):
    arguments = [str(reference), str(write(a=f"{marks} again=50,40")), "--confirm"]
    assert main([*arguments, "--json"]) == code
    tree = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (tree["status"], tree["reason"]) == (status, reason)
    assert (tree["confirmation"] is None) == (marks == WRONG), "only what is correct is looked at again"
    main(arguments)
    shown = capsys.readouterr().out
    assert (f"  confirm   {status} at N=7" in shown) == (marks != WRONG)
    assert ("at N=7; 2.00x [1.98, 2.02], 2.50x [" in shown) == (marks == GOOD)


def test_without_being_asked_nothing_is_confirmed(device, reference, write):
    made = judge(reference, write(a=f"{GOOD} confirm=unstable") / "a.py")
    assert (made.correct, made.confirmation) == (True, None)


def test_a_judge_that_dies_while_it_confirms_is_the_engines_failure(monkeypatch, device, reference, write):
    def dies(*_):
        raise WorkerError("gone")

    monkeypatch.setattr(device, "confirm", dies)
    made = judge(reference, write(a=GOOD) / "a.py", confirm=True)
    assert (made.status, made.error) == (Status.UNDECIDED, "gone")


def test_one_back_end_serves_all_and_leaves_nothing(device, reference, write):
    folder = write(a=GOOD, b=WRONG, c=GOOD)
    made = judge_many(reference, [folder, folder / "a.py"])
    assert (device.opened, device.closed) == ([], 0)
    assert next(made).correct
    assert device.scratch.is_dir()
    assert [one.status.value for one in made] == ["rejected", "correct"]
    assert (len(device.opened), device.closed) == (1, 1)
    assert not device.scratch.exists()


def test_only_correct_candidates_are_timed(device, reference, write):
    folder = write(a=GOOD, b=WRONG)
    rejected = list(judge_many(reference, [folder]))[1]
    assert device.measured == [GOOD]
    assert (rejected.timing, rejected.speedups, rejected.baselines) == (None, (), ())
    untimed = judge(reference, folder / "a.py", timing=False)
    assert device.measured == [GOOD]
    assert (untimed.correct, untimed.timing) == (True, None)


def test_a_lost_clock_is_a_note_and_a_lost_judge_an_error(device, reference, write):
    slow, lost, after = judge_many(reference, [write(a="# breaks the clock", b="# breaks the judge", c=GOOD)])
    assert (slow.status, slow.timing, slow.timing_note) == (Status.CORRECT, None, "nothing could be timed")
    assert (lost.status, lost.reason, lost.mode) == (Status.UNDECIDED, None, None)
    assert lost.error == "the judge died; its log: somewhere"
    assert after.correct
    assert device.scratch.is_dir(), "the error names a log there"


def test_what_is_asked_beats_the_contract(device, reference, write, tmp_path):
    candidate = write(a=GOOD) / "a.py"
    own = judge(reference, candidate)
    assert (own.policy.precision, own.policy.host_ops, own.policy.variants) == ("tf32", "none", ("small", "odd"))
    asked = judge(reference, candidate, precision="ieee", host_ops="any", variants=1, seed=11)
    assert (asked.policy.precision, asked.policy.host_ops, asked.policy.variants) == ("ieee", "any", ("small",))
    assert "judged on 1 of 2 shape variants, as asked" in asked.remarks
    assert [settings.judge.seed for settings in device.opened] == [None, 11]
    first, second = (operator.task for operator in device.operators)
    assert (second.contract.precision, second.contract.host_ops) == ("ieee", "any")
    assert first.task_hash != second.task_hash
    other = tmp_path / "other.yaml"
    other.write_text("host_ops: library\n")
    replaced = judge(reference, candidate, contract=other)
    assert (replaced.policy.precision, replaced.policy.variants, replaced.policy.contract) == ("ieee", (), "declared")


def test_without_a_contract_variants_are_derived(device, reference, write):
    reference.with_suffix(".yaml").unlink()
    made = judge(reference, write(a=GOOD) / "a.py")
    assert (made.policy.contract, made.policy.variants) == ("derived", ("small",))
    assert device.operators[0].task.contract.variants == {"small": {"ROWS": 9}}


def test_folders_are_read_in_natural_order_without_hidden_files_and_the_reference(device, write):
    folder = write(v10=GOOD, v9=GOOD, __init__=GOOD, operator=REFERENCE)
    (folder / ".old").mkdir()
    (folder / ".old" / "v1.py").write_text(GOOD)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "v1.py").write_text(GOOD)
    made = judge_many(folder / "operator.py", [folder])
    assert [Path(one.candidate).relative_to(folder).as_posix() for one in made] == ["deeper/v1.py", "v9.py", "v10.py"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["softmx", "GOOD"], "did you mean 'softmax'?"),
        (["ROOT", "GOOD"], "is a folder, expected one reference"),
        (["softmax", "nowhere.py", "BINARY"], "2 faults"),
        (["softmax", "nowhere.py"], "no such file (nowhere.py)"),
        (["softmax", "BINARY"], "cannot be read as UTF-8"),
        (["softmax", "EMPTY"], "expected Python files in this folder, found none"),
        (["softmax", ""], "got an empty text"),
        (["GOOD", "GOOD"], "it comes before the candidates"),
        (["softmax", "GOOD", "--contract", "nowhere.yaml"], "nowhere.yaml"),
        (["softmax", "GOOD", "--contract", "MISSPELT"], "did you mean 'host_ops'?"),
    ],
)
def test_wrong_use_ends_with_2_before_a_device_is_opened(capsys, device, write, tmp_path, arguments, words):
    made = {"ROOT": ROOT, "GOOD": write(a=GOOD) / "a.py", "EMPTY": tmp_path / "empty"}
    made |= {"BINARY": tmp_path / "binary.py", "MISSPELT": tmp_path / "misspelt.yaml"}
    made["EMPTY"].mkdir()
    made["BINARY"].write_bytes(b"\xff\xfe")
    made["MISSPELT"].write_text("host_op: any\n")
    assert main([str(made[word]) if word in made else word for word in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert device.opened == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["softmax"], "required: CANDIDATE"),
        (["softmax", "x.py", "--jsno"], "unknown option --jsno, did you mean '--json'?"),
        (["softmax", "x.py", "--backend", "gpu"], "invalid choice: 'gpu'"),
        (["softmax", "x.py", "--precision", "fp8"], "invalid choice: 'fp8'"),
        (["softmax", "x.py", "--variants", "0"], "expected a whole number >= 1, got '0'"),
    ],
)
def test_wrong_options_end_with_2(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"host_ops": "libary"}, "did you mean 'library'?"),
        ({"precision": "fp8", "variants": 0}, "2 faults"),
        ({"backend": "gpu"}, "no back-end 'gpu'"),
    ],
)
def test_the_api_refuses_unknown_values(device, reference, write, asked, words):
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        judge(reference, write(a=GOOD) / "a.py", **asked)


def test_a_single_path_is_no_list_of_letters(device, reference, write):
    folder = write(a=GOOD)
    for given in (folder, str(folder / "a.py")):
        assert [Path(one.candidate) for one in judge_many(reference, given)] == [folder / "a.py"]


def test_the_api_refuses_no_candidate_and_a_folder_for_one(device, reference, write):
    with pytest.raises(ConfigError, match="expected at least one"):
        judge_many(reference, [])
    with pytest.raises(ConfigError, match="judge_many takes folders"):
        judge(reference, write(a=GOOD))


def test_a_reference_that_does_not_import_is_refused(monkeypatch, device, reference, write):
    monkeypatch.setattr(inputs, "describe", lambda tasks, scratch: (replace(FACTS, traced="none", costs=()),))
    reference.write_text("import nothing_of_this_name\n" + REFERENCE)
    with pytest.raises(ConfigError, match="imports: ModuleNotFoundError: No module named 'nothing_of_this_name'"):
        judge(reference, write(a=GOOD) / "a.py")
    assert device.opened == []


def test_a_reference_that_ends_its_process_is_refused(monkeypatch, device, reference, write):
    monkeypatch.setattr(inputs, "describe", lambda tasks, scratch: (replace(FACTS, traced="none", costs=()),))
    reference.write_text("import sys\nsys.exit(0)\n" + REFERENCE)
    with pytest.raises(ConfigError, match="it ends its own process, with status 0"):
        judge(reference, write(a=GOOD) / "a.py")


def test_a_reference_that_fails_on_its_own_inputs_is_refused_by_name(monkeypatch, device, reference, write):
    monkeypatch.setattr(inputs, "describe", lambda tasks, scratch: (replace(FACTS, traced="none", costs=()),))
    reference.write_text(REFERENCE.replace("return ", "return nothing_of_this_name + ", 1))
    with pytest.raises(ConfigError, match="runs on its own inputs: NameError") as caught:
        judge(reference, write(a=GOOD) / "a.py")
    assert str(reference) in str(caught.value)
    assert device.opened == []


def test_a_reference_that_imports_but_cannot_be_traced_is_judged(monkeypatch, device, reference, write):
    monkeypatch.setattr(inputs, "describe", lambda tasks, scratch: (replace(FACTS, traced="none", costs=()),))
    made = judge(reference, write(a=GOOD) / "a.py")
    assert (made.correct, made.kernel_share) == (True, None)


def trace(*host: HostOp, launches: tuple[Launch, ...] = (LAUNCH,)) -> Trace:
    return Trace(launches, host)


@pytest.mark.parametrize(
    ("recorded", "facts", "share"),
    [
        (trace(), FACTS, KernelShare(1.0, 1.0)),
        (trace(HostOp("aten.mm", 1, True, 100.0, 40.0)), FACTS, KernelShare(1 - 100 / 110, 0.5)),
        (trace(HostOp("aten.empty", 2, False, 0.0, 0.0)), FACTS, KernelShare(1.0, 1.0)),
        (trace(HostOp("aten.mm", 9, True, 900.0, 900.0)), FACTS, KernelShare(0.0, 0.0)),
        (trace(launches=()), FACTS, KernelShare(0.0, 0.0)),
        (trace(), replace(FACTS, costs=(RELU,)), KernelShare(None, 1.0)),
        (trace(), replace(FACTS, traced="small"), None),
        (trace(), replace(FACTS, costs=()), None),
        (None, FACTS, None),
    ],
)
def test_share_of_the_work(recorded, facts, share):
    assert kernel_share(recorded, facts) == share


def test_json_has_no_infinity(capsys, device, reference, write):
    assert main([str(reference), str(write(a="# infinite")), "--json"]) == 3
    tree = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (tree["error_ratio"], tree["worst"], tree["checks"][0]["error_ratio"]) == (None, None, None)


def test_lines_for_people(capsys, device, reference, write):
    folder = write(a=GOOD, b=WRONG)
    assert main([str(reference), str(folder)]) == 3
    out = capsys.readouterr().out
    assert f"{folder / 'a.py'}: correct (plan)" in out
    assert "50 us [49.5 us, 50.5 us] measured; 2.00x [1.98, 2.02] over eager" in out
    assert "1 launch, 1 MB; kernels keep 100 % of the FLOPs and 100 % of the bytes" in out
    assert f"{folder / 'b.py'}: rejected, wrong_result (plan)\n  why       the fake judge says wrong_result" in out
    assert "1 of 2 correct" in out
    assert (
        "operator on fake (fake device): precision tf32, host_ops none, shape variants small, odd (declared)\n" in out
    )
    assert "judge 7, torch 9.9, triton 8.8\n" in out


def test_a_long_message_keeps_its_end(capsys, monkeypatch, device, reference, write):
    long = Verdict(Status.REJECTED, Reason.PRECISION, Mode.FALLBACK, "first " + "x " * 500 + "last", seed=1)
    monkeypatch.setattr(device, "judge", lambda operator, source: long)
    assert main([str(reference), str(write(a=GOOD))]) == 3
    why = next(line for line in capsys.readouterr().out.splitlines() if "why" in line)
    assert len(why) < 400
    assert "first" in why
    assert why.endswith("last")


def test_what_a_candidate_says_begins_no_line(capsys, monkeypatch, device, reference, write):
    forged = "no\n/x/b.py: correct (plan)\r\x1b[2A1 of 1 correct"
    said = Verdict(Status.REJECTED, Reason.EXCEPTION, Mode.PLAN, forged, seed=1, remarks=(forged,))
    monkeypatch.setattr(device, "judge", lambda operator, source: said)
    assert main([str(reference), str(write(a=GOOD))]) == 3
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert not [line for line in out.splitlines() if line.startswith(("/x/b.py", "1 of 1"))]
    assert "  remark    no /x/b.py: correct (plan)  [2A1 of 1 correct" in out


def test_a_name_that_is_no_utf_8_is_printed(capfd, device, reference, tmp_path):
    odd = tmp_path / os.fsdecode(b"odd\xff.py")
    odd.write_text(GOOD)
    sys.stdout.reconfigure(errors="strict")
    assert main([str(reference), str(odd)]) == 0
    assert main([str(reference), str(odd), "--json"]) == 0


def test_a_mark_at_the_beginning_of_a_file_is_no_code(device, reference, tmp_path):
    marked = tmp_path / "marked.py"
    marked.write_text(GOOD, encoding="utf-8-sig")
    assert inputs.read_candidates([marked], reference)[0].source == GOOD


def test_one_candidate_gets_no_table(capsys, device, reference, write):
    assert main([str(reference), str(write(a=GOOD))]) == 0
    assert "vs fastest" not in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_settings_are_those_that_hydra_composes(backend):
    mine, composed = configuration.load_settings(backend, None), compose(f"backend={backend}", "category=attention")[0]
    assert (mine.backend, mine.backends) == (composed.backend, composed.backends)
    assert (mine.judge, mine.metrics, mine.paths) == (composed.judge, composed.metrics, composed.paths)


@pytest.fixture
def conf(monkeypatch, tmp_path):
    """A copy of conf/ that the judge reads; the folder."""
    copied = tmp_path / "conf"
    for file in (ROOT / "conf").rglob("*.yaml"):
        target = copied / file.relative_to(ROOT / "conf")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(configuration, "conf_dir", lambda: copied)
    return copied


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("judge/default.yaml", "precision: ieee", "precision: iee", "judge.precision: expected one of ieee"),
        ("judge/default.yaml", "precision: ieee", "precison: ieee", "judge.precison: unknown key"),
        ("backend/cpu.yaml", "fp32_tflops: 67", "fp32_tflop: 67", "backends.cpu.hardware.fp32_tflop"),
        ("backend/cpu.yaml", "kind: cpu", "kind: [", "cannot be read"),
    ],
)
def test_a_fault_of_the_configuration_names_its_file(conf, file, old, new, words):
    path = conf / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        configuration.load_settings("cpu", None)
    assert words in str(caught.value)
    assert f"conf/{file}" in str(caught.value)


def test_a_broken_plan_does_not_stop_the_judge(conf):
    (conf / "category" / "attention.yaml").write_text("stages: {x: {when: [}")
    assert configuration.load_settings("cpu", 3).judge.seed == 3


def test_a_missing_device_ends_with_2(capsys, monkeypatch, device, reference, write):
    def absent(*_):
        raise MissingError("no CUDA driver", hint="backend=cpu needs no GPU")

    monkeypatch.setattr(session, "open_backend", absent)
    assert main([str(reference), str(write(a=GOOD))]) == 2
    assert capsys.readouterr() == ("", "engine.judge: no CUDA driver\nbackend=cpu needs no GPU\n")


def test_neither_hydra_nor_torch_is_loaded():
    code = (
        "import sys; sys.modules['hydra'] = sys.modules['omegaconf'] = None; import engine.judge.__main__ as command;"
        "from engine.judge.configuration import load_settings; load_settings('cpu', None);"
        "print(*sorted(set(sys.modules) & {'torch', 'triton', 'pandas', 'duckdb', 'litellm', 'rich', 'engine.run'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


def test_an_interrupt_closes_the_back_end_and_ends_with_130(monkeypatch, device, reference, write):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(device, "judge", interrupted)
    assert main([str(reference), str(write(a=GOOD))]) == 130
    assert device.closed == 1
    assert not device.scratch.exists()
