"""What search.rules=observe makes besides its own path: no more than budgets allow, all that swept jobs need, and
never at the price of the task's own result."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

import tests.flow.test_fresh
from engine.errors import WorkerError
from engine.paths import Paths
from engine.rules import parse
from engine.settings import Rule
from engine.steps.listing import Filter
from engine.steps.prune import plan, remove
from engine.steps.stored import RECENT_S
from engine.store import Scope, ingest, replay
from engine.vocabulary import operands
from tests.flow.test_fresh import Lab, composed, threshold
from tests.flow.test_runner import kernel, of
from tests.support.fake_backend import FakeBackend

READ = {"dram_pct": 9, "dram_write_bytes": 9, "dram_read_bytes": 9}
FIRST, LAST = "primary_conv", "fuse_activation_pooling"
REPLIES = {
    "seed.seed.0.0": kernel(us=200, **READ),
    f"{FIRST}.optimise.0.0": kernel(us=80, **READ),
    f"{LAST}.optimise.0.0": kernel(us=40, **READ),
}


class Recorder(FakeBackend):
    """Keeps the time of each profiled kernel, and breaks where a kernel is paired with the seed of 200 us."""

    def __init__(self, broken=None):
        super().__init__()
        self.broken, self.profiled = broken, []

    def measure(self, operator, candidate, incumbent):
        if self.broken and candidate and incumbent and "us=40" in candidate.source and "us=200" in incumbent.source:
            raise self.broken
        return super().measure(operator, candidate, incumbent)

    def profile(self, operator, candidate, metrics):
        self.profiled.append(candidate and candidate.source)
        return super().profile(operator, candidate, metrics)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the scripted task with changed settings; the events and the model."""
    lab = Lab(tmp_path, monkeypatch)

    def go(change, replies=REPLIES, backend=None):
        monkeypatch.setattr(tests.flow.test_fresh, "REPLIES", replies)
        _, events, llm = lab.run(change, backend)
        return events, llm

    return go


def observed(settings):
    return replace(settings, search=replace(settings.search, rules="observe"))


def with_stage(settings, name, *, samples=1, repairs=0, **fields):
    category = settings.categories["fusion_memory"]
    budget = replace(category.stages[name].budget, candidates=samples, repairs=repairs)
    stages = {**category.stages, name: replace(category.stages[name], budget=budget, **fields)}
    return replace(settings, categories={**settings.categories, "fusion_memory": replace(category, stages=stages)})


def with_calls(settings, calls):
    budget = settings.search.budget
    limited = replace(budget, stage=replace(budget.stage, calls=calls))
    return replace(settings, search=replace(settings.search, budget=limited))


@pytest.mark.parametrize("require", [None, "launches < 2", "launches > 2"])
def test_a_stage_that_its_budget_cut_asks_for_nothing_more(run, require):
    rules = {"x": Rule(require, "why", "ignore")} if require else {}
    replies = {**REPLIES, f"{FIRST}.optimise.0.1": kernel(us=79), f"{FIRST}.optimise.0.2": kernel(us=78)}

    def change(settings):
        return with_calls(observed(with_stage(settings, FIRST, samples=3, repairs=2, require=rules)), 1)

    events, llm = run(change, replies)
    assert {key for key in llm.seen if key.startswith(FIRST)} == {f"{FIRST}.optimise.0.0"}
    assert not of(events, "llm_failed", stage=FIRST)
    assert "search.budget.stage.calls" in of(events, "stage_ended", stage=FIRST)[0]["why"]


def test_repairs_that_requirements_ask_for_have_a_stage_budget_of_their_own(run):
    rules = {"x": Rule("launches > 2", "why", "ignore")}
    repairs = {f"{FIRST}.repair.{number}.0": kernel(us=70 + number) for number in (1, 2, 3)}

    def change(settings):
        return with_calls(observed(with_stage(settings, FIRST, repairs=3, require=rules)), 2)

    _, llm = run(change, {**REPLIES, **repairs})
    assert sorted(key for key in llm.seen if "repair" in key and FIRST in key) == [
        f"{FIRST}.repair.1.0",
        f"{FIRST}.repair.2.0",
    ]


