"""Views that judge rules and list what happened, and the page that describes all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.journal import EVENTS, Journal
from engine.memo import Memo
from engine.store import ingest, query
from engine.store.describe import describe, meaning
from engine.store.views import MACROS, TABLE_MACROS
from engine.store.words import COLUMNS, MACRO_WORDS, RELATIONS
from tests.support.synthetic_results import HIGH, LOW, Run, write_results

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    results = write_results(tmp_path_factory.mktemp("results"))
    ingest(results)
    return results


def dicts(results, sql):
    answer = query(results, sql)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def audited(results, run_id, task, speedup, *, observed=None, kind="measured"):
    """A run whose one stage is skipped and audited: the best has 1.0, the audit found `speedup`, a score of `kind`.
    With `observed` the rule fires and nobody obeys: the stage ends with that gain."""
    run = Run(results, run_id, kind="measured", thresholds={})
    run.start("cuda", "H200", None)
    run.task(task, "flat")
    run.draft(task, "seed", f"{task}-best", 1.0, category="flat")
    run.rule(task, "tile", "skip", "at_floor", "true", {"headroom": 1.0}, obeyed=observed is None)
    more = {"rule": "at_floor", "category": "flat"} if observed is None else {"category": "flat", "gain": observed}
    run.kind = kind
    run.draft(task, "tile", f"{task}-found", speedup, category="flat", audit=observed is None, promoted=False)
    run.kind = "measured"
    outcome = "audited" if observed is None else "done"
    run.stage_end(task, "tile", outcome, best=f"{task}-best", speedup=1.0, **more)
    run.task_end(task, "flat", "done", f"{task}-best", 1.0)
    run.end(1, wall_s=1.0)


def test_false_skips_need_an_interval_above_the_best(tmp_path):
    """Intervals are ten per cent wide each way: 1.3 lies above the best, 1.1 does not; wrong code finds nothing."""
    for number, (task, speedup) in enumerate([("clear", 1.3), ("near", 1.1), ("slow", 0.5), ("wrong", None)]):
        audited(tmp_path, f"{number}" * 16, task, speedup)
    ingest(tmp_path)
    (row,) = dicts(tmp_path, "FROM false_skips")
    assert (row["rule"], row["evidence"], row["skips"], row["false_skips"]) == ("at_floor", "audited", 4, 1)
    assert row["rate"] == 0.25
    assert (row["median_gain"], row["max_gain"]) == (pytest.approx(1.05), pytest.approx(1.3))


def test_the_same_audit_of_several_runs_counts_once(tmp_path):
    for number in range(3):
        audited(tmp_path, f"{number}" * 16, "conv", 1.3)
    ingest(tmp_path)
    (row,) = dicts(tmp_path, "FROM false_skips")
    assert (row["skips"], row["false_skips"]) == (1, 1)


def test_equal_gains_of_fresh_drafts_count_each(tmp_path):
    """Code that is wrong, and drafts that nobody promotes, have the same gain in every run: what was drawn differs."""
    for number, found in enumerate(("one", "two", "two")):
        audited(tmp_path, f"{number}" * 16, "wrong", None)
        audited(tmp_path, f"{number + 3}" * 16, "slow", 0.9 + number // 2, observed=1.0)
        for run_id in (f"{number}" * 16, f"{number + 3}" * 16):
            path = tmp_path / "runs" / run_id / "events.jsonl"
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("wrong-found", f"wrong-{found}"), encoding="utf-8")
    ingest(tmp_path)
    found = {row["evidence"]: (row["skips"], row["max_gain"]) for row in dicts(tmp_path, "FROM false_skips")}
    # Two sources of three; one source whose time was taken twice, and once from the memo.
    assert found == {"audited": (2, 1.0), "observed": (2, 1.0)}


def test_a_find_of_another_kind_of_score_is_no_gain(tmp_path):
    audited(tmp_path, "0" * 16, "guess", 9.0, kind="estimated")
    audited(tmp_path, "1" * 16, "clear", 1.3)
    ingest(tmp_path)
    (row,) = dicts(tmp_path, "FROM false_skips")
    assert (row["score_kind"], row["skips"], row["max_gain"]) == ("measured", 1, pytest.approx(1.3))
    (rule,) = dicts(tmp_path, "FROM rule_audit")
    assert (rule["obeyed"], rule["audits"], rule["audited_gain_measured"]) == (2, 1, pytest.approx(1.3))


@pytest.mark.parametrize("observed", [None, 1.0])
@pytest.mark.parametrize("lost", ["draft", "verdict", "decision", "time"])
def test_without_a_judged_draft_a_skip_is_neither_right_nor_wrong(tmp_path, observed, lost):
    """The model did not answer, or the judge did not, or could not know, or the correct kernel has no time."""
    for number in range(2):
        audited(tmp_path, f"{number}" * 16, "conv" if number else "relu", 0.9, observed=observed)
    path = tmp_path / "runs" / ("1" * 16) / "events.jsonl"
    gone = {"draft": ("candidate", "verdict", "timing", "ratio", "promotion"), "verdict": ("verdict",), "decision": ()}
    gone |= {"time": ("timing", "ratio")}
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [event for event in events if event["stage"] != "tile" or event["kind"] not in gone[lost]]
    for event in kept:
        if lost == "decision" and event["kind"] == "verdict" and event["stage"] == "tile":
            event["status"] = "undecided"
    path.write_text("".join(json.dumps(event, separators=(",", ":")) + "\n" for event in kept), encoding="utf-8")
    ingest(tmp_path)
    (row,) = dicts(tmp_path, "FROM false_skips")
    assert (row["skips"], row["false_skips"]) == (1, 0)
    (rule,) = dicts(tmp_path, "FROM rule_audit")
    assert (rule["fired"], rule["audits"]) == (2, 0 if observed else 1)
    (stage,) = dicts(tmp_path, "FROM stage_yield WHERE stage = 'tile'")
    assert (stage["plans"], stage["median_gain"]) == (2, observed)
    unknown = dicts(tmp_path, "SELECT median_gain FROM stage_yield JOIN tasks USING (category) WHERE stage = 'seed'")
    assert {row["median_gain"] for row in unknown} == {None}


def test_audits_are_counted_alike(tmp_path):
    """Three runs took the same audit from the memo; a fourth found another one."""
    for number in range(3):
        audited(tmp_path, f"{number}" * 16, "conv", 1.3)
    audited(tmp_path, "3" * 16, "relu", 0.5)
    ingest(tmp_path)
    (row,) = dicts(tmp_path, "FROM false_skips")
    (rule,) = dicts(tmp_path, "FROM rule_audit")
    assert (row["skips"], rule["audits"], rule["obeyed"]) == (2, 2, 4)
    assert rule["audited_gain_measured"] == row["median_gain"]


def test_observed_rules_are_evidence_of_their_own(tmp_path):
    audited(tmp_path, "0" * 16, "conv", 1.3, observed=1.2)
    audited(tmp_path, "1" * 16, "relu", 0.9, observed=1.0)
    ingest(tmp_path)
    (row,) = dicts(tmp_path, "FROM false_skips")
    assert (row["evidence"], row["skips"], row["false_skips"], row["max_gain"]) == ("observed", 2, 1, 1.2)


@pytest.mark.parametrize(
    ("k", "n", "lower", "upper"),
    # R: prop.test(k, n, correct = FALSE)$conf.int
    [(0, 10, 0.0, 0.2775328), (5, 10, 0.2365931, 0.7634069), (1, 1, 0.2065493, 1.0), (20, 100, 0.1333669, 0.2888292)],
)
def test_wilson(filled, k, n, lower, upper):
    found = query(filled, f"SELECT wilson_lower({k}, {n}), wilson_upper({k}, {n})").rows[0]
    assert found == pytest.approx((lower, upper), abs=1e-6)


def test_of_none_and_of_all_an_end_is_that_of_all_shares(filled):
    ends = "min(wilson_upper(n, n)), max(wilson_upper(n, n)), max(wilson_lower(0, n))"
    assert query(filled, f"SELECT {ends} FROM range(1, 5000) AS t (n)").rows == ((1.0, 1.0, 0.0),)


def test_wilson_of_nothing_is_unknown(filled):
    assert query(filled, "SELECT wilson_lower(0, 0), wilson_upper(0, 0)").rows == ((None, None),)


@pytest.mark.parametrize(("p", "shares"), [(0, [1.0, 1.0, 0.5]), (0.4, [1.0, 0.5, 0.5]), (8, [0.0, 0.0, 0.0])])
def test_fast_p_counts_all_tasks(filled, p, shares):
    assert [row["fast_p"] for row in dicts(filled, f"FROM fast_p({p}) ORDER BY run_id")] == shares


def test_history_follows_the_best(filled):
    found = dicts(filled, f"FROM history WHERE run_id = '{LOW}' AND task_id = 'conv' ORDER BY seq")
    assert [(row["candidate_id"], row["status"], row["promoted"], row["best_so_far"]) for row in found] == [
        ("c1", "rejected", False, None),
        ("c2", "correct", True, 0.25),
        ("c3", "correct", True, 0.5),
        ("c4", "correct", False, 0.5),
    ]
    assert (found[3]["audit"], found[3]["speedup_lo"], found[0]["reason"]) == (
        True,
        pytest.approx(1.35),
        "wrong_result",
    )


def test_failures_have_their_reason_and_an_example(filled):
    found = {(row["kind"], row["reason"], row["category"]): row for row in dicts(filled, "FROM failures")}
    wrong = found["rejected", "wrong_result", "windows"]
    assert (wrong["n"], wrong["tasks"], wrong["runs"], wrong["example"]) == (2, 1, 2, "out[0] is 1, expected 2")
    assert (found["llm_failed", "timeout", "flat"]["n"], found["llm_failed", "timeout", "flat"]["role"]) == (
        1,
        "repair",
    )


def test_llm_usage_has_calls_and_what_went_wrong(filled):
    (seed,) = dicts(filled, f"FROM llm_usage WHERE run_id = '{LOW}' AND role = 'seed'")
    assert (seed["calls"], seed["input_tokens"], seed["usd"], seed["retries"]) == (3, 3000, pytest.approx(0.03), 0)
    (failed,) = dicts(filled, "FROM llm_usage WHERE failed > 0")
    assert (failed["role"], failed["calls"], failed["model"], failed["provider"]) == ("repair", 0, "m", "replay")


def test_another_prompt_than_the_recorded_one_is_no_call_that_failed(tmp_path):
    run = Run(tmp_path, LOW, kind="measured", thresholds={})
    run.start("cuda", "H200", None)
    run.task("conv", "flat")
    run.draft("conv", "seed", "best", 2.0, category="flat")
    for number, kind in enumerate(("prompt_drift", "advice_unreadable", "reply_unusable")):
        slot = {} if kind == "prompt_drift" else {"role": "seed", "attempt": number, "sample": 0}
        run.journal.write(kind, task_id="conv", stage="seed", **dict.fromkeys(EVENTS[kind]) | slot)
    run.end(1, wall_s=1.0)
    ingest(tmp_path)
    assert query(tmp_path, "SELECT role, calls, unusable, failed FROM llm_usage").rows == (("seed", 1, 1, 0),)


def test_stage_cost_is_model_and_judge(filled):
    found = {
        row["stage"]: row for row in dicts(filled, f"FROM stage_cost WHERE run_id = '{HIGH}' AND task_id = 'conv'")
    }
    seed = found["seed"]
    assert (seed["calls"], seed["tokens"], seed["model_s"], seed["judge_s"], seed["gpu_s"]) == (2, 2400, 4.0, 3.0, 0.5)
    assert (found[None]["calls"], found[None]["usd"], found[None]["judge_s"], found[None]["gpu_s"]) == (
        0,
        None,
        2.0,
        1.0,
    )
    costs = query(filled, "SELECT sum(tokens), (SELECT sum(tokens) FROM cost) FROM stage_cost").rows[0]
    assert costs[0] == costs[1]


def test_stage_cost_has_clock_and_profiler_from_the_steps_that_were_used(tmp_path):
    """The second run took all from the memo: its events tell what the steps took, its ledger has nothing."""
    for run_id, backend in (("a" * 16, "cuda"), ("b" * 16, "cpu")):
        run = Run(tmp_path, run_id, kind="measured", thresholds={})
        run.start(backend, "H200", None)
        run.task("conv", "flat")
        used = [(None, "baseline", 8.0), ("seed", "verdict", 1.5), ("seed", "timing", 4.0), ("tile", "profile", 0.5)]
        used += [("tile", "promotion", 2.0), ("tile", "tune", 3.0), (None, "confirm", 9.0)]
        for number, (stage, kind, wall_s) in enumerate(used):
            fields = {"step_kind": kind, "step": str(number) * 64, "wall_s": wall_s}
            run.journal.write("step", task_id="conv", stage=stage, **fields)
        run.draft("conv", "seed", "best", 2.0, category="flat")
        run.task_end("conv", "flat", "done", "best", 2.0)
        run.end(1, wall_s=1.0)
    ingest(tmp_path)
    columns = "judge_s, timing_s, profile_s, tune_s, seconds, judge_gpu_s, gpu_s"
    sql = f"SELECT stage, {columns} FROM stage_cost WHERE run_id = '{{}}' ORDER BY stage NULLS LAST"
    assert query(tmp_path, sql.format("a" * 16)).rows == (
        ("seed", 1.5, 4.0, 0.0, 0.0, 7.5, 0.25, 4.25),
        ("tile", 0.0, 2.0, 0.5, 3.0, 5.5, 0.0, 5.5),
        (None, 2.0, 8.0, 0.0, 0.0, 10.0, 1.0, 9.0),
    )
    assert [row[-1] for row in query(tmp_path, sql.format("b" * 16)).rows] == [0.25, 0.0, 1.0]
    found = query(tmp_path, "SELECT stage, seconds, gpu_s FROM stage_yield ORDER BY stage").rows
    assert found == (("seed", 15.0, 4.5), ("tile", 11.0, 5.5))


def test_an_older_journal_does_not_say_what_clock_and_profiler_took(filled):
    columns = "timing_s, profile_s, tune_s, seconds = model_s + judge_s, gpu_s = judge_gpu_s"
    sql = f"SELECT DISTINCT {columns} FROM stage_cost WHERE run_id IN ('{LOW}', '{HIGH}')"
    assert query(filled, sql).rows == ((None, None, None, True, True),)


def test_a_source_that_two_stages_drafted_was_judged_once(tmp_path):
    """The second verdict is the same step; one that the judge made anew, on another device, was paid for again."""
    run = Run(tmp_path, "a" * 16, kind="measured", thresholds={})
    run.start("cuda", "H200", None)
    run.task("conv", "flat")
    for stage in ("seed", "tile"):
        run.draft("conv", stage, "same", 2.0, category="flat")
    run.end(1, wall_s=1.0)
    ingest(tmp_path)
    sql = "SELECT stage, judge_s, gpu_s, (SELECT count(*) FROM verdicts) FROM stage_cost ORDER BY stage"
    assert query(tmp_path, sql).rows == (("seed", 1.5, 0.25, 2), ("tile", 0.0, 0.0, 2))
    path = tmp_path / "runs" / ("a" * 16) / "events.jsonl"
    first, _, last = path.read_text(encoding="utf-8").rpartition('"wall_s":1.5')
    path.write_text(f'{first}"wall_s":1.75{last}', encoding="utf-8")
    ingest(tmp_path)
    assert query(tmp_path, sql).rows == (("seed", 1.5, 0.25, 2), ("tile", 1.75, 0.25, 2))


def test_a_run_that_made_every_step_saved_nothing(tmp_path):
    """The ledger has more seconds than a verdict, for it counts the worker's start."""
    for run_id in ("a" * 16, "b" * 16):
        run = Run(tmp_path, run_id, kind="measured", thresholds={})
        run.start("cpu", "sm_90", None)
        run.task("conv", "flat")
        run.draft("conv", "seed", "best", 2.0, category="flat")
        memo = Memo(tmp_path / "steps", run_id)
        memo.step("facts", {"source": 1}, lambda: ("facts", {"wall_s": 9.0}))
        step = memo.step("verdict", {"source": 1}, lambda: ("verdict", {"wall_s": 4.5}))
        where = {"task_id": "conv", "stage": "seed"}
        run.journal.write("step", **where, step_kind="verdict", step=step.key, wall_s=4.5)
        run.end(1, wall_s=1.0)
    ingest(tmp_path)
    assert query(tmp_path, named_query("What the memo saved")).rows == (
        ("a" * 16, 1, 4.5, 1, 4.5, 0.0),
        ("b" * 16, 1, 4.5, 0, 0.0, 4.5),
    )


