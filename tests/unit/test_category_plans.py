"""The bundled stage plans and metrics as data: form, rules and what they decide for known operators."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import pytest
import yaml

from engine.records import Facts
from engine.rules import apply, evaluate, parse
from engine.vocabulary import operands as vocabulary
from tests.golden.prompt_cases import CONV_FACTS, GRU_FACTS, NOTHING, ROOT, category_file, load_category, load_metrics

STAGES = {
    "compute_intensive": ["tiling", "block_sizes", "swizzle"],
    "memory_intensive": ["vectorise", "staging", "single_pass"],
    "fusion_compute": ["primary_matmul", "fuse_elementwise", "fuse_reduction"],
    "fusion_memory": ["primary_conv", "fuse_normalization", "fuse_activation_pooling"],
    "recurrent": ["hoist_input_product", "persistent_kernel", "batch_hidden_grid"],
    "attention": ["online_softmax", "tiling", "pipelining"],
    "generic": ["grid_and_parallel", "block_tiling", "memory_access", "advanced_memory"],
    "rounds": ["rounds"],
}
CATEGORIES = {name: load_category(name) for name in STAGES}
METRICS = load_metrics()
THRESHOLDS = yaml.safe_load((ROOT / "conf" / "config.yaml").read_text())["thresholds"]
KNOWN = vocabulary(METRICS, THRESHOLDS)
TOOLS = {"ncu", "cupti", "static", "trace", "algebra", "msprof", "msprof_op", "torch_npu"}
WITHOUT_COUNTERS = ("static", "trace", "algebra")
COUNTERS = {
    name
    for name, metric in METRICS.items()
    if not any(tool in WITHOUT_COUNTERS and spelled.confidence == 1 for tool, spelled in metric.spellings.items())
}
"""Metrics that only hardware counters measure; what else there is for them are substitutes."""
RULES = [
    (category, stage, kind, name, rule)
    for category, settings in CATEGORIES.items()
    for stage, plan in settings.stages.items()
    for kind in ("skip_when", "exit_when", "require")
    for name, rule in getattr(plan, kind).items()
]
IDS = [f"{category}.{stage}.{kind}.{name}" for category, stage, kind, name, _ in RULES]


def operands(facts: Facts, **others: float | None) -> dict[str, object]:
    known = {field.name: getattr(facts, field.name) for field in fields(facts)}
    limits = {f"thresholds.{name}": value for name, value in THRESHOLDS.items()}
    return {**known, **limits, **others}


def decide(when: str, facts: Facts, **others: float | None) -> bool | None:
    return evaluate(parse(when, KNOWN), operands(facts, **others))


def rule_of(category: str, stage: str, kind: str, name: str):
    return getattr(CATEGORIES[category].stages[stage], kind)[name]


@pytest.mark.parametrize("name", STAGES)
def test_stages_by_name_and_order(name):
    assert list(CATEGORIES[name].stages) == STAGES[name]


def test_no_plan_is_left_out():
    assert {path.stem for path in category_file("x").parent.glob("*.yaml")} - {"auto"} == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_files_say_what_they_are(name):
    lines = category_file(name).read_text().splitlines()
    assert lines[0] == f"# @package categories.{name}"
    header = "\n".join(lines[1 : lines.index("")])
    assert f"python -m engine category={name}" in header
    assert "'" in header, "one override as an example"


@pytest.mark.parametrize("name", STAGES)
def test_first_appearance_of_each_key_is_commented(name):
    seen, above = set(), ""
    for line in category_file(name).read_text().splitlines()[1:]:
        key = re.match(
            r"\s*(description|match|representatives|metrics|candidates|repairs|proposer|sequential|guidance):", line
        )
        if key and key[1] not in seen and "budget: {" not in line:
            seen.add(key[1])
            assert key[1] == "match" or "#" in above or "#" in line, line
        above = line
    assert {"description", "candidates", "repairs", "metrics"} <= seen


@pytest.mark.parametrize(("category", "stage", "kind", "name", "rule"), RULES, ids=IDS)
def test_rules_parse_and_read_what_the_stage_measures(category, stage, kind, name, rule):
    expression = parse(rule.when, KNOWN)
    measured = set(CATEGORIES[category].stages[stage].metrics)
    assert expression.names & COUNTERS <= measured
    assert rule.why.strip()


@pytest.mark.parametrize(("category", "stage", "kind", "name", "rule"), RULES, ids=IDS)
def test_counters_never_decide_alone(category, stage, kind, name, rule):
    """Utilisation misleads: a rule that reads a counter also demands little headroom."""
    names = parse(rule.when, KNOWN).names
    if names & COUNTERS:
        assert "headroom" in names


def test_every_threshold_is_used():
    used = {name for *_, rule in RULES for name in parse(rule.when, KNOWN).names}
    assert {f"thresholds.{name}" for name in THRESHOLDS} <= used


@pytest.mark.parametrize("name", STAGES)
def test_stage_metrics_are_declared(name):
    for stage, plan in CATEGORIES[name].stages.items():
        assert set(plan.metrics) <= set(METRICS), stage
        assert 2 <= len(plan.metrics) <= (6 if name == "rounds" else 3), stage


@pytest.mark.parametrize("name", [name for name in STAGES if name != "rounds"])
def test_budgets_are_small(name):
    for plan in CATEGORIES[name].stages.values():
        assert (plan.budget.candidates, plan.budget.repairs, plan.sequential) == (1, 2, False)


def test_rounds_recreate_the_ancestor():
    rounds = CATEGORIES["rounds"]
    plan = rounds.stages["rounds"]
    assert rounds.match is None
    assert (plan.budget.candidates, plan.budget.repairs, plan.sequential) == (10, 1, True)


@pytest.mark.parametrize(
    ("category", "tasks"),
    [
        ("compute_intensive", ["square_matmul"]),
        ("memory_intensive", ["conv1d"]),
        ("fusion_compute", ["matmul_sigmoid_sum"]),
        ("fusion_memory", ["conv2d_relu_bias"]),
        ("recurrent", ["gru_sequence", "gru_last_hidden"]),
        ("attention", ["attention"]),
        ("generic", []),
    ],
)
def test_representatives_exist(category, tasks):
    assert list(CATEGORIES[category].representatives) == tasks
    for task in tasks:
        assert (ROOT / "tasks" / f"{task}.py").exists()


KINDS = {
    "plain matmul": (replace(NOTHING, ops=1, matmul_ops=1, intensity=300.0), "compute_intensive"),
    "matrix times vector": (replace(NOTHING, ops=1, matmul_ops=1, intensity=0.5), "memory_intensive"),
    "plain convolution": (replace(NOTHING, ops=1, conv_ops=1, kernel_size=3), "memory_intensive"),
    "softmax": (replace(NOTHING, ops=1, norm_ops=1), "memory_intensive"),
    "relu": (replace(NOTHING, ops=1, pointwise_ops=1), "memory_intensive"),
    "matmul sigmoid sum": (
        replace(NOTHING, ops=3, matmul_ops=1, pointwise_ops=1, reduce_ops=1, intensity=90.0),
        "fusion_compute",
    ),
    "conv relu bias": (CONV_FACTS, "fusion_memory"),
    "convolution with a dense head": (replace(CONV_FACTS, ops=4, matmul_ops=1), "generic"),
    "gru": (GRU_FACTS, "recurrent"),
    "attention": (replace(NOTHING, ops=1, attention_ops=1), "attention"),
    "attention with projections": (replace(NOTHING, ops=5, attention_ops=1, matmul_ops=4), "attention"),
    "network": (replace(NOTHING, ops=40, conv_ops=13, pointwise_ops=15, pool_ops=5, matmul_ops=3), "generic"),
    "untraced": (NOTHING, "generic"),
}


@pytest.mark.parametrize(("facts", "expected"), KINDS.values(), ids=KINDS)
def test_matches_by_priority(facts, expected):
    matched = [
        (category.match.priority, name)
        for name, category in CATEGORIES.items()
        if category.match is not None and decide(category.match.when, facts)
    ]
    assert max(matched)[1] == expected
    priorities = [priority for priority, _ in matched]
    assert len(set(priorities)) == len(priorities), "a tie would be decided by the order of files"


def test_a_stage_of_the_representatives_is_skipped_by_facts_alone():
    rule = rule_of("fusion_memory", "fuse_normalization", "skip_when", "nothing_to_fuse")
    assert decide(rule.when, CONV_FACTS) is True
    assert decide(rule.when, replace(CONV_FACTS, norm_ops=1)) is False
    assert parse(rule.when, KNOWN).names == {"norm_ops"}


@pytest.mark.parametrize(
    ("window", "speedup", "limit", "expected"),
    [(3, 0.25, 0.3, True), (3, 0.25, 0.2, False), (5, 0.25, 0.3, False), (None, 0.25, 0.3, None), (3, None, 0.3, None)],
    ids=["exit", "lower threshold", "large window", "window unknown", "speed-up unknown"],
)
def test_small_convolutions_end_the_plan(window, speedup, limit, expected):
    rule = rule_of("fusion_memory", "primary_conv", "exit_when", "small_conv")
    known = operands(replace(CONV_FACTS, kernel_size=window), speedup=speedup)
    known["thresholds.small_conv_speedup"] = limit
    assert evaluate(parse(rule.when, KNOWN), known) is expected
    fired = apply("small_conv", "exit_when", rule, parse(rule.when, KNOWN), known).fired
    assert fired is (expected is True)


@pytest.mark.parametrize(("launches", "holds"), [(1.0, True), (6 / 512, True), (2.0, False), (12.0, False)])
def test_recurrent_kernels_keep_the_time_loop(launches, holds):
    rule = rule_of("recurrent", "persistent_kernel", "require", "one_launch_per_timestep")
    assert decide(rule.when, GRU_FACTS, launches_per_timestep=launches) is holds
    assert "loop" in rule.why
    assert "@triton.jit" in rule.why


def test_elementwise_is_judged_by_facts_and_floor_not_by_name():
    pointwise = replace(NOTHING, ops=2, pointwise_ops=2)
    done = rule_of("memory_intensive", "vectorise", "exit_when", "elementwise_done")
    assert decide(done.when, pointwise, headroom=1.02) is True
    assert decide(done.when, pointwise, headroom=1.6) is False
    assert decide(done.when, CONV_FACTS, headroom=1.02) is False
    reuse = rule_of("memory_intensive", "staging", "skip_when", "no_reuse")
    assert decide(reuse.when, pointwise) is True


# Metrics

CONTRACT = [
    "time_us",
    "time_share_pct",
    "launches",
    "launches_per_timestep",
    "grid_programs",
    "sm_busy_pct",
    "compute_pct",
    "tensor_pct",
    "occupancy_pct",
    "occupancy_limit_registers",
    "occupancy_limit_shared",
    "occupancy_limit_blocks",
    "occupancy_limit_warps",
    "occupancy_limiter",
    "registers",
    "spill_bytes",
    "load_width_bytes",
    "tensor_instructions",
    "async_copies",
    "local_bytes",
    "shared_bytes",
    "bank_conflict_pct",
    "dram_pct",
    "dram_bytes",
    "dram_read_bytes",
    "dram_write_bytes",
    "l1_hit_pct",
    "l2_hit_pct",
    "sector_bytes",
    "store_sector_bytes",
    "stall_long_pct",
    "stall_short_pct",
    "stall_barrier_pct",
    "stall_wait_pct",
    "stall_math_pct",
    "stall_mio_pct",
    "stall_lg_pct",
    "stall_instruction_pct",
    "stall_not_selected_pct",
    "branch_uniform_pct",
    "floor_us",
    "headroom",
    "intensity",
]
GHOSTS = {
    "smsp__warp_issue_stalled_memory_dependency_per_warp_active.pct",
    "sm__inst_executed_pipe_fp32.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed_op_shared.sum",
    "smsp__warp_issue_stalled_long_scoreboard_per_issue_active.pct",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.pct",
}


def test_metrics_are_those_of_the_contract():
    assert list(METRICS) == CONTRACT


@pytest.mark.parametrize("name", CONTRACT)
def test_metric_is_complete(name):
    metric = METRICS[name]
    assert metric.spellings, "spelled by nobody"
    assert set(metric.spellings) <= TOOLS
    assert ("ncu" in metric.spellings) >= ("cupti" in metric.spellings)
    assert metric.meaning and "\n" not in metric.meaning and not metric.meaning.endswith(".")
    if metric.low is not None and metric.high is not None:
        assert metric.low < metric.high
    if name.endswith("_pct"):
        assert metric.unit == "percent" and metric.high is not None and metric.high <= 101


def test_no_counter_that_exists_on_no_chip():
    spelled = [
        metric.spellings[tool] for metric in METRICS.values() for tool in ("ncu", "cupti") if tool in metric.spellings
    ]
    names = {name for spelling in spelled for name in spelling.counters}
    assert not names & GHOSTS
    assert all(re.fullmatch(r"[a-z0-9]+__[a-z0-9_]+(\.(sum|avg|pct|ratio|max|min)(\.\w+)?)?", name) for name in names)


def test_in_process_counters_are_those_of_ncu_unless_ncu_computes_them():
    for name, metric in METRICS.items():
        if "cupti" in metric.spellings and not metric.spellings["ncu"].counters[0].startswith("launch__"):
            assert metric.spellings["cupti"] == metric.spellings["ncu"], name


def test_facts_of_the_compiled_kernel_need_no_counter():
    for name in ("registers", "spill_bytes", "shared_bytes"):
        assert "static" in METRICS[name].spellings
    for name in ("launches", "launches_per_timestep", "grid_programs"):
        assert "trace" in METRICS[name].spellings
    for name in ("floor_us", "headroom", "intensity"):
        assert set(METRICS[name].spellings) == {"algebra"}
