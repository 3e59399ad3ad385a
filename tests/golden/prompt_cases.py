"""Contexts that stand for what the runner asks: each role, with much, little and nothing known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from engine.codec import decode
from engine.prompts import Attempt, MetricRow, PromptContext, ScoreView, metric_row
from engine.records import Contract, Device, Facts, HostOp, Launch, MetricValue, OpCost, Operator, Task, Trace
from engine.settings import Category, Metric
from engine.vocabulary import trusted

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "prompts" / "templates"
ROLES = ("seed", "error_analysis", "repair", "strategy", "optimise")

CONV_SOURCE = """import torch
import torch.nn as nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 32, 3)
        self.bias = nn.Parameter(torch.randn(32, 1, 1))

    def forward(self, x):
        return torch.relu(self.conv(x)) + self.bias

def get_inputs():
    return [torch.rand(8, 16, 64, 64)]

def get_init_inputs():
    return []
"""

GRU_SOURCE = """import torch
import torch.nn as nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(64, 128)

    def forward(self, x, h0):
        return self.gru(x, h0)[1]
"""

NOTHING = Facts(
    ops=0,
    conv_ops=0,
    matmul_ops=0,
    norm_ops=0,
    pool_ops=0,
    reduce_ops=0,
    pointwise_ops=0,
    recurrent_ops=0,
    attention_ops=0,
    kernel_size=None,
    time_steps=None,
    flops=0.0,
    bytes=0.0,
    intensity=0.0,
    dtype="float32",
    traced="none",
)
CONV_FACTS = replace(
    NOTHING,
    ops=3,
    conv_ops=1,
    pointwise_ops=2,
    kernel_size=3,
    flops=2.86e8,
    bytes=6.0e6,
    intensity=47.7,
    traced="full",
    costs=(OpCost("conv2d", "conv", 1, 2.83e8, 6.0e6), OpCost("relu", "pointwise", 1, 1.2e6, 9.8e6)),
)
GRU_FACTS = replace(
    NOTHING, ops=1, recurrent_ops=1, time_steps=512, flops=1.2e9, bytes=4.1e6, intensity=293.0, traced="full"
)

DEVICE = Device(
    "cuda",
    "NVIDIA H200",
    {"driver": "580.1", "triton": "3.6.0", "torch": "2.13.0"},
    {"sm_count": 132.0, "dram_gbps": 4300.0, "fp32_tflops": 60.0, "tf32_tflops": 400.0, "shared_bytes": 232448.0},
)
KERNEL = "import triton\n\n\nclass ModelNew:\n    pass"


def category_file(name: str) -> Path:
    return ROOT / "conf" / "category" / f"{name}.yaml"


def load_category(name: str) -> Category:
    return decode(Category, yaml.safe_load(category_file(name).read_text()), name)


def load_metrics() -> Mapping[str, Metric]:
    tree = yaml.safe_load((ROOT / "conf" / "metric" / "canonical.yaml").read_text())
    return {name: decode(Metric, value, name) for name, value in tree.items()}


def operator(source: str, facts: Facts, name: str) -> Operator:
    return Operator(Task(name, name, source, Contract(), "declared", "0" * 64), facts)


def seed_context(category: str, source: str, facts: Facts, name: str) -> PromptContext:
    return PromptContext(
        operator=operator(source, facts, name),
        category=category,
        category_settings=load_category(category),
        stage=None,
        stage_settings=None,
        device=DEVICE,
        dialect="triton_cuda",
        precision="ieee",
        host_ops="library",
        parent_source=None,
        broken_source=None,
        error=None,
        analysis=None,
        strategy=None,
        metrics=(),
        scores=None,
        history=(),
        sample=0,
        samples=1,
        trace=None,
    )


def stage_context(base: PromptContext, stage: str) -> PromptContext:
    return replace(
        base,
        stage=stage,
        stage_settings=base.category_settings.stages[stage],
        parent_source=KERNEL,
        samples=2,
        sample=1,
    )


def metric_rows(stage: str, category: str, known: bool) -> tuple[MetricRow, ...]:
    metrics, names = load_metrics(), load_category(category).stages[stage].metrics
    rows = []
    for name in names:
        entry = metrics[name]
        values = (61.5, None, 88.25) if known else (None, None, None)
        rows.append(MetricRow(name, entry.unit, entry.meaning, entry.better, *values, "ncu" if known else ""))
    return tuple(rows)


def substituted_rows() -> tuple[MetricRow, ...]:
    """What a stage sees without permission for counters: substitutes, a value that is not used, and one that is left
    out because its absence is ordinary."""
    metrics = load_metrics()
    given = {
        "dram_pct": MetricValue("dram_pct", 41.5, "percent", "algebra", 0.3, "ncu: forbidden"),
        "occupancy_pct": MetricValue("occupancy_pct", 18.75, "percent", "static", 0.5),
        "l2_hit_pct": MetricValue("l2_hit_pct", 480.0, "percent", "ncu", 0.0, "480 percent lies outside 0 to 100"),
        "launches_per_timestep": MetricValue("launches_per_timestep", None, "", "", 0.0, "trace: no counter"),
    }
    others = {
        # Measured, so it cannot stand beside a substitute.
        "dram_pct": MetricValue("dram_pct", 60.0, "percent", "ncu", 1.0),
        "occupancy_pct": MetricValue("occupancy_pct", 50.0, "percent", "static", 0.5),
    }
    rows = (
        metric_row(metrics[name], trusted(value, 0.25), others.get(name), others.get(name))
        for name, value in given.items()
    )
    return tuple(row for row in rows if row is not None)


SCORES = ScoreView(0.82, 0.61, "compile", 3.4, "measured", 41.2, 33.8, 12.1)
UNKNOWN_SCORES = ScoreView(None, None, None, None, None, None, None, None)
TRACE = Trace(
    (Launch("conv_kernel", (961, 1, 1), 1, 9.4e6, 4, 3, True, 168, 0, 49152),),
    (HostOp("aten.convolution", 1, True, 2.8e8, 6e6), HostOp("aten.empty", 1, False, 0.0, 0.0)),
)
HISTORY = (
    Attempt("seed", "seed", "compile", "'tl' has no attribute 'tanh'\nline 12", None),
    Attempt("primary_conv", "optimise", "slower", "", 0.74),
)
REQUIREMENT = (
    "requirement: The kernel is correct, but it breaks a requirement of this stage.\n"
    "Rule: launches_per_timestep <= 1. Found: launches_per_timestep = 2.002."
)
STRATEGY = {"bottleneck": "intermediates", "method": "epilogue fusion", "plan": "apply bias before the store"}
ANALYSIS = {"critical_issue": "Python loop", "why_it_matters": "launches", "minimal_fix_hint": "loop in kernel"}


def cases() -> dict[str, tuple[str, PromptContext]]:
    """Name -> role and context."""
    conv = seed_context("fusion_memory", CONV_SOURCE, CONV_FACTS, "conv2d_relu_bias")
    gru = seed_context("recurrent", GRU_SOURCE, GRU_FACTS, "gru_last_hidden")
    blind = seed_context("generic", "class Model: ...", NOTHING, "untraced")
    full = replace(
        stage_context(conv, "primary_conv"),
        metrics=metric_rows("primary_conv", "fusion_memory", True),
        scores=SCORES,
        trace=TRACE,
        history=HISTORY,
    )
    bare = replace(
        stage_context(blind, "memory_access"),
        metrics=metric_rows("memory_access", "generic", False),
        scores=UNKNOWN_SCORES,
        precision="tf32",
        host_ops="none",
        device=replace(DEVICE, hardware={}, facts={}),
    )
    loop = replace(stage_context(gru, "persistent_kernel"), broken_source=KERNEL, error=REQUIREMENT)
    return {
        "seed-conv": ("seed", conv),
        "seed-second-of-three": ("seed", replace(gru, sample=1, samples=3)),
        "seed-untraced": ("seed", replace(blind, precision="reduced", host_ops="any")),
        "strategy-conv": ("strategy", full),
        "optimise-conv": ("optimise", replace(full, strategy=STRATEGY)),
        "optimise-nothing-known": ("optimise", bare),
        "optimise-substitutes": ("optimise", replace(full, metrics=substituted_rows())),
        "error_analysis-loop": ("error_analysis", loop),
        "repair-loop": ("repair", replace(loop, analysis=ANALYSIS)),
        "repair-no-code": ("repair", replace(conv, error="no_code: no fenced block")),
    }


def show(role: str, context: PromptContext) -> str:
    """The messages as one text, the form in which golden files keep them."""
    from engine.prompts import Prompts

    messages = Prompts(TEMPLATES).render(role, context)
    return "".join(f"----- {message.role} -----\n{message.content}" for message in messages)