def test_a_job_that_went_on_for_an_edited_task_was_not_found(tmp_path):
    run = Run(tmp_path, "a" * 16, kind="measured", thresholds={})
    run.start("cuda", "H200", None)
    run.task("conv", "flat")
    run.end(1, wall_s=1.0)
    run.journal = Journal(tmp_path / "runs" / ("a" * 16) / "events.jsonl", "a" * 16)
    run.journal.write("sweep_job", sweep_id="late", job=0, overrides=[])
    ingest(tmp_path)
    assert query(tmp_path, "SELECT found, wall_s FROM sweep").rows == ((True, 0.0),)
    run.task("conv", "flat", text="edited")
    run.end(1, wall_s=2.0)
    ingest(tmp_path)
    assert query(tmp_path, "SELECT found, wall_s FROM sweep").rows == ((False, 3.0),)


def named_query(title):
    """The statement of docs/queries.sql whose title begins so."""
    text = (ROOT / "docs" / "queries.sql").read_text(encoding="utf-8")
    lines = text.partition(f"-- {title}")[2].partition(";")[0].splitlines()[1:]
    return "\n".join(line for line in lines if not line.startswith("--"))


@pytest.mark.parametrize(
    ("jobs", "cheapest"),
    [
        ([({"conv": 2.0}, 3), ({"conv": 1.99}, 2), ({"conv": 1.0}, 1)], 1),
        ([({"conv": 2.0, "relu": 2.0}, 3), ({"conv": 8.0, "relu": None}, 1)], 0),
        ([({"conv": 2.0}, 2), ({"conv": 2.0}, 2)], 0),
        ([({"conv": 1.9}, 1), ({"conv": 2.0}, 2)], 1),
    ],
    ids=["fewest_tokens_of_the_best", "a_job_that_solves_fewer", "equal_jobs", "too_slow"],
)
def test_the_cheapest_job_is_one_row(tmp_path, jobs, cheapest):
    """Of each job the speed-ups of its tasks, and how many drafts each task took."""
    for job, (speedups, drafts) in enumerate(jobs):
        run = Run(tmp_path, f"{job}" * 16, kind="measured", thresholds={})
        run.start("cuda", "H200", ("sweep1", job, []))
        for task, speedup in speedups.items():
            run.task(task, "flat")
            for sample in range(drafts):
                run.draft(task, "seed", f"{task}{sample}", speedup, sample=sample, category="flat")
            run.task_end(task, "flat", "done" if speedup else "unsolved", f"{task}0" if speedup else None, speedup)
        run.end(len(speedups), wall_s=1.0)
    ingest(tmp_path)
    assert [row["job"] for row in dicts(tmp_path, named_query("The cheapest job"))] == [cheapest]