@pytest.mark.parametrize("error", [WorkerError("the worker died"), RuntimeError("the device broke")])
def test_what_breaks_on_another_path_leaves_the_tasks_result(run, error):
    events, _ = run(observed, backend=Recorder(error))
    (end,) = of(events, "task_ended")
    assert (end["outcome"], end["confirmed"], round(end["speedup"], 3)) == ("done", True, 2.5)
    assert end["why"] == f"all stages ended; other paths not all made: {type(error).__name__}: {error}"
    assert not of(events, "task_failed")
    assert of(events, "run_ended")[0]["outcome"] == "done"


def test_a_budget_that_ends_the_other_paths_is_told(run):
    rules = {"x": Rule("launches > 2", "why", "ignore")}

    def change(settings):
        budget = settings.search.budget
        limited = replace(budget, task=replace(budget.task, calls=4))
        settings = with_stage(settings, FIRST, repairs=2, require=rules)
        return observed(replace(settings, search=replace(settings.search, budget=limited)))

    events, llm = run(change, {**REPLIES, f"{FIRST}.repair.1.0": kernel(us=70), f"{FIRST}.repair.2.0": kernel(us=60)})
    (end,) = of(events, "task_ended")
    assert llm.seen[f"{FIRST}.repair.1.0"] == 1
    assert not llm.seen[f"{FIRST}.repair.2.0"]
    assert end["outcome"] == "done"
    assert "other paths not all made: search.budget.task.calls" in end["why"]


def test_a_requirement_that_must_be_known_loses_its_draft_only(run):
    rules = {"x": Rule("dram_pct > 1", "why", "fail")}
    replies = {**REPLIES, f"{FIRST}.optimise.0.0": kernel(us=80)}
    events, _ = run(lambda settings: observed(with_stage(settings, FIRST, require=rules)), replies)
    assert not of(events, "task_failed")
    assert of(events, "task_ended")[0]["why"] == "all stages ended"


def test_a_swept_job_pays_nothing_where_the_last_sample_of_a_sequential_stage_failed(run):
    """70 us is slower than the 60 of the stage before and faster than the 200 of the seed: only the path that leaves
    that stage out promotes it, and profiles it for a second sample that fails."""
    replies = {
        **REPLIES,
        f"{FIRST}.optimise.0.0": kernel(us=60, **READ),
        f"{LAST}.optimise.0.0": kernel(us=70, **READ),
    }
    skip = {"slow": Rule("speedup < thresholds.small_conv_speedup", "why", "ignore")}

    def plan(settings):
        return with_stage(with_stage(settings, FIRST, skip_when=skip), LAST, samples=2, sequential=True)

    run(lambda settings: observed(threshold(0.1)(plan(settings))), replies)
    swept = Recorder()
    events, _ = run(lambda settings: threshold(0.9)(plan(settings)), replies, swept)
    assert [e["outcome"] for e in of(events, "stage_ended")] == ["skipped", "skipped", "done"]
    assert of(events, "promotion")[-1]["promoted"]
    assert swept.profiled == []


class Counting(FakeBackend):
    def __init__(self):
        super().__init__()
        self.made = []

    def _count(self, what, operator, source):
        self.made.append(what)


@pytest.mark.parametrize("payer", ["itself", "a run that is gone"])
def test_pruning_keeps_what_a_sweep_over_an_observed_run_finds(tmp_path, monkeypatch, payer):
    """The first draft of the stage breaks its requirement, so that obeying jobs judge the repair, of which the journal
    of the observing run says nothing."""
    lab = Lab(tmp_path, monkeypatch)
    replies = {**REPLIES, f"{FIRST}.repair.1.0": kernel(us=70, launches=3, **READ)}
    monkeypatch.setattr(tests.flow.test_fresh, "REPLIES", replies)
    rules = {"x": Rule("launches > 2", "why", "ignore")}

    def plan_of(settings):
        return with_stage(settings, FIRST, repairs=1, require=rules)

    lab.run(lambda settings: observed(plan_of(settings)))
    steps = tmp_path / "results" / "steps"
    if payer != "itself":
        ledger = steps / "ledger.jsonl"
        lines = map(json.loads, ledger.read_text().splitlines())
        ledger.write_text("".join(json.dumps({**line, "run_id": "gone"}) + "\n" for line in lines))
    for path in steps.glob("*/??/*.json"):
        os.utime(path, (time.time() - 2 * RECENT_S,) * 2)
    remove(tmp_path / "results", plan(tmp_path / "results", Filter(), unreferenced=True))
    device = Counting()
    _, events, _ = lab.run(lambda settings: threshold(0.9)(plan_of(settings)), device)
    assert of(events, "candidate", role="repair"), "the swept job obeys the requirement"
    assert device.made == []


