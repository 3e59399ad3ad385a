"""Facts of references: counting at the level of torch functions, and what happens when a task cannot be traced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.records import Contract
from engine.tasks import find_tasks
from engine.tasks.contracts import make_task
from engine.tasks.facts import derive_variants, describe_task
from engine.tasks.facts_client import derive_variants as ask_variants
from engine.tasks.facts_client import describe
from tests.unit.test_tasks import BUNDLED, BUNDLED_NAMES, OPERATOR

HEAD = "import math\nimport torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n"


def operator(forward, init="pass", inputs="torch.randn(4, 32)", constants="", contract=None):
    source = (
        HEAD
        + constants
        + f"""
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        {init}

    def forward(self, *args):
        x = args[0]
        {forward}


def get_inputs():
    return [{inputs}]


def get_init_inputs():
    return []
"""
    )
    return make_task("t", "t", source, contract or Contract(), "declared", None, None)


def kinds(facts):
    names = ("conv", "matmul", "norm", "pool", "reduce", "pointwise", "recurrent", "attention")
    found = {name: getattr(facts, f"{name}_ops") for name in names}
    return {"ops": facts.ops, **{name: count for name, count in found.items() if count}}


IMAGE = "torch.randn(2, 8, 16, 16)"
HEADS = "torch.randn(2, 4, 16, 8)"


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (operator("return F.relu(x)"), {"ops": 1, "pointwise": 1}),
        (operator("return F.relu(x, inplace=True)"), {"ops": 1, "pointwise": 1}),
        (operator("return self.a(x)", "self.a = nn.GELU()"), {"ops": 1, "pointwise": 1}),
        (operator("return 1 - x / 2 + -x ** 2"), {"ops": 5, "pointwise": 5}),
        (operator("x += 1\n        x.mul_(2)\n        return x"), {"ops": 2, "pointwise": 2}),
        (operator("return x.view(8, 16).t()[1:].unsqueeze(0)"), {"ops": 0}),
        (operator("return x.t().contiguous().reshape(-1)"), {"ops": 0}),
        (operator("return torch.zeros(4, 32) + x"), {"ops": 1, "pointwise": 1}),
        (operator("return F.dropout(x, 0.5, self.training)"), {"ops": 0}),
        (operator("return torch.cat([x, x]).flip(0)"), {"ops": 2}),
        (operator("return F.softmax(x, -1)"), {"ops": 1, "norm": 1}),
        (operator("return self.n(x)", "self.n = nn.BatchNorm1d(32)"), {"ops": 1, "norm": 1}),
        (operator("return torch.max(x, dim=1)[0]"), {"ops": 1, "reduce": 1}),
        (operator("return torch.max(x, x * 2)"), {"ops": 2, "pointwise": 2}),
        (operator("return F.cross_entropy(x, torch.zeros(4, dtype=torch.long))"), {"ops": 1, "reduce": 1}),
        (operator("return self.c(x)", "self.c = nn.Conv2d(8, 4, 3)", IMAGE), {"ops": 1, "conv": 1}),
        (operator("return F.max_pool2d(x, 2)", inputs=IMAGE), {"ops": 1, "pool": 1}),
        (operator("return x @ x.t()"), {"ops": 1, "matmul": 1}),
        (operator("return torch.einsum('ij,kj->ik', x, x)"), {"ops": 1, "matmul": 1}),
        (operator("return self.l(x)", "self.l = nn.Linear(32, 8)"), {"ops": 1, "matmul": 1}),
        (operator("return self.r(x)[0]", "self.r = nn.LSTM(32, 8, 2)", "torch.randn(5, 3, 32)"),
         {"ops": 1, "recurrent": 1}),
        (operator("return self.m(x, x, x)[0]", "self.m = nn.MultiheadAttention(32, 4)", "torch.randn(5, 3, 32)"),
         {"ops": 1, "attention": 1}),
        (operator("return F.scaled_dot_product_attention(x, x, x)", inputs=HEADS), {"ops": 1, "attention": 1}),
        (operator("return F.softmax(x @ x.transpose(-2, -1) / 8, -1) @ x", inputs=HEADS),
         {"ops": 4, "matmul": 2, "pointwise": 1, "norm": 1, "attention": 1}),
        (operator("return (x @ x.transpose(-2, -1)) @ x", inputs=HEADS), {"ops": 2, "matmul": 2}),
        (operator("return F.relu(self.l(x)) @ self.w", "self.l = nn.Linear(32, 8)\n        "
                  "self.w = nn.Parameter(torch.randn(8, 3))"), {"ops": 3, "matmul": 2, "pointwise": 1}),
    ],
    ids=[
        "function", "function_in_place", "module", "operators", "in_place", "views", "copies", "allocation",
        "dropout_in_eval", "movement_is_other", "softmax_is_norm", "batch_norm", "max_of_a_dim", "max_of_two", "loss",
        "conv", "pool", "matmul", "einsum", "linear", "lstm", "multihead", "sdpa", "attention_written_out",
        "products_without_softmax", "mlp_is_no_attention",
    ],
)  # fmt: skip
def test_counts(task, expected):
    facts = describe_task(task)
    assert facts.traced == "full", facts.note
    assert kinds(facts) == expected


@pytest.mark.parametrize(
    ("task", "flops", "moved"),
    [
        (operator("return x @ args[1]", inputs="torch.randn(6, 7), torch.randn(7, 5)"), 2 * 6 * 7 * 5,
         4 * (42 + 35 + 30)),
        (operator("return x @ args[1]", inputs="torch.randn(6, 7), torch.randn(7)"), 2 * 6 * 7, 4 * (42 + 7 + 6)),
        (operator("return F.relu(x)", inputs="torch.randn(6, 7)"), 42, 8 * 42),
        (operator("return x + x", inputs="torch.randn(6, 7, dtype=torch.float16)"), 42, 4 * 42),
        (operator("return x.sum()", inputs="torch.randn(6, 7)"), 42, 4 * 43),
        (operator("return x + 1", inputs="torch.randn(6, 1).expand(6, 7)"), 42, 4 * (6 + 42)),
        (operator("return self.c(x)", "self.c = nn.Conv2d(8, 4, 3, bias=False)", IMAGE),
         2 * (2 * 4 * 14 * 14) * 8 * 9, 4 * (2 * 8 * 256 + 4 * 8 * 9 + 2 * 4 * 196)),
        (operator("return F.scaled_dot_product_attention(x, x, x)", inputs=HEADS), 4 * 2 * 4 * 16 * 16 * 8,
         4 * 2 * (2 * 4 * 16 * 8)),
        (operator("return self.r(x)[0]", "self.r = nn.GRU(32, 8)", "torch.randn(5, 3, 32)"), 2 * 15 * 24 * (32 + 8),
         4 * (480 + 24 * 40 + 48 + 120)),
        (operator("return F.relu(x) * 2", inputs="torch.randn(10), torch.randn(1000)"), 20, 80),
    ],
    ids=["matmul", "matrix_vector", "pointwise", "half", "sum", "expanded", "conv", "attention", "gru",
         "unused_input_and_intermediates"],
)  # fmt: skip
def test_flops_and_compulsory_bytes(task, flops, moved):
    facts = describe_task(task)
    assert (facts.flops, facts.bytes) == (flops, moved)
    assert facts.intensity == pytest.approx(flops / moved)


def test_costs_are_per_operation():
    facts = describe_task(operator("return F.relu(F.relu(x @ x))", inputs="torch.randn(8, 8)"))
    assert [(c.name, c.kind, c.count, c.flops, c.bytes) for c in facts.costs] == [
        ("matmul", "matmul", 1, 1024.0, 512.0), ("relu", "pointwise", 2, 64.0, 512.0),
    ]  # fmt: skip
    copied = describe_task(operator("return x.t().contiguous()", inputs="torch.randn(8, 8)"))
    assert [(c.name, c.kind, c.count, c.bytes) for c in copied.costs] == [("contiguous", "other", 1, 512.0)]
    assert copied.ops == 0


CELL = """h = torch.zeros(3, 8)
        for step in range(x.shape[0]):
            h = torch.tanh(self.i(x[step]) + self.h(h))
        return h"""


@pytest.mark.parametrize(
    ("task", "steps", "note"),
    [
        (operator("return self.r(x)[0]", "self.r = nn.GRU(32, 8)", "torch.randn(7, 3, 32)"), 7, ""),
        (operator("return self.r(x)[0]", "self.r = nn.RNN(32, 8, batch_first=True)", "torch.randn(7, 3, 32)"), 3, ""),
        (operator(CELL, "self.i = nn.Linear(32, 8)\n        self.h = nn.Linear(8, 8)", "torch.randn(9, 3, 32)"), 9,
         "explicit loop of 9 timesteps"),
        (operator("return self.l(self.l(x))", "self.l = nn.Linear(32, 32)"), None, ""),
    ],
    ids=["gru", "batch_first", "python_loop", "weight_used_twice"],
)  # fmt: skip
def test_time_steps(task, steps, note):
    facts = describe_task(task)
    assert (facts.time_steps, facts.note) == (steps, note)
    assert facts.recurrent_ops == (0 if steps is None else 1)


@pytest.mark.parametrize(
    ("task", "window"),
    [
        (operator("return self.c(x)", "self.c = nn.Conv2d(8, 4, (3, 5))", IMAGE), 5),
        (operator("return self.c(x)", "self.c = nn.ConvTranspose2d(8, 4, 4)", IMAGE), 4),
        (operator("return F.avg_pool2d(x, kernel_size=(2, 7))", inputs=IMAGE), 7),
        (operator("return F.adaptive_avg_pool2d(x, 1)", inputs=IMAGE), None),
        (operator("return x + 1"), None),
    ],
    ids=["conv", "transposed", "pool", "adaptive", "none"],
)
def test_window(task, window):
    assert describe_task(task).kernel_size == window


def test_numbers_read_while_building():
    task = operator("return x * self.rate", "self.rate = [r.item() for r in torch.linspace(0, 1, 3)][1]")
    assert (describe_task(task).traced, describe_task(task).ops) == ("full", 1)


DEPENDS = "return x[: int(x.abs().sum() * 0) + 2] + 1"


def test_what_cannot_be_faked_is_run_small():
    contract = Contract(variants={"small": {"N": 4}})
    facts = describe_task(operator(DEPENDS, inputs="torch.randn(N, 8)", constants="N = 1 << 40\n", contract=contract))
    assert (facts.traced, facts.pointwise_ops > 0) == ("small", True)
    assert "that variant's" in facts.note
    assert facts.bytes < 1000


@pytest.mark.parametrize(
    ("task", "part"),
    [
        (operator("raise RuntimeError('no luck')"), "RuntimeError: no luck"),
        (operator(DEPENDS), "no small variant"),
        (operator("return x", "import a_library_that_is_absent"), "a_library_that_is_absent"),
        (operator("raise ValueError('again')", constants="N = 64\n", contract=Contract(variants={"small": {"N": 2}})),
         "the small variant fails: ValueError: again"),
    ],
    ids=["raises", "data_dependent", "import", "small_fails_too"],
)  # fmt: skip
def test_untraceable_tasks_have_zero_counts_and_a_note(task, part):
    facts = describe_task(task)
    assert (facts.traced, facts.ops, facts.flops, facts.bytes) == ("none", 0, 0.0, 0.0)
    assert part in facts.note


def test_one_process_for_all_and_a_new_one_after_a_crash(tmp_path):
    crash = operator("import os\n        os._exit(9)")
    prints = operator("print('noise', flush=True)\n        return x + 1")
    good = operator("return x + 1")
    first, second, third, fourth = describe([good, crash, prints, good], tmp_path)
    assert [facts.ops for facts in (first, third, fourth)] == [1, 1, 1]
    assert second.traced == "none"
    assert "ended with status 9" in second.note
    assert "noise" in (tmp_path / "facts.log").read_text()


def test_variants_by_process_are_those_derived_here(tmp_path):
    broken = OPERATOR.replace("torch.relu", "torch.rulu")
    assert ask_variants([OPERATOR, broken], tmp_path) == (derive_variants(OPERATOR), {})


def test_derived_variants_keep_the_program_valid():
    task = operator("return self.n(x)", "self.n = nn.GroupNorm(NUM_GROUPS, CHANNELS)",
                    "torch.randn(BATCH, CHANNELS, SIZE, SIZE)",
                    "BATCH = 128\nNUM_GROUPS = 8\nCHANNELS = 64\nSIZE = 256\n")  # fmt: skip
    found = derive_variants(task.source)
    assert all(values.get("CHANNELS", 64) % 8 == 0 and "NUM_GROUPS" not in values for values in found.values())
    assert found["odd"]["SIZE"] % 16


BUNDLED_FACTS = {
    "attention": ("full", 1, None, None), "conv1d": ("full", 1, 3, None), "conv2d_relu_bias": ("full", 3, 3, None),
    "cross_entropy": ("full", 1, None, None), "gelu": ("full", 1, None, None),
    "gemm_scale_leaky_relu": ("full", 3, None, None), "gru_last_hidden": ("full", 1, None, 512),
    "gru_sequence": ("full", 1, None, 512), "layer_norm": ("full", 1, None, None),
    "matmul_sigmoid_sum": ("full", 3, None, None), "rms_norm": ("full", 6, None, None),
    "softmax": ("full", 1, None, None), "square_matmul": ("full", 1, None, None),
    "sum_reduction": ("full", 1, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", BUNDLED_NAMES)
def test_bundled(project, name):
    (task,) = find_tasks(replace(BUNDLED, names=(name,)), (), project)
    facts = describe_task(task)
    assert (facts.traced, facts.ops, facts.kernel_size, facts.time_steps) == BUNDLED_FACTS[name]
    assert facts.dtype == task.contract.dtype
    # 20 us to 20 ms on a chip of 4 TB/s and 40 TFLOPS; a recurrence is bound by its timesteps instead.
    assert facts.time_steps or 20e-6 < max(facts.bytes / 4e12, facts.flops / 40e12) < 20e-3


@pytest.mark.parametrize("written", ["[3]", "[[3], {}]", "[[], {'width': 3}]"])
def test_arguments_of_a_model_may_be_named(written):
    task = operator("return F.relu(x)")
    source = task.source.replace("def __init__(self)", "def __init__(self, width)").replace(
        "return []", f"return {written}"
    )
    facts = describe_task(replace(task, source=source))
    assert (facts.traced, facts.ops) == ("full", 1)


@pytest.mark.parametrize(
    ("task", "moved"),
    [
        # 16 rows of 32 fp32 numbers are 2048 bytes; in and out.
        pytest.param(operator("return x * 2", inputs="torch.randn(16, 32)"), 4096, id="once-in-once-out"),
        pytest.param(operator("return x * x + x.t().t()", inputs="torch.randn(16, 32)"), 4096, id="read-thrice-once"),
        pytest.param(
            operator("return x[1:] - x[:-1]", inputs="torch.randn(16, 32)"), 2048 + 15 * 128, id="overlapping-parts"
        ),
        pytest.param(operator("return x[:4] * 2", inputs="torch.randn(16, 32)"), 2 * 4 * 128, id="only-a-part"),
        pytest.param(
            operator(
                "return F.embedding(x, self.w)",
                "self.w = nn.Parameter(torch.randn(1000, 32))",
                "torch.zeros(4, dtype=torch.int64)",
            ),
            4 * 8 + 2 * 4 * 128,
            id="rows-that-are-looked-up",
        ),
        pytest.param(
            operator("return x @ self.w + x @ self.w", "self.w = nn.Parameter(torch.randn(32, 8))"),
            4 * 128 + 32 * 32 + 4 * 32,
            id="weights-once",
        ),
    ],
)
def test_compulsory_bytes_count_each_needed_byte_once(task, moved):
    assert describe_task(task).bytes == moved
