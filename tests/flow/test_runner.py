"""Whole runs with a fake device and scripted replies: the order of a stage, promotion, rules, resume, late errors."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

import engine.run
from engine.errors import AwaitingReply, LlmError, LlmRefused
from engine.journal import read_events
from engine.records import Facts, Reply, Request, Usage
from engine.run import execute, foresee
from tests.support.compose import compose
from tests.support.fake_backend import FakeBackend

FACTS = Facts(
    ops=3,
    conv_ops=1,
    matmul_ops=0,
    norm_ops=0,
    pool_ops=0,
    reduce_ops=0,
    pointwise_ops=2,
    recurrent_ops=0,
    attention_ops=0,
    kernel_size=3,
    time_steps=None,
    flops=1e9,
    bytes=1e7,
    intensity=100.0,
    dtype="float32",
    traced="full",
)
TASK = "N = 8\nclass Model: ...\ndef get_inputs(): ...\ndef get_init_inputs(): ...\n"


def kernel(**marks: object) -> str:
    words = " ".join(f"{key}={value}" for key, value in marks.items())
    return f"```python\n# fake: {words}\nclass ModelNew: ...\n```"


class ScriptLlm:
    """Replies by `stage.role.attempt.sample`; `seen` counts what was really asked."""

    def __init__(self, replies: dict[str, str | Exception]) -> None:
        self.replies = replies
        self.seen: Counter[str] = Counter()
        self.prompts: dict[str, str] = {}

    def check(self) -> None:
        return None

    def complete(self, request: Request) -> Reply:
        slot = request.slot
        key = f"{slot.stage}.{slot.role}.{slot.attempt}.{slot.sample}"
        self.prompts[key] = request.messages[-1].content
        if key not in self.replies:
            raise LlmError(f"nothing scripted for {key}", kind="script_ended")
        self.seen[key] += 1
        answer = self.replies[key]
        if isinstance(answer, Exception):
            raise answer
        return Reply(answer, "stop", Usage(10, 5), 0.1, request.model, "scripted", "test")


@pytest.fixture
def go(tmp_path, monkeypatch):
    """Runs one task through fusion_memory; returns the events and the outcome."""
    task = tmp_path / "toy.py"
    task.write_text(TASK)
    monkeypatch.setattr(engine.run, "describe", lambda tasks, scratch: tuple(FACTS for _ in tasks))

    base = (
        "category=fusion_memory",
        "backend=cpu",
        "llm=scripted",
        "llm.script=unused.json",
        "task=path",
        f"task.path={task}",
        f"paths.results={tmp_path / 'results'}",
        "search.seeds=1",
        "search.strategy=false",
        "search.error_analysis=false",
    )

    def run(replies, *overrides, backend=None, llm=None):
        llm = llm or ScriptLlm(replies)
        device = backend or FakeBackend()
        monkeypatch.setattr(engine.run, "open_llm", lambda settings, root, usd_limit=None: llm)
        monkeypatch.setattr(engine.run, "open_backend", lambda *_: device)
        settings, tree = compose(*base, *overrides)
        outcome = execute(settings, tree)
        events = read_events(tmp_path / "results" / "runs" / outcome.run_id / "events.jsonl")
        return events, outcome, llm

    run.folder, run.base = tmp_path, base
    return run


def of(events, kind, **fields):
    return [e for e in events if e["kind"] == kind and all(e[k] == v for k, v in fields.items())]


SEED = {"seed.seed.0.0": kernel(us=200)}
FAST_STAGES = {
    **SEED,
    "primary_conv.optimise.0.0": kernel(us=80),
    "fuse_activation_pooling.optimise.0.0": kernel(us=40),
}


def test_a_plan_runs_to_its_end_and_keeps_the_fastest_kernel(go):
    events, outcome, _ = go(FAST_STAGES)
    end = of(events, "task_ended")[0]
    assert outcome.exit_code == 0
    assert (end["outcome"], round(end["speedup"], 3), end["headroom"]) == ("done", 2.5, 2.0)
    best = next((go.folder / "results").glob("runs/*/tasks/toy/best.py"))
    assert "us=40" in best.read_text()
    assert [e["outcome"] for e in of(events, "stage_ended")] == ["done", "skipped", "done"]


def test_a_slower_kernel_never_becomes_parent_or_best(go):
    slower = {**FAST_STAGES, "fuse_activation_pooling.optimise.0.0": kernel(us=500)}
    events, _, llm = go(slower)
    assert of(events, "task_ended")[0]["speedup"] == pytest.approx(1.25)
    assert [e["promoted"] for e in of(events, "promotion")] == [True, True, False]
    assert "us=80" in llm.prompts["fuse_activation_pooling.optimise.0.0"]


def test_exit_rule_ends_the_plan_with_its_reason(go):
    events, _, llm = go({**SEED, "seed.seed.0.0": kernel(us=1000), "primary_conv.optimise.0.0": kernel(us=900)})
    end = of(events, "task_ended")[0]
    assert end["outcome"] == "exited"
    assert "cuDNN" in end["why"]
    assert not [key for key in llm.seen if key.startswith("fuse")]
    fired = of(events, "rule", rule="small_conv")[0]
    assert (fired["fired"], fired["obeyed"], fired["operands"]["kernel_size"]) == (True, True, 3)


def test_observed_rules_fire_but_are_not_obeyed(go):
    replies = {**FAST_STAGES, "seed.seed.0.0": kernel(us=1000), "primary_conv.optimise.0.0": kernel(us=900)}
    replies["fuse_normalization.optimise.0.0"] = kernel(us=700)
    events, _, _ = go(replies, "search.rules=observe")
    rule = of(events, "rule", rule="small_conv")[0]
    assert (rule["fired"], rule["obeyed"]) == (True, False)
    assert [e["outcome"] for e in of(events, "stage_ended")] == ["done", "done", "done"]


def test_a_skip_by_facts_costs_no_profile(go):
    events, _, _ = go(FAST_STAGES)
    assert not of(events, "metric", stage="fuse_normalization")
    ended = of(events, "stage_ended", stage="fuse_normalization")[0]
    assert (ended["outcome"], ended["rule"]) == ("skipped", "nothing_to_fuse")


def test_estimates_are_unknown_to_rules_unless_accepted(go, monkeypatch):
    from engine.records import ScoreKind
    from tests.support import fake_backend

    monkeypatch.setattr(fake_backend, "ScoreKind", type("K", (), {"MEASURED": ScoreKind.ESTIMATED}))
    replies = {**FAST_STAGES, "seed.seed.0.0": kernel(us=1000), "primary_conv.optimise.0.0": kernel(us=900)}
    events, _, _ = go(replies, "search.accept_estimates=false")
    rule = of(events, "rule", rule="small_conv")[0]
    assert (rule["outcome"], rule["fired"], rule["missing"]) == ("unknown", False, ["speedup"])


def test_repair_sees_the_error_and_its_kernel_is_used(go):
    replies = {**FAST_STAGES, "seed.seed.0.0": kernel(reason="wrong_result"), "seed.repair.1.0": kernel(us=150)}
    events, _, llm = go(replies)
    assert "the fake judge says wrong_result" in llm.prompts["seed.repair.1.0"]
    assert [e["status"] for e in of(events, "verdict")][:2] == ["rejected", "correct"]
    first, second = of(events, "candidate")[:2]
    assert second["parent_id"] == first["candidate_id"]


def test_no_correct_seed_ends_the_task_and_the_run_still_succeeds(go):
    events, outcome, _ = go({"seed.seed.0.0": "no code here"})
    assert of(events, "task_ended")[0]["outcome"] == "unsolved"
    assert of(events, "reply_unusable")[0]["problem"] == "no_code"
    assert outcome.exit_code == 0


def test_a_violated_requirement_goes_to_repair_with_its_reason(go):
    replies = {
        "seed.seed.0.0": kernel(us=200),
        "hoist_input_product.optimise.0.0": kernel(us=190),
        "persistent_kernel.optimise.0.0": kernel(us=150, launches=512 * 3),
        "persistent_kernel.repair.1.0": kernel(us=90, launches=2),
    }
    global FACTS
    before, FACTS = FACTS, dataclasses.replace(FACTS, time_steps=512, recurrent_ops=1)
    try:
        events, _, llm = go(replies, "category=recurrent")
    finally:
        FACTS = before
    rules = of(events, "rule", rule_kind="require")
    assert [(r["outcome"], r["obeyed"]) for r in rules][:2] == [("false", True), ("true", False)]
    assert rules[0]["operands"]["launches_per_timestep"] == 3.0
    assert "launches_per_timestep" in llm.prompts["persistent_kernel.repair.1.0"]
    assert of(events, "task_ended")[0]["speedup"] == pytest.approx(100 / 90)


def test_an_error_late_in_a_task_keeps_the_kernel_and_the_batch_goes_on(go):
    other = go.folder / "zebra.py"
    other.write_text(TASK + "# another\n")
    replies = {**FAST_STAGES, "fuse_activation_pooling.optimise.0.0": kernel(us=40, boom=1)}
    events, outcome, _ = go(replies, f"task.path={go.folder}", backend=FakeBackend(fail_on="boom=1"))
    ends = of(events, "task_ended")
    assert [e["task_id"] for e in ends] == ["toy", "zebra"]
    assert (ends[0]["outcome"], ends[0]["speedup"]) == ("failed", 1.25)
    assert outcome.exit_code == 1
    assert of(events, "task_failed")[0]["error"] == "RuntimeError"


def test_waiting_sends_all_independent_prompts_and_continues(go):
    await_reply = AwaitingReply("no reply yet", where="mail")
    first = {"seed.seed.0.0": await_reply, "seed.seed.0.1": await_reply}
    events, outcome, llm = go(first, "search.seeds=2")
    assert (outcome.exit_code, set(llm.seen)) == (75, {"seed.seed.0.0", "seed.seed.0.1"})
    assert not of(events, "run_ended")
    replies = {**FAST_STAGES, "seed.seed.0.1": kernel(us=300)}
    events, outcome, _ = go(replies, "search.seeds=2")
    assert outcome.exit_code == 0
    assert of(events, "task_ended")[0]["outcome"] == "done"


def test_siblings_do_not_see_each_other_so_their_prompts_can_go_out_at_once(go):
    replies = {
        **FAST_STAGES,
        "seed.seed.0.0": kernel(reason="shape"),
        "seed.repair.1.0": kernel(reason="dtype"),
        "seed.repair.2.0": kernel(us=150),
        "seed.seed.0.1": kernel(us=200),
    }
    _, _, llm = go(replies, "search.seeds=2", "search.seed_repairs=2")
    assert "the fake judge says" not in llm.prompts["seed.seed.0.1"]
    assert "the fake judge says shape" in llm.prompts["seed.repair.2.0"]


def test_repeating_a_finished_run_pays_nothing_and_adds_no_event(go):
    events, _, _ = go(FAST_STAGES)
    again, outcome, llm = go(FAST_STAGES)
    assert [e["seq"] for e in again] == [e["seq"] for e in events]
    assert (outcome.exit_code, not llm.seen) == (0, True)


def test_a_swept_threshold_reuses_every_step_that_it_does_not_change(go):
    replies = {
        **FAST_STAGES,
        "seed.seed.0.0": kernel(us=1000, dram_pct=9),
        "primary_conv.optimise.0.0": kernel(us=900, dram_write_bytes=9),
    }
    log = go.folder / "log"
    go(replies, backend=FakeBackend(log))
    paid = log.read_text().count("\n")
    events, _, llm = go(replies, "thresholds.small_conv_speedup=0.1", backend=FakeBackend(log))
    assert of(events, "task_ended")[0]["outcome"] == "done"
    assert set(llm.seen) == {"fuse_activation_pooling.optimise.0.0"}
    assert log.read_text().count("\n") - paid < paid


def test_a_budget_stops_the_run_with_what_was_found(go):
    events, outcome, llm = go(FAST_STAGES, "search.budget.calls=2")
    assert sum(llm.seen.values()) == 2
    assert of(events, "task_ended")[0]["outcome"] == "budget"
    assert of(events, "task_ended")[0]["speedup"] == pytest.approx(1.25)
    assert of(events, "run_ended")[0]["outcome"] == "budget"
    assert outcome.exit_code == 0


def test_a_refused_key_ends_the_run_with_what_was_found(go):
    refused = LlmRefused("the key was refused", kind="auth")
    with pytest.raises(LlmRefused):
        go({**SEED, "primary_conv.optimise.0.0": refused})
    events = read_events(next((go.folder / "results").glob("runs/*/events.jsonl")))
    end = of(events, "task_ended")[0]
    assert (end["outcome"], end["speedup"]) == ("failed", 0.5)


def test_a_prompt_that_is_too_long_is_one_lost_draft(go):
    too_long = LlmRefused("too long", kind="context_window")
    events, outcome, _ = go({**FAST_STAGES, "primary_conv.optimise.0.0": too_long})
    assert of(events, "llm_failed")[0]["failure"] == "context_window"
    assert outcome.exit_code == 0
    assert of(events, "task_ended")[0]["speedup"] == pytest.approx(2.5)


def test_a_kernel_found_before_the_budget_ends_is_kept_whoever_its_siblings_are(go):
    replies = {"seed.seed.0.0": kernel(us=50), "seed.seed.0.1": kernel(us=40)}
    events, _, _ = go(replies, "search.seeds=2", "search.budget.calls=1")
    assert of(events, "task_ended")[0]["speedup"] == pytest.approx(2.0)


def test_a_kernel_found_before_a_sibling_breaks_the_device_is_kept(go):
    stage = "categories.fusion_memory.stages.primary_conv.budget.candidates=2"
    replies = {**SEED, "primary_conv.optimise.0.0": kernel(us=20), "primary_conv.optimise.0.1": kernel(us=1, boom=1)}
    events, _, _ = go(replies, stage, backend=FakeBackend(fail_on="boom=1"))
    end = of(events, "task_ended")[0]
    assert (end["outcome"], end["speedup"]) == ("failed", 5.0)


def test_with_the_budget_spent_the_other_tasks_are_ended_too(go):
    (go.folder / "zebra.py").write_text(TASK + "# another\n")
    events, _, _ = go(FAST_STAGES, f"task.path={go.folder}", "search.budget.calls=1")
    assert [e["outcome"] for e in of(events, "task_ended")] == ["budget", "budget"]


def test_a_kernel_without_a_time_does_not_block_the_ones_that_have_one(go):
    replies = {**FAST_STAGES, "seed.seed.0.0": kernel(us="none")}
    events, _, _ = go(replies)
    assert of(events, "promotion")[1]["why"] == "the best so far has no time"
    assert of(events, "task_ended")[0]["speedup"] == pytest.approx(2.5)


def test_estimates_promote_nothing_unless_accepted(go, monkeypatch):
    from engine.records import ScoreKind
    from tests.support import fake_backend

    monkeypatch.setattr(fake_backend, "ScoreKind", type("K", (), {"MEASURED": ScoreKind.ESTIMATED}))
    events, _, _ = go(FAST_STAGES, "search.accept_estimates=false")
    assert [e["promoted"] for e in of(events, "promotion")] == [True, False, False]


def test_an_unknown_reference_has_unknown_facts(go, monkeypatch):
    untraced = dataclasses.replace(FACTS, traced="none", conv_ops=0, pointwise_ops=0)
    monkeypatch.setattr(engine.run, "describe", lambda tasks, scratch: tuple(untraced for _ in tasks))
    replies = {**FAST_STAGES, "fuse_normalization.optimise.0.0": kernel(us=60)}
    events, _, _ = go(replies)
    rule = of(events, "rule", rule="nothing_to_fuse")[0]
    assert (rule["outcome"], rule["missing"]) == ("unknown", ["norm_ops"])


def test_an_observed_run_does_not_fail_on_a_rule_that_must_be_known(go):
    rule = "+categories.fusion_memory.stages.primary_conv.skip_when.at_floor.on_missing=fail"
    events, outcome, _ = go({**FAST_STAGES, "seed.seed.0.0": kernel(us="none")}, rule)
    assert (of(events, "task_failed")[0]["error"], outcome.exit_code) == ("EngineError", 1)
    events, outcome, _ = go({**FAST_STAGES, "seed.seed.0.0": kernel(us="none")}, rule, "search.rules=observe")
    assert outcome.exit_code == 0


def test_an_audit_leaves_no_mark_on_later_prompts(go):
    replies = {**FAST_STAGES, "fuse_normalization.optimise.0.0": kernel(us=10)}
    _, _, audited = go(replies, "search.audit.share=1.0")
    assert "fuse_normalization" not in audited.prompts["fuse_activation_pooling.optimise.0.0"]


def test_an_edited_task_is_run_again_by_the_same_command(go):
    go(FAST_STAGES)
    (go.folder / "toy.py").write_text(TASK.replace("N = 8", "N = 9"))
    events, _, llm = go(FAST_STAGES)
    assert llm.seen["seed.seed.0.0"] == 1
    assert len(of(events, "task_started")) == 2


def test_an_audited_skip_runs_and_never_promotes(go):
    replies = {**FAST_STAGES, "fuse_normalization.optimise.0.0": kernel(us=10)}
    events, _, _ = go(replies, "search.audit.share=1.0")
    ended = of(events, "stage_ended", stage="fuse_normalization")[0]
    assert ended["outcome"] == "audited"
    told = {stage.name: stage for stage in engine.run.foresee(compose(*go.base, "search.audit.share=1.0")[0])[0].stages}
    asked = of(events, "llm_call", stage="fuse_normalization")
    assert told["fuse_normalization"].least <= len(asked) <= told["fuse_normalization"].calls
    assert of(events, "candidate", stage="fuse_normalization")[0]["audit"] is True
    assert of(events, "task_ended")[0]["speedup"] == pytest.approx(2.5)


def test_seeds_never_see_a_parent_and_stages_see_the_history(go):
    replies = {
        **FAST_STAGES,
        "primary_conv.optimise.0.0": kernel(reason="shape"),
        "primary_conv.repair.1.0": kernel(us=70),
    }
    _, _, llm = go(replies)
    assert "the fake judge says shape" in llm.prompts["fuse_activation_pooling.optimise.0.0"]
    assert "us=" not in llm.prompts["seed.seed.0.0"]


@pytest.mark.parametrize(
    ("seeds", "label"),
    [
        (SEED, "- seed, seed: best so far"),
        ({"seed.seed.0.0": kernel(reason="shape"), "seed.repair.1.0": kernel(us=200)}, "- seed, repair: best so far"),
    ],
    ids=["seed", "repair"],
)
def test_the_history_names_the_role_that_wrote_a_kernel(go, seeds, label):
    _, _, llm = go({**FAST_STAGES, **seeds})
    assert label in llm.prompts["primary_conv.optimise.0.0"]
    assert "- primary_conv, optimise: best so far" in llm.prompts["fuse_activation_pooling.optimise.0.0"]


def test_prompts_show_the_failure_at_hand_once_and_earlier_ones_in_the_history(go):
    replies = {
        **FAST_STAGES,
        "primary_conv.optimise.0.0": kernel(reason="shape"),
        "primary_conv.repair.1.0": kernel(reason="dtype"),
        "primary_conv.repair.2.0": kernel(us=70),
    }
    _, _, llm = go(replies, "search.error_analysis=true")
    for role in ("error_analysis", "repair"):
        first, second = llm.prompts[f"primary_conv.{role}.1.0"], llm.prompts[f"primary_conv.{role}.2.0"]
        assert first.count("the fake judge says shape") == second.count("the fake judge says dtype") == 1
        assert "shape: the fake judge says shape" in first.partition("# What the judge says")[2]
        assert "- primary_conv, optimise: shape: the fake judge says shape" in second


def test_metrics_reach_the_prompt_with_parent_previous_and_baseline(go):
    replies = {
        "seed.seed.0.0": kernel(us=200, dram_write_bytes=111),
        "primary_conv.optimise.0.0": kernel(us=80, dram_write_bytes=222),
        "fuse_activation_pooling.optimise.0.0": kernel(us=40),
    }
    _, _, llm = go(replies)
    prompt = llm.prompts["fuse_activation_pooling.optimise.0.0"]
    lines = prompt.splitlines()
    values = lines[next(n for n, line in enumerate(lines) if line.startswith("- dram_write_bytes")) + 1]
    assert values.strip().startswith("best kernel now: 222; best before it: 111; PyTorch: not available")


def test_an_estimate_says_nothing_of_headroom(go, monkeypatch):
    from engine.records import ScoreKind
    from tests.support import fake_backend

    monkeypatch.setattr(fake_backend, "ScoreKind", type("K", (), {"MEASURED": ScoreKind.ESTIMATED}))
    events, _, _ = go({**FAST_STAGES, "seed.seed.0.0": kernel(us=20)}, "search.accept_estimates=true")
    rule = of(events, "rule", rule="at_floor")[0]
    assert (rule["outcome"], rule["missing"]) == ("unknown", ["headroom"])
    assert of(events, "rule", rule="small_conv")[0]["outcome"] == "false"


def test_a_forecast_names_the_plan_and_its_bound_on_calls(go):
    _events, _, _llm = go(FAST_STAGES)
    settings, _ = compose(*go.base, "search.seeds=2", "search.seed_repairs=1")
    (plan,) = foresee(settings)
    assert (plan.category, plan.seed_calls) == ("fusion_memory", 4)
    assert [stage.calls for stage in plan.stages] == [3, 0, 3]
    assert plan.calls == 10