@pytest.mark.parametrize(
    ("backend", "paid", "gpu_s", "judge_s"),
    [
        ("cuda", {}, 0.0, 0.0),
        ("cuda", {"reply": None, "facts": None}, 0.0, 0.0),
        ("cuda", {"verdict": 0.25, "timing": 0.5, "reply": None}, 0.75, 4.0),
        ("cuda", {"verdict": 0.25, "profile": None}, 0.25, 4.0),
        ("cuda", {"profile": None}, 0.0, 2.0),
        ("cuda", {"verdict": 0.25, "timing": None}, None, 4.0),
        ("cpu", {"verdict": 0.0, "timing": None}, 0.0, 4.0),
    ],
    ids=["nothing_paid", "no_judge", "held", "no_profile_tells", "a_profile_alone", "an_older_ledger", "no_gpu"],
)
def test_a_jobs_gpu_seconds_are_those_of_the_steps_it_paid_for(tmp_path, backend, paid, gpu_s, judge_s):
    run = Run(tmp_path, "a" * 16, kind="measured", thresholds={})
    run.start(backend, "H200", ("sweep1", 0, []))
    memo = Memo(tmp_path / "steps", "a" * 16)
    for kind, held in paid.items():
        cost = {"wall_s": 2.0} if held is None else {"wall_s": 2.0, "gpu_s": held}
        memo.step(kind, {"of": kind}, lambda cost=cost: ("outcome", cost))
    run.end(0, wall_s=9.0)
    ingest(tmp_path)
    sql = "SELECT gpu_s, judge_s FROM sweep ORDER BY sweep_id"
    assert query(tmp_path, sql).rows == ((gpu_s, judge_s),)
    journal = Journal(tmp_path / "runs" / ("a" * 16) / "events.jsonl", "a" * 16)
    journal.write("sweep_job", sweep_id="sweep2", job=0, overrides=[])
    journal.close()
    ingest(tmp_path)
    assert query(tmp_path, sql).rows == ((gpu_s, judge_s), (0.0, 0.0)), "a job that finds its run ended pays nothing"


