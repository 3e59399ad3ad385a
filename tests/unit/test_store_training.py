"""Training records: one for each judged change, with both sources, what was measured, and the licence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.decode import run_identity
from engine.store import export_training, ingest
from engine.tasks.licence import licence
from tests.support.synthetic_results import HIGH, LOW, Run, write_results

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The records and what was told; c3 of the first run has the parent c2, and was paired with it."""
    results = write_results(tmp_path_factory.mktemp("results"))
    for run, task, names in ((LOW, "conv", "c2 c3 c4"), (HIGH, "conv", "c1 c2"), (HIGH, "relu", "r1")):
        folder = results / "runs" / run / "tasks" / task
        (folder / "candidates").mkdir(parents=True)
        (folder / "reference.py").write_text(f"# {task}")
        for name in names.split():
            (folder / "candidates" / f"{name}.py").write_text(f"# {name}")
    path = results / "runs" / LOW / "events.jsonl"
    lines = []
    for event in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if event["kind"] == "task_started":
            event["licence"] = "MIT"
        if event["kind"] == "candidate" and event["candidate_id"] in ("c3", "c4"):
            event["parent_id"] = "c2" if event["candidate_id"] == "c3" else "c3"
        if event["kind"] == "promotion" and event["candidate_id"] == "c3":
            event["incumbent_id"] = "c2"
        lines.append(json.dumps(event))
        if event["kind"] == "ratio" and event["candidate_id"] == "c3":
            paired = {"over": "incumbent", "value": 1.9, "lo": 1.8, "hi": 2.0, "seq": 1000}
            lines.append(json.dumps({**event, **paired}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    ingest(results)
    told = export_training(results, results / "out")
    records = [json.loads(line) for line in told.path.read_text(encoding="utf-8").splitlines()]
    return told, {record["child"]["id"]: record for record in records}


def test_each_change_is_there_once(exported):
    told, records = exported
    assert set(records) == {"c1", "c2", "c3", "c4", "r1"}
    # c1, c2 and r1 are in both jobs of the sweep; c3 of the second, and both of the third run have no file.
    assert (told.records, told.repeated, told.left_out) == (5, 3, 3)


def test_a_paired_change(exported):
    record = exported[1]["c3"]
    assert record["change"] == {"how": "paired", "value": 1.9, "lo": 1.8, "hi": 2.0}
    assert record["over_best"] == {"id": "c2", "value": 1.9, "lo": 1.8, "hi": 2.0}
    assert (record["parent"]["id"], record["parent"]["source"], record["child"]["source"]) == ("c2", "# c2", "# c3")
    values = {value["metric"]: value["value"] for value in record["parent"]["metrics"]}
    assert values == {"launches": 2.0}, "a contradicted value is none"
    assert [value["metric"] for value in record["reference_metrics"]] == ["launches"]
    assert (record["stage"], record["promoted"], record["verdict"]["status"]) == ("tile", True, "correct")
    assert (record["task"]["licence"], record["task"]["source"], record["task"]["facts"]["ops"]) == ("MIT", "# conv", 3)


def test_a_repair_has_its_change_over_the_best_though_its_parent_never_ran(tmp_path):
    """c1 failed; c2 repairs it, is paired with the best b and takes its place."""
    run = Run(tmp_path, LOW, kind="measured", thresholds={})
    run.start("cuda", "H200", None)
    run.task("conv", "flat")
    for name, speedup, more in (("b", 1.0, {}), ("c1", None, {}), ("c2", 3.0, {})):
        run.draft("conv", "seed" if name == "b" else "tile", name, speedup, category="flat", **more)
        folder = tmp_path / "runs" / LOW / "tasks" / "conv" / "candidates"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(f"# {name}")
    paired = {"over": "incumbent", "value": 3.053, "lo": 3.0, "hi": 3.1, "n": 20}
    run.journal.write("ratio", task_id="conv", stage="tile", candidate_id="c2", **paired)
    run.end(1, wall_s=1.0)
    path = tmp_path / "runs" / LOW / "events.jsonl"
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for event in events:
        if event["kind"] == "candidate" and event["candidate_id"] != "b":
            event["parent_id"] = "b" if event["candidate_id"] == "c1" else "c1"
        if event["kind"] == "promotion" and event["candidate_id"] == "c2":
            event |= {"incumbent_id": "b", "ratio": 3.053}
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    ingest(tmp_path)
    lines = export_training(tmp_path, tmp_path / "out").path.read_text(encoding="utf-8").splitlines()
    found = {record["child"]["id"]: record for record in map(json.loads, lines)}
    assert (found["c2"]["parent"]["id"], found["c2"]["change"]) == ("c1", None)
    assert found["c2"]["over_best"] == {"id": "b", "value": 3.053, "lo": 3.0, "hi": 3.1}
    assert (found["b"]["over_best"], found["c1"]["over_best"]) == (None, None)


def test_a_change_from_two_speedups_is_as_wide_as_they_allow(exported):
    change = exported[1]["c4"]["change"]
    assert change["how"] == "apart"
    found = (change["value"], change["lo"], change["hi"])
    assert found == pytest.approx((3.0, 1.35 / 0.55, 1.65 / 0.45))
    assert (exported[1]["c4"]["audit"], exported[1]["c4"]["promoted"]) == (True, False)


def test_a_wrong_kernel_is_a_record_too(exported):
    record = exported[1]["c1"]
    assert (record["verdict"]["status"], record["verdict"]["reason"]) == ("rejected", "wrong_result")
    assert (record["parent"], record["change"], record["speedup"], record["score_kind"]) == (None, None, None, None)
    assert exported[1]["r1"]["speedup"] == {"value": 2.0, "lo": 1.8, "hi": 2.2}


@pytest.mark.parametrize(
    ("source", "collection", "expected"),
    [
        ("import torch", "bundled", "Apache-2.0"),
        ("import torch", "kernelbench", "MIT"),
        ("import torch", "path", None),
        ("# SPDX-License-Identifier: BSD-3-Clause\nimport torch", "path", "BSD-3-Clause"),
        ("import torch\n#SPDX-License-Identifier:  MIT OR Apache-2.0 \n", "bundled", "MIT OR Apache-2.0"),
    ],
)
def test_licence(source, collection, expected):
    assert licence(source, collection) == expected


def test_bundled_tasks_have_the_licence_of_the_project():
    assert f'license = "{licence("", "bundled")}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_label_makes_no_other_run():
    tree = {"run": {"mode": "run", "debug": False, "sweep": None, "label": None}, "llm": {"model": "m"}}
    assert run_identity({**tree, "run": {**tree["run"], "label": "base"}}) == run_identity(tree)
