"""Writes classification.csv: `python -m tests.golden.make_classification ../shared/data/kernelbench.parquet`.

Every line was read against its problem; read the lines that change before you keep them.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

import yaml

from engine.classify import classify
from engine.records import Facts, Task
from engine.settings import Category, Match
from engine.tasks.sources import from_dataset

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("classification.csv")
COUNTS = ("ops", "conv_ops", "matmul_ops", "norm_ops", "pool_ops", "reduce_ops", "pointwise_ops", "recurrent_ops")
FACTS = (*COUNTS, "attention_ops", "kernel_size", "time_steps")
HEADER = ("level", "problem_id", "name", "category", "traced", *(fact.removesuffix("_ops") for fact in FACTS))
WORKERS = 2


def categories() -> dict[str, Category]:
    """The categories of conf/category that have a match rule, without their stages."""
    found = {}
    for file in sorted((ROOT / "conf" / "category").glob("*.yaml")):
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        if tree.get("match"):
            match = Match(tree["match"]["when"], tree["match"]["priority"])
            found[file.stem] = Category(tree["description"], match, (), {})
    return found


def rows(tasks: Sequence[Task]) -> list[dict[str, str]]:
    """One row a task, in order, from two processes."""
    halves = [tasks[n::WORKERS] for n in range(WORKERS)]
    with get_context("spawn").Pool(WORKERS) as pool:
        traced = pool.map(_facts, halves)
    plans = categories()
    facts = {task.task_id: found for half, answers in zip(halves, traced, strict=True)
             for task, found in zip(half, answers, strict=True)}  # fmt: skip
    return [_row(task, facts[task.task_id], plans) for task in tasks]


def _facts(tasks: Sequence[Task]) -> list[Facts]:
    import torch

    from engine.tasks.facts import describe_task

    torch.set_num_threads(1)
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    return [describe_task(task) for task in tasks]


def _row(task: Task, facts: Facts, plans: dict[str, Category]) -> dict[str, str]:
    values = [getattr(facts, name) for name in FACTS]
    texts = ["" if value is None else str(value) for value in values]
    head = [str(task.level), str(task.number), task.name, classify(facts, plans).category, facts.traced]
    return dict(zip(HEADER, head + texts, strict=True))


def text(table: Sequence[dict[str, str]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


if __name__ == "__main__":
    TABLE.write_text(text(rows(from_dataset(sys.argv[1]))), encoding="utf-8")
