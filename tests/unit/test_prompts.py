"""Prompts: what each role is shown and asked, stable prefixes, honest gaps, and examples that work."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.prompts import Prompts, fenced, metric_row, show_number, trim_error
from engine.records import MetricValue
from engine.settings import Metric, Spelling
from tests.golden.make_prompts import FOLDER
from tests.golden.prompt_cases import ROLES, ROOT, TEMPLATES, cases, load_category, show, stage_context

CASES = cases()
PROMPTS = Prompts(TEMPLATES)
TEXTS = {name: (TEMPLATES / name).read_text() for name in PROMPTS.templates()}


def user(role: str, context) -> str:
    return PROMPTS.render(role, context)[1].content


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    expected = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    assert show(*CASES[name]) == expected, "if meant: python -m tests.golden.make_prompts, then read the diff"


def test_golden_folder_has_no_strays():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(CASES)


def test_each_role_has_a_golden_file():
    assert {role for role, _ in CASES.values()} == set(ROLES)


def test_system_message_is_equal_for_all_roles_and_stages():
    conv = CASES["optimise-conv"][1]
    contexts = [CASES["seed-conv"][1], conv, replace(conv, stage="fuse_normalization"), CASES["repair-loop"][1]]
    systems = {PROMPTS.render(role, context)[0] for role in ROLES for context in contexts}
    assert len(systems) == 1
    assert systems.pop().role == "system"


def test_roles_of_a_stage_share_their_prefix():
    context = replace(CASES["optimise-conv"][1], broken_source="x = 1", error="boom")
    texts = [user(role, context) for role in ("strategy", "optimise", "repair", "error_analysis")]
    differ = [len(set(column)) > 1 for column in zip(*texts, strict=False)]
    shared = texts[0][: differ.index(True)]
    assert context.operator.task.source.strip() in shared
    assert context.stage_settings.focus in shared
    assert "Implicit matrix product" in shared


@pytest.mark.parametrize(
    ("role", "keys"),
    [
        ("error_analysis", ["critical_issue", "why_it_matters", "minimal_fix_hint"]),
        ("strategy", ["bottleneck", "method", "plan"]),
    ],
)
def test_json_roles_demand_json_only(role, keys):
    text = user(role, CASES["repair-loop"][1])
    asked = json.loads(text[text.rindex("{") :])
    assert list(asked) == keys
    assert "one JSON object and nothing else" in text
    assert "exactly one fenced block" not in text


@pytest.mark.parametrize("role", ["seed", "repair", "optimise"])
def test_code_roles_demand_one_python_block(role):
    text = user(role, CASES["optimise-conv"][1])
    assert "exactly one fenced block that starts with ```python and defines ModelNew" in text
    assert "JSON" not in text


def test_unknown_values_are_said_and_never_zero():
    text = show(*CASES["optimise-nothing-known"])
    for line in text.splitlines():
        if "best kernel now" in line or "speed-up" in line or "floor:" in line:
            assert "not available" in line
            assert not re.search(r"\b0\b", line)
    assert text.count("best kernel now: not available; best before it: not available; PyTorch: not available") == 3
    assert "DRAM bandwidth, GB/s: not available" in text


METRIC = Metric(
    "u",
    "min",
    "m",
    None,
    None,
    "sum",
    {"ncu": Spelling("a"), "cupti": Spelling("a"), "algebra": Spelling("b", confidence=0.3, note="a bound")},
)


def value(source, number=1.0):
    return MetricValue("m", number, "u", source, 1.0)


@pytest.mark.parametrize(
    ("parent", "other", "shown"),
    [
        pytest.param("ncu", "ncu", 2.0, id="same-tool"),
        pytest.param("ncu", "cupti", 2.0, id="both-measured"),
        pytest.param("algebra", "algebra", 2.0, id="same-substitute"),
        pytest.param("algebra", "ncu", None, id="substitute-beside-measured"),
        pytest.param("ncu", "algebra", None, id="measured-beside-substitute"),
    ],
)
def test_only_values_of_one_kind_stand_beside_each_other(parent, other, shown):
    row = metric_row(METRIC, value(parent), value(other, 2.0), value(other, 2.0))
    assert (row.parent, row.previous, row.baseline) == (1.0, shown, shown)


def test_a_metric_whose_absence_is_ordinary_has_no_row_without_a_value():
    absent = MetricValue("m", None, "u", "", 0.0, "ncu: forbidden")
    assert metric_row(METRIC, absent, None, None).remark == ""
    assert metric_row(replace(METRIC, on_missing="note"), absent, None, None) is None
    assert metric_row(replace(METRIC, on_missing="note"), value("ncu"), None, None).parent == 1.0


def test_optimise_shows_all_sections():
    text = user(*CASES["optimise-conv"])
    for part in (
        "41.2 us (measured)",
        "headroom (time / floor): 3.4",
        "speed-up over the fastest baseline (compile): 0.61",
    ):
        assert part in text
    for part in ("conv_kernel x 1: grid 961 x 1 x 1", "168 registers", "outside kernels: aten.convolution x 1"):
        assert part in text
    assert "aten.empty" not in text, "allocation is no work outside kernels"
    assert "best kernel now: 61.5; best before it: not available; PyTorch: 88.25 [ncu]" in text
    assert "'tl' has no attribute 'tanh' line 12" in text
    assert "plan: apply bias before the store" in text


def test_estimates_are_called_estimates():
    context = CASES["optimise-conv"][1]
    estimated = replace(context, scores=replace(context.scores, score_kind="estimated"))
    assert "estimates from operations, bytes and launches" in user("optimise", estimated)
    assert "estimates from operations" not in user("optimise", context)


def test_repair_shows_cause_code_and_diagnosis():
    text = user(*CASES["repair-loop"])
    assert "launches_per_timestep = 2.002" in text
    assert "smallest fix: loop in kernel" in text
    assert "Repair the candidate" in text


def test_repair_without_code_asks_for_the_module():
    text = user(*CASES["repair-no-code"])
    assert "no usable code" in text
    assert "Repair the candidate" not in text
    assert "Write ModelNew for the reference above" in text


def test_several_seeds_differ():
    base = replace(CASES["seed-conv"][1], samples=3)
    texts = {user("seed", replace(base, sample=sample)) for sample in range(3)}
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("precision", "said"),
    [("ieee", 'input_precision="ieee"'), ("tf32", "may use TF32"), ("reduced", "fp16 or bf16 operands")],
)
def test_precision_is_stated(precision, said):
    assert said in PROMPTS.render("seed", replace(CASES["seed-conv"][1], precision=precision))[0].content


@pytest.mark.parametrize(
    ("policy", "said"),
    [("none", "All arithmetic happens in your kernels"), ("library", "decoy kernel"), ("any", "Any torch operation")],
)
def test_host_op_policy_is_stated(policy, said):
    assert said in PROMPTS.render("seed", replace(CASES["seed-conv"][1], host_ops=policy))[0].content


# Guidance


@pytest.mark.parametrize(
    ("category", "stage", "guidance", "template"),
    [
        ("fusion_memory", "primary_conv", None, "fusion_memory/primary_conv"),
        ("elsewhere", "block_tiling", None, "generic/block_tiling"),
        ("elsewhere", "unheard_of", None, "generic/default"),
        ("fusion_memory", "primary_conv", "rounds/rounds", "rounds/rounds"),
    ],
    ids=["own", "generic stage", "generic default", "declared"],
)
def test_guidance_falls_back(category, stage, guidance, template):
    context = CASES["optimise-conv"][1]
    settings = replace(context.stage_settings, guidance=guidance)
    text = user("optimise", replace(context, category=category, stage=stage, stage_settings=settings))
    assert TEXTS[f"guidance/{template}.j2"].splitlines()[0] in text


def test_every_bundled_stage_has_guidance_of_its_own():
    for path in sorted((ROOT / "conf" / "category").glob("*.yaml")):
        if path.stem != "auto":
            for stage in load_category(path.stem).stages:
                assert f"guidance/{path.stem}/{stage}.j2" in TEXTS


def test_every_guidance_template_belongs_to_a_stage():
    known = {"generic/default", "generic/seed", "recurrent/seed"}
    for path in (ROOT / "conf" / "category").glob("*.yaml"):
        if path.stem != "auto":
            known |= {f"{path.stem}/{stage}" for stage in load_category(path.stem).stages}
    assert {name[len("guidance/") : -len(".j2")] for name in TEXTS if name.startswith("guidance/")} == known


def test_recurrent_guidance_shows_wrong_and_right():
    context = stage_context(CASES["repair-loop"][1], "persistent_kernel")
    text = user("optimise", context)
    wrong, right = text.index("WRONG:"), text.index("RIGHT:")
    assert "for t in range(T):\n    gh = torch.matmul" in text[wrong:right]
    assert "@triton.jit" in text[right:]
    assert "batch tile and covers all of the hidden size" in text
    assert "barrier over the grid is a race" in text


# Templates as data


def test_templates_carry_no_policy():
    """No thresholds, no percentages, no limits on scores: those live in rules."""
    percentage = r"\b\d+(\.\d+)?\s*(%(?!\})|percent)"
    limit = r"(speed-?up|headroom|occupancy|hit rate|stall\w*)[^.\n:{}]{0,25}?(>|<|above|below|over|at least)\s*\d"
    for name, text in TEXTS.items():
        assert "threshold" not in text.lower(), name
        assert not re.search(percentage, text), name
        assert not re.search(limit, text, re.IGNORECASE), name


def test_bundled_templates_have_no_faults():
    assert PROMPTS.faults() == []


def test_broken_templates_are_all_reported(tmp_path):
    (tmp_path / "system.j2").write_text("{{ devcie.name }}")
    (tmp_path / "seed.j2").write_text("{% if %}")
    faults = Prompts(tmp_path).faults()
    assert [fault.path for fault in faults] == ["seed.j2:1", "system.j2"]
    assert "devcie" in faults[1].problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ nothing_such }}", "nothing_such"),
        ('{% include "absent.j2" %}', "absent.j2"),
        ("{{ device.colour }}", "colour"),
        ("{% for %}", "seed.j2"),
    ],
)
def test_rendering_a_broken_template_names_it(tmp_path, text, said):
    (tmp_path / "system.j2").write_text("s")
    (tmp_path / "seed.j2").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        Prompts(tmp_path).render("seed", CASES["seed-conv"][1])


def test_unknown_role_is_refused_with_the_template_that_it_would_need():
    with pytest.raises(ConfigError, match=r"judge\.j2"):
        PROMPTS.render("judge", CASES["seed-conv"][1])


# What the dialect teaches


def test_dialect_names_only_what_triton_lacks_and_has():
    tl = pytest.importorskip("triton.language")
    text = TEXTS["dialect/triton_cuda.j2"]
    table = text[text.index("These do not exist") : text.index("They do exist")]
    for line in table.splitlines()[1:]:
        for name in re.findall(r"tl\.(\w+)", line[:24]) if line.startswith("    tl.") else []:
            assert not hasattr(tl, name), f"tl.{name} exists"
        for name in re.findall(r"tl\.(\w+)", line[24:]):
            assert hasattr(tl, name), f"tl.{name} does not exist"
    present = text[text.index("They do exist") : text.index("- `num_warps`")]
    for name in re.findall(r"tl\.(\w+)", present):
        assert hasattr(tl, name), f"tl.{name} does not exist"


def test_examples_and_guidance_use_only_names_that_exist():
    tl = pytest.importorskip("triton.language")
    for name, text in TEXTS.items():
        if name.startswith(("examples/", "guidance/")):
            for used in re.findall(r"\btl\.(\w+)", text):
                assert hasattr(tl, used), f"{name}: tl.{used}"


MODULES = [name for name in sorted(TEXTS) if name.startswith("examples/")] + ["guidance/recurrent/persistent_kernel.j2"]
ALLOWED = {
    "torch",
    "torch.nn",
    "torch.nn.functional",
    "triton",
    "triton.language",
    "triton.language.extra",
    "triton.tools.tensor_descriptor",
    "math",
    "typing",
    "functools",
    "dataclasses",
}


def shown_module(name: str) -> str:
    """The module that a template shows, as a model sees it under ieee."""
    blocks = re.findall(r"```python\n(.*?)```", TEXTS[name], re.DOTALL)
    [module] = [block for block in blocks if "class ModelNew" in block]
    return re.sub(r"\{\{.*?\}\}", "ieee", module)


@pytest.mark.parametrize("name", MODULES)
def test_examples_import_only_what_candidates_may(name):
    for node in ast.walk(ast.parse(shown_module(name))):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= ALLOWED


def test_dialect_lists_the_allowed_imports():
    text = TEXTS["dialect/triton_cuda.j2"]
    listed = text[text.index("Import only") + len("Import only") :].split(".\n", 1)[0]
    assert {name.strip() for name in listed.split(",")} == ALLOWED


CHECK = """
import sys
import torch, torch.nn as nn, torch.nn.functional as F
sys.path.insert(0, sys.argv[1])
import elementwise, row_reduction, matmul_epilogue, persistent_kernel
torch.manual_seed(0)
x, y = torch.randn(5, 77), torch.randn(5, 77)
norm, linear = row_reduction.ModelNew(77), matmul_epilogue.ModelNew(77, 45)
nn.init.normal_(norm.norm.weight)
recurrent = persistent_kernel.ModelNew(13, 37)
steps, h0 = torch.randn(5, 19, 13), torch.randn(1, 19, 37)
with torch.no_grad():
    pairs = [
        (elementwise.ModelNew()(x, y), F.silu(x) + y),
        (norm(x), norm.norm(x)),
        (linear(x), torch.relu(linear.fc(x))),
        (recurrent(steps, h0), recurrent.gru(steps, h0)[0]),
    ]
