"""The match rules of the categories, evaluated on facts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.classify import classify
from engine.errors import ConfigError
from engine.records import Facts
from engine.settings import Category, Match
from engine.tasks import find_tasks
from engine.tasks.facts import describe_task, none_known
from tests.golden.make_classification import categories
from tests.unit.test_tasks import BUNDLED

NOTHING = none_known("float32", "")


def plan(when, priority):
    return Category(f"for {when}", Match(when, priority), (), {})


PLANS = {
    "wide": plan("ops >= 0", 0),
    "small": plan("ops <= 3", 10),
    "window": plan("kernel_size <= 3", 20),
    "text": plan("dtype == 'float16'", 30),
    "by_name": Category("only by name", None, (), {}),
}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (replace(NOTHING, ops=9), "wide"),
        (replace(NOTHING, ops=3), "small"),
        (replace(NOTHING, ops=3, kernel_size=3), "window"),
        (replace(NOTHING, ops=3, kernel_size=5), "small"),
        (replace(NOTHING, ops=3, kernel_size=3, dtype="float16"), "text"),
    ],
    ids=["lowest", "priority", "higher", "false", "text"],
)
def test_highest_priority_that_is_true(facts, expected):
    found = classify(facts, PLANS)
    assert found.category == expected
    assert [evaluation.rule for evaluation in found.evaluations] == ["text", "window", "small", "wide"]
    assert all(evaluation.kind == "match" for evaluation in found.evaluations)


def test_unknown_operands_never_match_and_are_recorded():
    found = classify(replace(NOTHING, ops=9), PLANS)
    window = next(evaluation for evaluation in found.evaluations if evaluation.rule == "window")
    assert (window.outcome, window.missing, window.operands) == ("unknown", ("kernel_size",), {"kernel_size": None})


def test_equal_priorities_go_by_name():
    plans = {"b": plan("ops >= 0", 1), "a": plan("ops >= 0", 1)}
    assert classify(NOTHING, plans).category == "a"


def test_nothing_matches():
    with pytest.raises(ConfigError, match="no match rule is true"):
        classify(NOTHING, {"x": plan("ops > 5", 1), "y": Category("by name", None, (), {})})


BUNDLED_CATEGORIES = {
    "attention": "attention", "conv1d": "memory_intensive", "conv2d_relu_bias": "fusion_memory",
    "cross_entropy": "memory_intensive", "gelu": "memory_intensive", "gemm_scale_leaky_relu": "fusion_compute",
    "gru_last_hidden": "recurrent", "gru_sequence": "recurrent", "layer_norm": "memory_intensive",
    "matmul_sigmoid_sum": "fusion_compute", "rms_norm": "memory_intensive", "softmax": "memory_intensive",
    "square_matmul": "compute_intensive", "sum_reduction": "memory_intensive",
}  # fmt: skip


def test_bundled_tasks(project):
    plans = categories()
    found = {task.name: classify(describe_task(task), plans).category for task in find_tasks(BUNDLED, (), project)}
    assert found == BUNDLED_CATEGORIES


def test_an_untraced_task_gets_the_plan_for_everything_else():
    facts: Facts = none_known("float32", "not traceable")
    lowest = min(categories().items(), key=lambda item: item[1].match.priority)[0]
    assert classify(facts, categories()).category == lowest
