"""benchmarks.floors: the table from lines of recorded_speedups, its flags with explanations, and floors alone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from benchmarks import floors
from benchmarks.worklist import Lines, WorkList
from engine.backends.ceilings import known_rates
from engine.codec import encode
from engine.records import Contract, Facts, OpCost, Task

RATES = {"dram_gbps": 4000.0, "fp32_tflops": 50.0, "tf32_tflops": 300.0, "fp16_tflops": 800.0}
KNOWN = known_rates(RATES, "conf")
L2 = 60e6
# 8 GB: 2000 µs.
FACTS = Facts(1, 0, 0, 0, 0, 0, 1, 0, 0, None, None, 2e9, 8e9, 0.25, "float32", "full")
SOURCE = "N = 1024\n"


def row(us, policy="ieee", kind="measured", **more):
    times = None if us is None else {"us": {"candidate": us, "eager": 2500.0}, "kinds": {"candidate": kind}}
    verdict = {"policy": policy, "class": "ieee"}
    return {"id": "k", "kind": "problem", "task": "level1/a", "verdict": verdict, "times": times, **more}


def work(**facts):
    found = {f"level1/{name}": value for name, value in facts.items()}
    tasks = tuple(Task(name, name, SOURCE, Contract(), "derived", name) for name in found)
    return WorkList((), tasks, tuple(found.values()), (), (), (), (), ())


def test_a_row_holds_floor_kernel_and_headroom():
    made = floors.floor_row("level1/a", FACTS, KNOWN, L2, row(2400.0))
    assert (made["floor us"], made["kernel us"], made["headroom"]) == (2000.0, 2400.0, pytest.approx(1.2))
    assert (made["eager headroom"], made["flag"], made["explanation"]) == (pytest.approx(1.25), "", "")


@pytest.mark.parametrize("recorded", [None, row(None)])
def test_without_a_time_there_is_the_floor_alone(recorded):
    made = floors.floor_row("level1/a", FACTS, KNOWN, L2, recorded)
    assert made["floor us"] == 2000.0
    assert "headroom" not in made


def test_without_facts_there_is_the_reason():
    made = floors.floor_row("a", replace(FACTS, traced="none", note="it hangs"), KNOWN, L2, row(1.0))
    assert (made["floor us"], made["explanation"]) == (None, "it hangs")


def test_the_policy_under_which_a_kernel_was_accepted_gives_the_rate():
    product = replace(FACTS, matmul_ops=1, pointwise_ops=0, bytes=1e6, flops=3e11)
    strict = floors.floor_row("a", product, KNOWN, L2, row(9e3, "ieee"))
    loose = floors.floor_row("a", product, KNOWN, L2, row(9e3, "tf32"))
    assert (strict["floor us"], loose["floor us"]) == (pytest.approx(3000.0), pytest.approx(1000.0))


def costs(*names):
    return tuple(OpCost(name, "matmul" if name == "matmul" else "reduce", 1, 0.0, 0.0) for name in names)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        pytest.param(replace(FACTS, bytes=1e8, flops=0.0), "L2", id="small-output"),
        pytest.param(FACTS, "", id="nothing-explains-it"),
        pytest.param(
            replace(FACTS, bytes=1e6, flops=1e12, matmul_ops=1, costs=()), "", id="nothing-explains-a-product"
        ),
        pytest.param(
            replace(FACTS, bytes=1e6, flops=1e12, conv_ops=1, kernel_size=3), "Winograd", id="small-window"
        ),
        pytest.param(replace(FACTS, bytes=1e6, flops=1e12, conv_ops=1, kernel_size=7), "", id="large-window"),
        pytest.param(
            replace(FACTS, bytes=1e6, flops=1e12, matmul_ops=1, costs=costs("matmul", "sum")),
            "before it",
            id="reduced-product",
        ),
    ],
)  # fmt: skip
def test_a_flag_is_explained_or_stands_bare(facts, words):
    made = floors.floor_row("a", facts, KNOWN, L2, row(1.0))
    assert made["flag"] == "below"
    assert words in made["explanation"]
    assert bool(words) == bool(made["explanation"])


def test_the_tables_count_flags_and_put_the_lowest_headroom_first(tmp_path):
    lines = Lines(tmp_path / "lines.jsonl")
    lines.add(row(1000.0), {**row(3000.0), "id": "l", "task": "level1/b"}, {"id": "e", "kind": "error", "task": "x"})
    made = floors.tables(work(b=FACTS, a=FACTS, c=FACTS), lines, KNOWN, L2)
    assert [one["problem"] for one in made["Problems"]] == ["level1/a", "level1/b"]
    counted = {one["what"]: one["n"] for one in made["Totals"]}
    assert counted["with a timed kernel"] == 2
    assert (counted["below 0.9 of the floor"], counted["of these without an explanation"]) == (1, 1)
    alone = floors.tables(work(b=FACTS, a=FACTS, c=FACTS), None, KNOWN, L2)
    assert [one["problem"] for one in alone["Problems"]] == ["level1/a", "level1/b", "level1/c"]


def test_a_variant_is_a_task_with_other_sizes():
    task = Task("t", "t", SOURCE, Contract(variants={"small": {"N": 16}}), "declared", "hash")
    small = floors.at_variant(task, "small")
    assert (small.source, small.task_id, small.task_hash) == ("N = 16\n", "t@small", "hash@small")


def test_the_command_needs_no_gpu(tmp_path, monkeypatch):
    path = tmp_path / "work.json"
    path.write_text(json.dumps(encode(work(a=FACTS))))
    arguments = ["floors", "--work", str(path), "--out", str(tmp_path / "out"), "--backend", "cpu"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(floors, "stored", lambda *_: None)
    floors.main()
    made = json.loads((tmp_path / "out" / "floors.json").read_text())
    (problem,) = made["tables"]["Problems"]
    assert problem["floor us"] == pytest.approx(8e9 / 4300e3)
    monkeypatch.setattr(sys, "argv", [*arguments, "--speedups", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit, match="recorded_speedups first"):
        floors.main()
