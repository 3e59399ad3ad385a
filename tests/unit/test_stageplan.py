"""`engine.stageplan`: planted faults and what lint says of them, what is on record, and the command itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine import store
from engine.errors import MissingError
from engine.records import Contract, Operator, Task
from engine.settings import Match, Rule
from engine.stageplan import __main__ as command
from engine.stageplan.explain import explain
from engine.stageplan.lint import Plans, Severity, lint
from engine.stageplan.plans import placed
from engine.stageplan.recorded import Count, counts, on_record
from tests.golden.prompt_cases import CONV_FACTS, GRU_FACTS, NOTHING
from tests.support.compose import compose
from tests.support.synthetic_results import LOW, write_results

SETTINGS, _ = compose("backend=cuda")
BACKENDS = {name: compose(f"backend={name}")[0].backends[name] for name in ("cuda", "cpu")}
CATEGORY, STAGE = "fusion_memory", "fuse_normalization"


def rule(when, **more):
    return Rule(when, "because", **more)


def planted(category=CATEGORY, stage=STAGE, **changed):
    """The bundled plans with one stage changed: its own rules removed, these put in their place."""
    own = SETTINGS.categories[category].stages[stage]
    bare = replace(own, skip_when={}, exit_when={}, require={})
    stages = {**SETTINGS.categories[category].stages, stage: replace(bare, **changed)}
    categories = {**SETTINGS.categories, category: replace(SETTINGS.categories[category], stages=stages)}
    return Plans(replace(SETTINGS, categories=categories), BACKENDS)


def told(plans):
    return [(finding.severity, finding.path, finding.problem) for finding in lint(plans)]


def test_the_bundled_plans_are_clean():
    assert told(Plans(SETTINGS, BACKENDS)) == []


FAULT, WARNING = Severity.FAULT, Severity.WARNING
WHERE = f"categories.{CATEGORY}.stages.{STAGE}"


@pytest.mark.parametrize(
    ("changed", "severity", "path", "words"),
    [
        pytest.param(
            {"metrics": ("l2_hit_pct",), "skip_when": {"r": rule("l2_hit_pct > 250")}},
            FAULT,
            "skip_when.r.when",
            "compares l2_hit_pct with 250, outside its declared range 0 to 100 percent",
            id="limit-out-of-range",
        ),
        pytest.param(
            {"skip_when": {"r": rule("-1 > headroom")}}, FAULT, "skip_when.r.when", "with -1, outside", id="negative"
        ),
        pytest.param(
            {"skip_when": {"r": rule("speedup > 2 and speedup < 1")}},
            FAULT,
            "skip_when.r.when",
            "never skips the stage",
            id="never-fires",
        ),
        pytest.param(
            {"skip_when": {"r": rule("ops >= 0")}}, FAULT, "skip_when.r.when", "always skips the stage", id="always"
        ),
        pytest.param(
            {"exit_when": {"r": rule("speedup > 0")}}, FAULT, "exit_when.r.when", "no later stage runs", id="exits"
        ),
        pytest.param(
            {"require": {"r": rule("launches < 0")}}, FAULT, "require.r.when", "goes to repair", id="unfulfillable"
        ),
        pytest.param(
            {"require": {"r": rule("launches >= 0")}}, FAULT, "require.r.when", "demands nothing", id="empty-demand"
        ),
        pytest.param(
            {"skip_when": {"r": rule("conv_ops == 0")}},
            WARNING,
            "skip_when.r.when",
            "never skips the stage, for every operator that the category's match lets in",
            id="never-in-this-category",
        ),
        pytest.param(
            {"skip_when": {"a": rule("headroom < 2"), "b": rule("headroom >= 2")}},
            FAULT,
            "skip_when",
            "the stage never runs: a, b cover every case",
            id="rules-cover-everything",
        ),
        pytest.param(
            {"skip_when": {"a": rule("pointwise_ops + norm_ops == 0"), "b": rule("norm_ops > 0"),
                           "c": rule("conv_ops > 0 and norm_ops == 0 and pointwise_ops > 0")}},
            WARNING,
            "skip_when",
            "the stage never runs: a, b, c cover every case",
            id="rules-cover-the-category",
        ),
        pytest.param(
            {"require": {"r": rule("speedup > 1")}}, WARNING, "require.r.when", "not the candidate's", id="whose-score"
        ),
        pytest.param(
            {"metrics": ("launches", "launches")}, WARNING, "metrics", "launches more than once", id="listed-twice"
        ),
        pytest.param(
            {"metrics": ("stall_long_pct",), "skip_when": {"r": rule("stall_long_pct > 50", on_missing="fire")}},
            WARNING,
            "skip_when.r.on_missing",
            "on_missing: fire acts on every kernel of cpu, where nothing gives stall_long_pct",
            id="acts-where-nobody-measures",
        ),
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(changed, severity, path, words):
    found = [(level, problem) for level, place, problem in told(planted(**changed)) if place == f"{WHERE}.{path}"]
    assert any(level is severity and words in problem for level, problem in found), told(planted(**changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"skip_when": {"r": rule("norm_ops == 0")}},
        {"skip_when": {"a": rule("headroom < 2"), "b": rule("headroom > 2")}},
        {"exit_when": {"r": rule("failures >= 1")}},
        {"require": {"r": rule("launches <= 3")}},
        {"metrics": ("stall_long_pct",), "skip_when": {"r": rule("stall_long_pct > 50")}},
    ],
)
def test_a_sound_stage_has_no_finding(changed):
    assert told(planted(**changed)) == []


def test_an_exit_that_more_failures_than_drafts_would_need_never_fires():
    (finding,) = [f for f in told(planted(exit_when={"r": rule("failures >= 1 and failures == 0")}))]
    assert "never ends the plan" in finding[2]
    drafts = SETTINGS.categories[CATEGORY].stages[STAGE].budget.candidates
    found = told(planted(exit_when={"r": rule(f"failures > {drafts}")}))
    assert [(severity, problem.split(",")[0]) for severity, _, problem in found] == [(FAULT, "never ends the plan")]


def test_an_exit_after_the_last_stage_ends_nothing():
    last = list(SETTINGS.categories[CATEGORY].stages)[-1]
    found = told(planted(stage=last, exit_when={"r": rule("speedup > 3")}))
    assert [(severity, problem) for severity, _, problem in found] == [
        (WARNING, "ends nothing: no stage comes after this one")
    ]


def test_a_metric_that_nobody_spells_is_a_fault():
    name = "stall_long_pct"
    silent = replace(SETTINGS.metrics[name], spellings={})
    plans = planted(metrics=(name,), skip_when={"r": rule(f"{name} > 50")})
    plans = replace(plans, settings=replace(plans.settings, metrics={**plans.settings.metrics, name: silent}))
    problems = {path: problem for _, path, problem in told(plans) if path.startswith(WHERE)}
    assert "which no back-end can give: no profiler spells it" in problems[f"{WHERE}.skip_when.r.when"]
    assert f"lists {name}, which no profiler of any back-end spells" in problems[f"{WHERE}.metrics"]


def test_a_demand_for_more_confidence_than_there_is():
    name = "stall_long_pct"
    spelling = next(iter(SETTINGS.metrics[name].spellings.values()))
    weak = replace(SETTINGS.metrics[name], spellings={"ncu": replace(spelling, confidence=0.4, note="a stand-in")})
    plans = planted(metrics=(name,), skip_when={"r": rule(f"{name} > 50")}, min_confidence=0.5)
    plans = replace(plans, settings=replace(plans.settings, metrics={**plans.settings.metrics, name: weak}))
    assert any("at most 0.4 of the min_confidence 0.5" in problem for _, _, problem in told(plans))


@pytest.mark.parametrize(
    ("name", "match", "severity", "words"),
    [
        ("recurrent", Match("recurrent_ops > 1 and recurrent_ops < 2", 60), FAULT, "is never true"),
        ("recurrent", Match("ops >= 0", 60), FAULT, "is always true, so the classifier never gets to attention, comp"),
        ("fusion_compute", Match("matmul_ops >= 1", 30), WARNING, "and that of fusion_memory"),
    ],
)
def test_matches_against_each_other(name, match, severity, words):
    categories = {**SETTINGS.categories, name: replace(SETTINGS.categories[name], match=match)}
    if words.startswith("and that of"):
        other = replace(SETTINGS.categories["fusion_memory"], match=Match("conv_ops >= 1", 30))
        categories["fusion_memory"] = other
    found = told(Plans(replace(SETTINGS, categories=categories), BACKENDS))
    assert any(
        level is severity and path == f"categories.{name}.match.when" and words in problem
        for level, path, problem in found
    ), found


SKIP = SETTINGS.categories[CATEGORY].stages[STAGE].skip_when["nothing_to_fuse"].when


@pytest.mark.parametrize(
    ("count", "problem"),
    [
        pytest.param((12, 4, 0, 12), "never true in 12 recorded evaluations on 4 operators", id="never"),
        pytest.param((12, 4, 12, 0), "always true in 12 recorded evaluations on 4 operators", id="always"),
        pytest.param((12, 4, 0, 0), "never known in 12 recorded evaluations on 4 operators", id="unknown"),
        pytest.param((12, 4, 0, 5), "never true in 12 recorded evaluations on 4 operators", id="never-where-known"),
        pytest.param((12, 4, 1, 11), None, id="both"),
        pytest.param((9, 4, 0, 9), None, id="too-few"),
    ],
)
def test_what_is_on_record(count, problem):
    found = on_record(Plans(SETTINGS, BACKENDS), (Count(CATEGORY, STAGE, "skip", "nothing_to_fuse", SKIP, *count),))
    assert [finding.problem for finding in found] == ([] if problem is None else [problem])


@pytest.mark.parametrize(
    "count",
    [
        Count(CATEGORY, STAGE, "skip", "nothing_to_fuse", "norm_ops == 1", 50, 4, 0, 50),
        Count(CATEGORY, STAGE, "skip", "gone", SKIP, 50, 4, 0, 50),
        Count(CATEGORY, "gone", "skip", "nothing_to_fuse", SKIP, 50, 4, 0, 50),
        Count("gone", STAGE, "skip", "nothing_to_fuse", SKIP, 50, 4, 0, 50),
    ],
)
def test_rules_that_were_changed_since_say_nothing(count):
    assert list(on_record(Plans(SETTINGS, BACKENDS), (count,))) == []


def test_a_demand_that_always_held_is_no_finding():
    stage = "persistent_kernel"
    when = SETTINGS.categories["recurrent"].stages[stage].require["one_launch_per_timestep"].when
    row = ("recurrent", stage, "require", "one_launch_per_timestep", when)
    plans = Plans(SETTINGS, BACKENDS)
    assert list(on_record(plans, (Count(*row, 20, 2, 20, 0),))) == []
    assert [f.problem.split(" in ")[0] for f in on_record(plans, (Count(*row, 20, 2, 0, 20),))] == ["never true"]


def test_counts_come_from_the_database(tmp_path):
    results = write_results(tmp_path / "results")
    found = counts(results)
    (expected,) = store.query(results, "SELECT count(*) FROM rules").rows[0]
    assert sum(count.evaluations for count in found) == expected > 0
    assert counts(results / "results.duckdb") == found
    assert store.query(results, f"SELECT count(*) FROM rules WHERE run_id = '{LOW}'").rows[0][0] > 0


def test_without_data_there_is_nothing_on_record(tmp_path):
    assert counts(tmp_path) == ()
    with pytest.raises(MissingError, match="no results"):
        counts(tmp_path / "gone")


def test_faults_are_placed_in_files_and_overrides():
    plans = planted(skip_when={"r": rule("ops >= 0")})
    fault = next(finding.fault() for finding in lint(plans))
    (at_file,) = placed([fault], [])
    assert at_file.file == f"conf/category/{CATEGORY}.yaml"
    override = f"{WHERE}.skip_when.r.when=x"
    (at_override,) = placed([fault], [override])
    assert at_override.file == f"command line: {override}"


@pytest.mark.slow
def test_the_command_lints_every_plan(tmp_path, capsys):
    """That no plan has another fault shows in `make check`, too, which lints without this one."""
    assert command.main(["lint", "--data", str(tmp_path), "thresholds.served_l2_pct=800"]) == 2
    said = capsys.readouterr().out
    assert "thresholds.served_l2_pct = 800, outside its declared range 0 to 100" in said
    assert "2 faults, 0 warnings" in said, "that value, and the rule that can then never fire, are all that is wrong"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lint", "thresholds.floor_headrom=1"], "floor_headroom"),
        (["explain", "--category", "recurent"], "recurrent"),
        (["lint", "--data", "/nowhere/at/all"], "no results at /nowhere/at/all"),
    ],
)
def test_what_is_misspelt_is_named(arguments, words, capsys):
    assert command.main(arguments) == 2
    assert words in capsys.readouterr().err


def explained(*overrides, facts=None):
    settings, _ = compose(*overrides)
    return explain(settings, Operator(Task("t", "t", "", Contract(), "declared", "h"), facts or CONV_FACTS))


@pytest.mark.parametrize(
    ("overrides", "facts", "words"),
    [
        (("category=recurrent",), None, "t: recurrent (named)"),
        (("category=rounds", "task=bundled"), None, "each from the best so far, profiled anew: at most 40 model calls"),
        (("search.rules=observe",), None, "none is obeyed (search.rules=observe)"),
        (("search.audit.share=0.2", "llm=gpt"), None, "of skipped stages 20% run all the same, as an audit"),
        ((), NOTHING, "floor     unknown"),
        (("category=memory_intensive",), NOTHING, "the reference does not show it), does not act"),
        (("backend=cpu", "search.accept_estimates=false"), None, "speedup: estimates do not count"),
        (("backend=cpu", "category=compute_intensive"), None, "headroom: an estimate has none"),
        (("backend=cuda",), GRU_FACTS, "decided by launches_per_timestep"),
        (
            (
                "backend=cpu",
                "+categories.fusion_memory.stages.primary_conv.skip_when.at_floor.on_missing=fire",
                'categories.fusion_memory.stages.primary_conv.skip_when.at_floor.when="ops > 1 and dram_pct < 1"',
                "++categories.fusion_memory.stages.primary_conv.min_confidence=0.99",
            ),
            None,
            "acts all the same (on_missing: fire)",
        ),
    ],
)
def test_what_explain_tells(overrides, facts, words):
    assert words in explained(*overrides, facts=facts)


def test_a_stage_that_facts_skip_costs_no_call():
    told = explained("backend=cuda")
    _head, _, rest = told.partition("  fuse_normalization:")
    assert "skips: norm_ops = 0" in rest.partition("the stage does not run")[0]
    observed = explained("backend=cuda", "search.rules=observe")
    assert "the stage does not run" not in observed