def test_a_requirement_replayed_over_an_observed_run_refuses_what_an_obeying_one_does(tmp_path, monkeypatch):
    lab = Lab(tmp_path, monkeypatch)
    replies = {**REPLIES, f"{FIRST}.optimise.0.1": kernel(us=60, launches=3, **READ)}
    monkeypatch.setattr(tests.flow.test_fresh, "REPLIES", replies)
    rules = {"many": Rule("launches > 2", "why", "ignore")}

    def plan_of(settings):
        return with_stage(settings, FIRST, samples=2, require=rules)

    lab.run(lambda settings: observed(plan_of(settings)))
    results = tmp_path / "results"
    ingest(results)
    made = replay(results, "launches > 2", "many", Scope())
    _, events, _ = lab.run(plan_of)
    refused = {e["candidate_id"] for e in of(events, "rule", rule="many") if e["obeyed"]}
    assert {d.candidate_id for d in made.decisions if d.effect == "refused"} == refused != set()
    assert [d.effect for d in made.decisions] == ["refused"]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("speedup < thresholds.floor_headroom", "maybe"),
        ("not speedup < thresholds.floor_headroom and norm_ops == 0", "maybe"),
        ("speedup - thresholds.floor_headroom > 0", "maybe"),
        ("thresholds.floor_headroom + thresholds.small_conv_speedup > 1e9", "maybe"),
        ("abs(speedup - thresholds.floor_headroom) < 0.1", "maybe"),
        ("thresholds.floor_headroom == 2", "maybe"),
        ("thresholds.floor_headroom != 2", "maybe"),
        ("thresholds.floor_headroom in [1, 2]", "maybe"),
        ("speedup / thresholds.floor_headroom > 1", "maybe"),
        ("thresholds.floor_headroom > 0.2 and thresholds.floor_headroom < 0.5", "maybe"),
        ("norm_ops > 0 and speedup < thresholds.floor_headroom", "no"),
        ("norm_ops == 0 or speedup < thresholds.floor_headroom", "yes"),
        ("headroom == thresholds.floor_headroom", "no"),
        ("norm_ops > 0", "no"),
    ],
)
def test_thresholds_that_turn_a_rule_more_than_once_leave_it_open(when, expected):
    settings = composed()
    expression = parse(when, operands(settings.metrics, settings.thresholds))
    walker = Paths.__new__(Paths)
    walker.runner = SimpleNamespace(drafter=SimpleNamespace(expressions={when: expression}))
    known = {"speedup": 0.5, "norm_ops": 0, "headroom": None}
    assert walker._chance({"x": Rule(when, "why", "ignore")}, "skip", known) == expected


def test_a_score_wins_over_the_metric_of_its_name(run):
    """The seed's metric headroom says 99, the score 4 after the first stage: the exit rule fires on no path."""
    never = {"far": Rule("headroom > 50", "why", "ignore")}

    def change(settings):
        for name in (LAST, "fuse_normalization"):
            settings = with_stage(settings, name, skip_when={})
        return observed(with_stage(settings, FIRST, metrics=("headroom", "dram_pct"), exit_when=never))

    confirmed = []

    class Confirming(FakeBackend):
        def confirm(self, operator, winner):
            confirmed.append(winner.source)
            return super().confirm(operator, winner)

    run(change, {**REPLIES, "seed.seed.0.0": kernel(us=200, headroom=99, **READ)}, Confirming())
    assert ["us=40" in source for source in confirmed] == [True], "no path ends with another kernel"