@pytest.mark.parametrize(
    ("marks", "outcome", "wall_s"),
    [
        ("start", "unfinished", None),
        ("start done", "done", 1.0),
        ("start done start", "unfinished", 1.0),
        ("start done start failed", "failed", 3.0),
        ("start failed done", "done", 3.0),
        ("done", "done", 1.0),
    ],
    ids=["never_ended", "ended", "begun_again", "ended_again", "tried_again", "without_tasks"],
)
def test_a_run_has_ended_when_no_task_was_started_after_its_end(tmp_path, marks, outcome, wall_s):
    """An edited task begins again; what its run said before is not its end. `wall_s`: of commands that ended."""
    run = Run(tmp_path, "a" * 16, kind="measured", thresholds={})
    run.start("cuda", "H200", ("sweep1", 0, []))
    walls = iter((1.0, 2.0))
    for number, mark in enumerate(marks.split()):
        if mark == "start":
            run.task("conv", "flat", text=str(number))
        else:
            run.journal.write("run_ended", outcome=mark, tasks=1, failed=[], wall_s=next(walls))
    run.journal.close()
    ingest(tmp_path)
    ended = outcome != "unfinished"
    assert query(tmp_path, "SELECT outcome, ended IS NOT NULL, wall_s FROM runs").rows == ((outcome, ended, wall_s),)
    if "start" in marks:
        assert query(tmp_path, "SELECT outcome, wall_s FROM sweep").rows == ((outcome, wall_s),)


def test_the_schema_is_described_as_it_is():
    """Make it anew: python -m engine.results schema > docs/schema.md."""
    assert (ROOT / "docs" / "schema.md").read_text(encoding="utf-8") == describe()


def test_no_word_of_the_schema_is_left_over(filled):
    sql = "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND NOT starts_with(table_name, '_')"
    columns = query(filled, sql).rows
    relations = {relation for relation, _ in columns}
    assert set(RELATIONS) == relations
    used = {f"{relation}.{column}" for relation, column in columns} | {column for _, column in columns}
    assert set(COLUMNS) <= used
    assert set(MACRO_WORDS) == {*MACROS, *TABLE_MACROS}
    assert meaning("sweep", "outcome") != meaning("runs", "outcome")
