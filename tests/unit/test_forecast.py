"""History of earlier runs, and what a forecast makes of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from engine.display.foretold import forecast_text
from engine.expectation import as_foretold, expected, foretell
from engine.forecast import forecast
from engine.history import History, Own, Taken, read_history, read_own
from engine.records import Contract, Operator, Task
from engine.rules import audited
from engine.settings import AuditSettings, Rule
from tests.flow.test_fresh import composed
from tests.flow.test_runner import FACTS


def call(role, tokens, usd, model="openai/m-2026", run_id="r", task_id="t"):
    return {
        "kind": "llm_call",
        "run_id": run_id,
        "task_id": task_id,
        "role": role,
        "model": model,
        "input_tokens": tokens,
        "output_tokens": 0,
        "cost_usd": usd,
        "latency_s": 2.0,
    }


def end(outcome="done", run_id="r", task_id="t"):
    return {"kind": "task_ended", "run_id": run_id, "task_id": task_id, "outcome": outcome}


def journal(results, run_id, events, torn=""):
    path = results / "runs" / run_id / "events.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events) + torn)


def test_medians_by_role_and_kind_with_their_n(tmp_path):
    events = [call("seed", 100, 0.1), call("seed", 300, None), call("seed", 200, 0.3), call("seed", 9, 9.0, "other")]
    journal(tmp_path, "r", [*events, end()], torn='{"kind":"llm_call","torn')
    ledger = tmp_path / "steps" / "ledger.jsonl"
    ledger.parent.mkdir()
    steps = [{"kind": "verdict", "cost": {"wall_s": wall}} for wall in (1.0, 5.0, 3.0)]
    ledger.write_text("\n".join(json.dumps(step) for step in steps) + "\n")
    found = read_history(tmp_path, "m")
    assert (found.roles["seed"].n, found.roles["seed"].tokens, found.roles["seed"].usd) == (3, 200, 0.2)
    assert found.roles["seed"].priced == 2
    assert (found.kinds["verdict"].n, found.kinds["verdict"].seconds) == (3, 3.0)
    assert found.calls_a_task == (3,)


def test_no_history_is_no_number(tmp_path):
    found = read_history(tmp_path, "m")
    assert (found.roles, found.kinds, found.calls_a_task) == ({}, {}, ())


def test_calls_a_task_are_one_number_a_task_of_runs_that_went_through_its_plan(tmp_path):
    """Task a asked for 2, 6 and 4 calls; what a budget, an error or a kill cut short is no plan; b asked for 3."""
    for run_id, asked, outcome in (
        ("1", 2, "done"),
        ("2", 6, "exited"),
        ("3", 4, "unsolved"),
        ("4", 1, "budget"),
        ("5", 1, "failed"),
        ("6", 1, None),
    ):
        calls = [call("seed", 1, None, run_id=run_id, task_id="a")] * asked
        journal(tmp_path, run_id, [*calls, *([end(outcome, run_id, "a")] if outcome else [])])
    journal(tmp_path, "7", [*[call("seed", 1, None, run_id="7", task_id="b")] * 3, end("done", "7", "b")])
    found = read_history(tmp_path, "m")
    assert sorted(found.calls_a_task) == [3, 4]
    told = forecast_text(foretell(SETTINGS, [], found, FRESH), found, None)
    assert "earlier calls a task: median 3.5, 3 to 4 (n=2 tasks)" in told


SETTINGS = composed()
FRESH = Own(0, 0, 0.0, closed=False, tasks={})
STAGES = list(SETTINGS.categories["fusion_memory"].stages)


def planned(*, seeds=2, repairs=3, rules="obey", strategy=False, skips=(), exits=()):
    """The plan of fusion_memory with two drafts and one repair a stage; `skips`, `exits`: rules of its first stage."""
    category = SETTINGS.categories["fusion_memory"]
    stages = {}
    for number, (name, stage) in enumerate(category.stages.items()):
        own = [{str(n): Rule(when, "why", "ignore") for n, when in enumerate(said)} for said in (skips, exits)]
        budget = replace(stage.budget, candidates=2, repairs=1)
        made = replace(stage, budget=budget, skip_when={}, exit_when={})
        stages[name] = replace(made, skip_when=own[0], exit_when=own[1]) if number == 0 else made
    told = {"rules": rules, "strategy": strategy, "error_analysis": False}
    search = replace(SETTINGS.search, seeds=seeds, seed_repairs=repairs, **told)
    return replace(SETTINGS, search=search, categories={"fusion_memory": replace(category, stages=stages)})


def foretold(settings):
    task = Task("t", "t", "", Contract(), "declared", "h" * 64)
    return forecast(settings, Operator(task, FACTS))


MAYBE, NEVER = "speedup < 0.5", "norm_ops > 100"


@pytest.mark.parametrize(
    ("plan", "least"),
    [
        pytest.param({"repairs": 9}, 2 + 2 * len(STAGES), id="nothing-cuts-it"),
        pytest.param({"repairs": 9, "skips": (MAYBE,)}, 2 + 2 * (len(STAGES) - 1), id="a-stage-may-be-skipped"),
        pytest.param({"repairs": 9, "skips": (NEVER,)}, 2 + 2 * len(STAGES), id="facts-say-it-is-not-skipped"),
        pytest.param({"repairs": 9, "exits": (MAYBE,)}, 2 + 2, id="the-plan-may-end"),
        pytest.param({"repairs": 9, "exits": (NEVER,)}, 2 + 2 * len(STAGES), id="facts-say-it-does-not-end"),
        pytest.param({"repairs": 9, "skips": (MAYBE,), "exits": (MAYBE,)}, 2, id="skipped-or-ended"),
        pytest.param({"repairs": 9, "skips": (MAYBE,), "rules": "observe"}, 2 + 2 * len(STAGES), id="observed"),
        pytest.param({"repairs": 9, "exits": (MAYBE,), "rules": "observe"}, 2 + 2 * len(STAGES), id="observed-exit"),
        pytest.param({"repairs": 9, "strategy": True}, 2 + 4 * len(STAGES), id="strategy"),
        pytest.param({"repairs": 0}, 2, id="no-seed-is-correct"),
        pytest.param({"repairs": 1}, 4, id="no-seed-is-correct-or-repaired"),
    ],
)
def test_the_least_calls_are_those_of_the_shortest_way(plan, least):
    found = foretold(planned(**plan))
    assert len(STAGES) >= 2
    assert found.least == least <= found.calls


SKIP, ALSO = "norm_ops == 0", "conv_ops == 1"


@pytest.mark.parametrize(
    ("skips", "drawn", "more", "calls"),
    [
        ((SKIP,), "", {}, (0, 0)),
        ((SKIP,), "0", {}, (2, 4)),
        ((SKIP,), "0", {"strategy": True}, (4, 6)),
        ((SKIP, ALSO), "1", {}, (0, 0)),
        ((NEVER, SKIP), "0", {}, (0, 0)),
        ((NEVER, SKIP), "1", {}, (2, 4)),
        ((MAYBE, SKIP), "1", {}, (0, 4)),
        ((MAYBE, SKIP), "0", {}, (0, 4)),
        ((MAYBE, SKIP), "01", {}, (2, 4)),
        (("dram_pct > 1", SKIP), "0", {}, (0, 0)),
        (("dram_pct > 1", SKIP), "1", {}, (2, 4)),
        ((SKIP,), "0", {"rules": "observe"}, (2, 4)),
    ],
    ids=[
        "not_drawn",
        "drawn",
        "with_strategy",
        "by_the_first_rule",
        "not_by_a_false_one",
        "by_the_true_one",
        "or_a_score_skips_it_first",
        "a_score_may_audit_it",
        "both_audit_it",
        "metrics_come_later",
        "metrics_come_later_drawn",
        "observed",
    ],
)
def test_a_stage_that_facts_skip_may_be_audited(monkeypatch, skips, drawn, more, calls):
    """`drawn`: the names of the rules whose skips the draw makes an audit."""
    monkeypatch.setattr("engine.forecast.audited", lambda settings, task_id, stage, rule: rule in drawn)
    stage = foretold(planned(skips=skips, **more)).stages[0]
    assert (stage.least, stage.calls) == calls
    text = forecast_text(foretell(planned(), [foretold(planned(skips=skips, **more))], PAST, FRESH), PAST, None)
    skipped, audit = f"{STAGES[0]}: skipped: why" in text, f"{STAGES[0]}: an audit, for a rule skips it (why)" in text
    assert (skipped, audit) == ((False, False) if "rules" in more else (calls[1] == 0, calls[1] > 0))


@pytest.mark.parametrize(
    ("share", "provider", "drawn"), [(0.0, "litellm", 0), (1.0, "litellm", 300), (1.0, "replay", 0)]
)
def test_the_audits_share_of_skips_is_drawn(share, provider, drawn):
    settings = replace(
        SETTINGS,
        search=replace(SETTINGS.search, audit=replace(SETTINGS.search.audit, share=share)),
        llm=replace(SETTINGS.llm, provider=provider),
    )
    assert sum(audited(settings, f"task{n}", "tile", "rule") for n in range(300)) == drawn


def test_a_fifth_of_the_skips_is_drawn_by_task_stage_rule_and_seed():
    def marks(*place, seed=0):
        settings = replace(SETTINGS, search=replace(SETTINGS.search, audit=AuditSettings(0.2, seed)))
        return [audited(settings, f"task{n}", *place) for n in range(1000)]

    assert 150 < sum(marks("tile", "rule")) < 250
    assert marks("tile", "rule") == marks("tile", "rule")
    others = [marks("fuse", "rule"), marks("tile", "other"), marks("tile", "rule", seed=1)]
    assert all(other != marks("tile", "rule") for other in others)


def test_the_least_cost_is_that_of_the_cheaper_shortest_way():
    settings = planned(repairs=1)
    task = foretold(settings)
    roles = {role: Taken(4, 1.0, tokens, 0.5, 4) for role, tokens in (("seed", 10), ("optimise", 10), ("repair", 99))}
    told = expected(settings, task, History("m", roles, {}, ()))
    # Two seeds and all drafts at 10 tokens are cheaper than two seeds with a repair of 99 each, though more calls.
    assert told.least.tokens == 2 * 10 + 2 * 10 * len(STAGES)
    assert told.least.usd == 0.5 * task.least
    assert told.most.tokens == 2 * 10 + 2 * 99 + len(STAGES) * (2 * 10 + 2 * 99)
    assert told.capped == ()


ROLES = {
    role: Taken(4, 1.0, tokens, usd, 4)
    for role, tokens, usd in (("seed", 10, 0.1), ("optimise", 20, 0.2), ("repair", 5, 0.1))
}
"""Two seeds and, in each stage, two drafts, each with a repair: 4 calls, 30 tokens, 0.4 USD, then 4, 50 and 0.6."""
PAST = History("m", ROLES, {}, ())


def limited(**limits):
    """The plan under these limits: words like task_calls, calls."""
    settings = planned(repairs=1)
    budget = settings.search.budget
    for name, limit in limits.items():
        level, _, what = name.rpartition("_")
        budget = replace(
            budget, **({level: replace(getattr(budget, level), **{what: limit})} if level else {what: limit})
        )
    return replace(settings, search=replace(settings.search, budget=budget))


@pytest.mark.parametrize(
    ("limits", "most", "capped"),
    [
        ({}, (4 + 4 * len(STAGES), 30 + 50 * len(STAGES), 0.4 + 0.6 * len(STAGES)), ()),
        ({"usd": 0.5}, (5, 50, 0.5), ("search.budget.usd",)),
        ({"usd": 0.0}, (0, 0, 0.0), ("search.budget.usd",)),
        ({"usd": 0.25}, (3, 25, 0.25), ("search.budget.usd",)),
        ({"calls": 3}, (3, 60, 0.6), ("search.budget.calls",)),
        ({"tokens": 45}, (9, 45, 0.9), ("search.budget.tokens",)),
        ({"tokens": 45, "usd": 0.5}, (5, 45, 0.5), ("search.budget.tokens", "search.budget.usd")),
        ({"tokens": 45, "calls": 2}, (2, 40, 0.4), ("search.budget.calls", "search.budget.tokens")),
        ({"task_calls": 3}, (3, 60, 0.6), ("search.budget.task.calls",)),
        (
            {"stage_calls": 1},
            (1 + len(STAGES), 10 + 20 * len(STAGES), 0.1 + 0.2 * len(STAGES)),
            ("search.budget.stage.calls",),
        ),
        ({"usd": 99.0, "calls": 99}, (4 + 4 * len(STAGES), 30 + 50 * len(STAGES), 0.4 + 0.6 * len(STAGES)), ()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_the_limits_of_the_budget_are_the_most_that_is_expected(limits, most, capped):
    settings = limited(**limits)
    told = foretell(settings, [foretold(settings)], PAST, FRESH)
    whole = told.whole
    assert (whole.most.calls, whole.most.tokens, whole.most.usd) == (most[0], most[1], pytest.approx(most[2]))
    assert whole.least.tokens <= whole.most.tokens
    assert whole.least.calls <= whole.most.calls
    assert whole.capped == capped
    text = forecast_text(told, PAST, None)
    assert all(name in text for name in capped)
    assert ("limited by" in text) == bool(capped)
    assert as_foretold(told, PAST)["in_all"]["capped_by"] == list(capped)


def test_what_the_run_paid_before_is_told_and_counts_under_its_limits():
    settings = limited(usd=0.5)
    told = foretell(settings, [foretold(settings)], PAST, Own(2, 30, 0.3, closed=False, tasks={}))
    assert told.whole.most.usd == pytest.approx(0.2)
    text = forecast_text(told, PAST, "there")
    assert "paid by this run before: 2 calls, 30 tokens, 0.3000 USD" in text
    assert "the prompts are in there" not in text, "none was rendered"


def test_a_limit_on_calls_is_told_without_a_history():
    settings = limited(calls=3)
    told = foretell(settings, [foretold(settings)], History("m", {}, {}, ()), FRESH)
    assert (told.whole.most.calls, told.whole.most.tokens) == (3, None)
    text = forecast_text(told, History("m", {}, {}, ()), None)
    assert "in all limited by search.budget.calls" in text
    assert "no history of model m" in text


@pytest.mark.parametrize(
    ("outcome", "closed", "text", "done"),
    [
        ("done", "done", "h" * 64, True),
        ("budget", "budget", "h" * 64, True),
        ("done", None, "h" * 64, True),
        ("budget", None, "h" * 64, False),
        ("failed", "failed", "h" * 64, False),
        (None, None, "h" * 64, False),
        ("done", "done", "edited", False),
    ],
)
def test_a_task_that_the_run_has_gone_through_costs_nothing(tmp_path, outcome, closed, text, done):
    head = {"run_id": "r", "task_id": "t"}
    events = [{**head, "kind": "task_started", "task_hash": text}]
    events += [{**head, "kind": "task_ended", "outcome": outcome}] if outcome else []
    events += [{**head, "task_id": None, "kind": "run_ended", "outcome": closed}] if closed else []
    journal(tmp_path, "r", events)
    usage = {"input_tokens": 9, "output_tokens": 1, "cost_usd": 0.25}
    paid = [{"run_id": run, "kind": "reply", "cost": {"usage": usage}} for run in ("r", "r", "other")]
    (tmp_path / "steps").mkdir()
    lines = [json.dumps(entry, separators=(",", ":")) for entry in paid]
    (tmp_path / "steps" / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    own = read_own(tmp_path, "r")
    assert (own.calls, own.tokens, own.usd) == (2, 20, 0.5)
    settings = planned()
    told = foretell(settings, [foretold(settings)], PAST, own)
    assert told.whole.done == done
    assert (told.whole.most.usd == 0) == done
    assert ("in all: this run has gone through it: nothing is left to pay" in forecast_text(told, PAST, None)) == done
    assert as_foretold(told, PAST)["tasks"][0]["expected"]["done"] == done
