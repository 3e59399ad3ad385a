"""Every category's plan through backend=ascend to its end, the CPU in the NPU's place and sample files for msprof's.

What this shows: the plan, the protocol of the processes, the ladder, the parsers, the journal and the database fit
together. It shows nothing about an NPU.
"""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest
import yaml

from engine import store
from engine.journal import read_events
from engine.run import execute
from tests.support.compose import compose
from tests.support.npu import stand_in
from tests.unit.test_ascend_backend import KERNEL, REFERENCE

ROOT = Path(__file__).resolve().parents[2]
PLANS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "conf" / "category").glob("*.yaml"))}
CATEGORIES = {name: tree for name, tree in PLANS.items() if "stages" in tree}


def reply(us: int) -> str:
    return f"```python\n{KERNEL.replace('us=40', f'us={us}').strip()}\n```"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A task, a script of replies, a stand-in, and one results folder: what one plan pays for the others find paid."""
    folder = tmp_path_factory.mktemp("ascend")
    (folder / "relu.py").write_text(REFERENCE)
    (folder / "relu.yaml").write_text("dtype: float32\nvariants:\n  small: {N: 100}\n  odd: {N: 257}\n")
    script = [{"text": reply(50), "slot": "*/seed/*"}, {"text": reply(40), "slot": "*/optimise.*"}]
    (folder / "script.json").write_text(json.dumps(script))
    return folder, stand_in(folder, runs=False)


def run(site, category: str, *overrides: str):
    folder, npu = site
    settings, tree = compose(
        f"category={category}",
        "backend=ascend",
        "llm=scripted",
        f"llm.script={folder / 'script.json'}",
        "task=path",
        f"task.path={folder / 'relu.py'}",
        f"paths.results={folder / 'results'}",
        "search.seeds=1",
        "search.strategy=false",
        "search.error_analysis=false",
        "judge.seeds=1",
        "judge.suites=[nominal]",
        "judge.confirm.variants=1",
        f"backends.ascend.ascend.python={npu.python}",
        "backends.ascend.ascend.device=cpu",
        "backends.ascend.ascend.warm_up=1",
        "backends.ascend.ascend.active=3",
        f"backends.ascend.profilers.msprof_op.path={npu.tools / 'msprof'}",
        f"backends.ascend.profilers.msprof.path={npu.tools / 'msprof'}",
        *overrides,
    )
    outcome = execute(settings, tree)
    return read_events(folder / "results" / "runs" / outcome.run_id / "events.jsonl"), outcome, settings


def of(events, kind: str):
    return [event for event in events if event["kind"] == kind]


def test_every_plan_runs_to_its_end(site):
    """One after another: the second judges nothing that the first has judged."""
    for category in CATEGORIES:
        runs_to_its_end(site, category)


def runs_to_its_end(site, category):
    """Rules are evaluated and not obeyed, so that each stage runs whatever the small operator's facts are."""
    events, outcome, settings = run(site, category, "search.rules=observe")
    assert outcome.exit_code == 0
    ended = of(events, "stage_ended")
    assert [event["stage"] for event in ended] == list(settings.categories[category].stages)
    assert {event["outcome"] for event in ended} == {"done"}
    (end,) = of(events, "task_ended")
    assert (end["outcome"], end["category"]) == ("done", category)
    assert (end["score_kind"], end["confirmed"]) == ("unverified", True)
    assert end["speedup"] == pytest.approx(100.02 / 40.02)
    spelled = {
        name
        for stage in settings.categories[category].stages.values()
        for name in stage.metrics
        if name in settings.metrics and "msprof_op" in settings.metrics[name].spellings
    }
    counted = {name for name in spelled if "trace" not in settings.metrics[name].spellings}
    tools = {event["metric"]: event["source"] for event in of(events, "metric") if event["candidate_id"]}
    # A vector kernel has no columns of the cube unit in msprof op; msprof's table says 0.
    assert {name: tools[name] for name in counted} == {
        name: "msprof" if name == "tensor_pct" else "msprof_op" for name in counted
    }


def test_a_metric_of_msprof_decides_a_rule(site):
    """The sample's dram_pct, 33 at confidence 0.6, fires a rule, and is not trusted where 0.7 is demanded."""
    stage = "categories.memory_intensive.stages.vectorise"
    rule = f"+{stage}.skip_when.idle={{when: 'dram_pct > 30 and dram_pct < 40', why: 'seen by msprof op'}}"
    events, *_ = run(site, "memory_intensive", rule)
    (fired,) = [event for event in of(events, "rule") if event["rule"] == "idle"]
    assert (fired["outcome"], fired["obeyed"]) == ("true", True)
    assert fired["operands"]["dram_pct"] == pytest.approx(33.44, abs=0.01)
    events, *_ = run(site, "memory_intensive", rule, f"+{stage}.min_confidence=0.7")
    (unknown,) = [event for event in of(events, "rule") if event["rule"] == "idle"]
    assert (unknown["outcome"], unknown["missing"]) == ("unknown", ["dram_pct"])


def test_the_sources_reach_the_database(site):
    folder, _ = site
    run(site, "generic", "search.rules=observe")
    store.ingest(folder / "results")
    with duckdb.connect(str(folder / "results" / "results.duckdb"), read_only=True) as base:
        found = base.execute("select distinct source from metrics where value is not null").fetchall()
        devices = base.execute("select distinct score_kind from timings where who = 'candidate'").fetchall()
    assert {"msprof_op", "msprof", "trace"} <= {source for (source,) in found}
    assert devices == [("unverified",)]


def test_without_msprof_the_plan_goes_on_with_torch_npus_profiler(site):
    absent = [f"backends.ascend.profilers.{name}.path=no-such-msprof" for name in ("msprof_op", "msprof")]
    events, outcome, _ = run(site, "memory_intensive", "search.rules=observe", *absent)
    assert outcome.exit_code == 0
    values = [event for event in of(events, "metric") if event["metric"] == "dram_pct" and event["candidate_id"]]
    assert {(event["source"], event["confidence"]) for event in values} == {("torch_npu", 0.3)}
    assert all("no-such-msprof is not an executable on PATH" in event["note"] for event in values)


def test_prompts_teach_the_npus_limits_and_show_what_was_counted(site):
    folder, _ = site
    _, outcome, _ = run(site, "memory_intensive", "search.rules=observe")
    prompts = [path.read_text() for path in (folder / "results" / "runs" / outcome.run_id).rglob("*.prompt.md")]
    seeds = [text for text in prompts if "triton-ascend" in text]
    assert seeds
    for words in (
        "Grid = number of cores",
        "vector cores (40)",
        "cube cores (20)",
        "196,608 bytes a vector core",
        "never\n",
    ):
        assert all(words in text for text in seeds), words
    assert any("33.4" in text for text in prompts)