for mine, right in pairs:
    torch.testing.assert_close(mine, right, rtol=1e-5, atol=3e-6)
"""


def test_examples_compute_what_they_say(tmp_path):
    pytest.importorskip("triton")
    for name in MODULES:
        (tmp_path / f"{Path(name).stem}.py").write_text(shown_module(name))
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", CHECK, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


# Small functions


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "not available"),
        (0.0, "0"),
        (0.8213456, "0.8213"),
        (41.2, "41.2"),
        (132.0, "132"),
        (2.86e8, "286,000,000"),
        (12345.6, "12,346"),
        (-3.5, "-3.5"),
    ],
)
def test_show_number(value, shown):
    assert show_number(value) == shown


def test_fence_is_longer_than_any_inside():
    text = fenced('s = """\n````\n"""', "python")
    assert text.startswith("`````python\n")
    assert text.endswith("\n`````")


def test_blank_lines_of_a_source_survive():
    assert "import triton\n\n\nclass ModelNew:" in user(*CASES["optimise-conv"])


def test_trim_keeps_short_text():
    assert trim_error("  boom\n", 10) == "boom"


def test_trim_keeps_head_tail_and_whole_lines():
    text = "\n".join(["CompilationError: at 12:4"] + [f"frame {n}" for n in range(500)] + ["AttributeError: tanh"])
    short = trim_error(text, 400)
    assert len(short) <= 400
    lines = short.splitlines()
    assert lines[0] == "CompilationError: at 12:4"
    assert lines[-1] == "AttributeError: tanh"
    assert f"{len(text)} characters in all" in short
    assert all(line in text for line in lines if not line.startswith("["))


@given(st.text(max_size=400), st.integers(1, 300))
def test_trim_never_exceeds_its_limit_and_keeps_the_end(text, limit):
    short = trim_error(text, limit)
    assert len(short) <= limit
    assert short[-3:] == text.strip()[-3:][-limit:] or len(text.strip()) <= limit
