"""A task that was edited, and a reply that was asked for again: what holds is the present text, and the last reply."""

from __future__ import annotations

import json

import pytest

from engine.errors import MissingError
from engine.journal import EVENTS, read_events
from engine.report import rows
from engine.report.detail import operators
from engine.store import Scope, export_training, ingest, query, replay
from tests.support.synthetic_results import USAGE, Run

A_RUN, B_RUN = "a" * 16, "b" * 16

TEXTS = {
    "A": {"drafts": 1},
    "B": {"drafts": 2},
    "same as A": {"drafts": 1, "like": "A"},
    "begun": None,
    "fired": {"drafts": 1, "fired": True},
    "undecided": {"drafts": 1, "undecided": True},
    "audited": {"drafts": 1, "fired": True, "audited": True},
}
"""What the run does for each text of the task: its drafts, whether its skip rule fires, and what comes of that."""

OF_A = {"calls": 1, "tokens": 1200, "attempts": 1, "evaluations": 1, "fired": 0, "skips": 0, "unjudged": 0, "plans": 1}
OF_B = {**OF_A, "calls": 2, "tokens": 2400, "attempts": 2}


def told(run, text):
    run.task("conv", "windows", text=text)
    if TEXTS[text] is None:
        return
    say = {"like": text, "fired": False, "undecided": False, "audited": False} | TEXTS[text]
    said = "true" if say["fired"] else "false"
    run.rule("conv", "tile", "skip", "at_floor", said, {"headroom": 2.0}, obeyed=say["audited"])
    for sample in range(say["drafts"]):
        name = f"{say['like']}-{sample}"
        run.draft("conv", "tile", name, 2.0, sample=sample, category="windows", audit=say["audited"])
        if say["undecided"]:
            fields = dict.fromkeys(EVENTS["verdict"]) | {"candidate_id": name, "status": "undecided"}
            run.journal.write("verdict", task_id="conv", stage="tile", **fields)
    outcome = "audited" if say["audited"] else "done"
    run.stage_end("conv", "tile", outcome, best="best", speedup=2.0, gain=2.0, category="windows", rule="at_floor")
    run.task_end("conv", "windows", "done", "best", 2.0)


def written(results, run_id, texts):
    run = Run(results, run_id, kind="measured", thresholds={})
    run.start("cuda", "H200", None)
    for text in texts:
        told(run, text)
    run.end(1, wall_s=1.0)
    ingest(results)


def one(results, sql):
    (row,) = query(results, sql).rows
    return row


def seen(results):
    """What the views and a replay of the rule tell of the stage, by name."""
    calls, tokens = one(
        results, "SELECT coalesce(sum(calls), 0), coalesce(sum(tokens), 0) FROM stage_cost WHERE stage = 'tile'"
    )
    (attempts,) = one(results, "SELECT coalesce(sum(attempts), 0) FROM stage_yield")
    evaluations, fired = one(results, "SELECT coalesce(sum(evaluations), 0), coalesce(sum(fired), 0) FROM rule_audit")
    (skips,) = one(results, "SELECT coalesce(sum(skips), 0) FROM false_skips")
    (total,) = replay(results, "headroom < 9", "at_floor", Scope()).totals
    assert (total.spent.calls, total.spent.tokens, total.evaluations) == (calls, tokens, evaluations)
    found = {"calls": calls, "tokens": tokens, "attempts": attempts, "evaluations": evaluations, "fired": fired}
    return found | {"skips": skips, "unjudged": total.unjudged, "plans": total.plans}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        pytest.param(["A"], OF_A, id="not-edited"),
        pytest.param(["A", "B"], OF_B, id="edited"),
        pytest.param(["A", "B", "A"], OF_A, id="edited-back"),
        pytest.param(["A", "same as A"], OF_A, id="what-no-prompt-shows"),
        pytest.param(["fired", "A"], OF_A, id="a-rule-true-of-the-first-alone"),
        pytest.param(["A", "fired"], {**OF_A, "fired": 1, "skips": 1}, id="a-rule-true-of-the-present"),
        pytest.param(["A", "undecided"], {**OF_A, "unjudged": 1}, id="only-the-first-was-judged"),
        pytest.param(["audited", "A"], OF_A, id="only-the-first-was-audited"),
    ],
)
def test_what_is_told_of_an_edited_task_is_of_its_present_text(tmp_path, texts, expected):
    written(tmp_path, A_RUN, texts)
    assert seen(tmp_path) == expected


def test_texts_of_two_runs_are_two_plans(tmp_path):
    written(tmp_path, A_RUN, ["A"])
    written(tmp_path, B_RUN, ["B"])
    assert seen(tmp_path) == {name: OF_A[name] + OF_B[name] for name in OF_A}


def test_an_edit_that_was_not_run_yet_leaves_nothing_of_the_text_before(tmp_path):
    written(tmp_path, A_RUN, ["A", "begun"])
    for view in ("stage_cost WHERE stage IS NOT NULL", "stage_yield", "rule_audit", "false_skips"):
        assert query(tmp_path, f"FROM {view}").rows == ()
    with pytest.raises(MissingError, match="no evaluation of a rule 'at_floor'"):
        replay(tmp_path, "headroom < 9", "at_floor", Scope())
    assert one(tmp_path, "SELECT calls FROM cost") == (1,), "it was paid"


def test_a_task_that_is_edited_back_adds_no_row_of_what_was_asked_or_found(tmp_path):
    sql = "SELECT (SELECT count(*) FROM llm_calls), (SELECT count(*) FROM candidates), (SELECT count(*) FROM verdicts)"
    written(tmp_path, A_RUN, ["A", "B"])
    before = one(tmp_path, sql)
    written(tmp_path, A_RUN, ["A", "B", "A"])
    assert one(tmp_path, sql) == before == (3, 3, 3)


SLOT = {"role": "optimise", "attempt": 0, "sample": 0}
CALL = {**USAGE, "cost_usd": 0.01, "latency_s": 2.0, "attempts": 1, "model": "m", "provider": "replay"}


def call(name, *, stage="tile", role="optimise", attempt=0, sample=0, tokens=1000, usd=0.01, latency_s=2.0, text="A"):
    slot = {"role": role, "attempt": attempt, "sample": sample}
    more = {"request_hash": name, "input_tokens": tokens, "cost_usd": usd, "latency_s": latency_s}
    return text, stage, dict.fromkeys(EVENTS["llm_call"]) | CALL | slot | more


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        pytest.param([call("p"), call("q", tokens=3000, usd=0.03)], (1, 3200, 0.03, 0), id="asked-again"),
        pytest.param([call("p"), call("p", latency_s=5.0)], (1, 1200, 0.01, 0), id="the-reply-was-gone"),
        pytest.param([call("p", usd=None), call("q")], (1, 1200, 0.01, 0), id="the-first-has-no-price"),
        pytest.param([call("p"), call("q", usd=None)], (1, 1200, None, 1), id="the-last-has-no-price"),
        pytest.param([call("p"), call("p", sample=1)], (2, 2400, 0.02, 0), id="samples"),
        pytest.param([call("p"), call("q", attempt=1)], (2, 2400, 0.02, 0), id="attempts"),
        pytest.param([call("p", role="strategy"), call("q")], (2, 2400, 0.02, 0), id="roles"),
        pytest.param([call("p"), call("p", stage="fuse")], (2, 2400, 0.02, 0), id="stages"),
        pytest.param([call("p"), call("q", text="B", tokens=3000)], (1, 3200, 0.01, 0), id="texts"),
        pytest.param([call("p"), call("q", text="B"), call("p")], (1, 1200, 0.01, 0), id="edited-back"),
    ],
)
def test_a_slot_that_was_asked_again_counts_once(tmp_path, calls, expected):
    """Views of what was paid count each call."""
    run = Run(tmp_path, A_RUN, kind="measured", thresholds={})
    run.start("cuda", "H200", None)
    stored = []
    for number, (text, stage, fields) in enumerate(calls):
        if number == 0 or text != calls[number - 1][0]:
            run.task("conv", "windows", text=text)
        stored.append(run.journal.write("llm_call", task_id="conv", stage=stage, **fields)["seq"])
    run.end(1, wall_s=1.0)
    ingest(tmp_path)
    found = one(
        tmp_path, "SELECT sum(calls), sum(tokens), sum(usd), sum(unpriced) FROM stage_cost WHERE stage IS NOT NULL"
    )
    assert found == (*expected[:2], expected[2] and pytest.approx(expected[2]), expected[3])
    whole = len(set(stored))
    assert one(tmp_path, "SELECT (SELECT sum(calls) FROM cost), (SELECT sum(calls) FROM llm_usage)") == (whole, whole)


def test_of_a_slot_that_was_asked_again_the_last_draft_is_the_stages(tmp_path):
    """The first pass found a correct kernel, the second one a wrong one in the same place."""
    run = Run(tmp_path, A_RUN, kind="measured", thresholds={})
    run.start("cuda", "H200", None)
    run.task("conv", "windows")
    run.rule("conv", "tile", "skip", "at_floor", "true", {"headroom": 2.0}, obeyed=True)
    for name, speedup in (("first", 9.0), ("last", None)):
        run.draft("conv", "tile", name, speedup, category="windows", audit=True, promoted=False)
    run.stage_end("conv", "tile", "audited", best="best", speedup=2.0, rule="at_floor", category="windows")
    run.task_end("conv", "windows", "done", "best", 2.0)
    run.end(1, wall_s=1.0)
    ingest(tmp_path)
    assert one(tmp_path, "SELECT attempts, correct FROM stage_yield WHERE stage = 'tile'") == (1, 0)
    assert one(tmp_path, "SELECT skips, false_skips, max_gain FROM false_skips") == (1, 0, 1.0)
    assert one(tmp_path, "SELECT count(*) FROM history") == (2,)


VERDICTS = {
    "no memory": ("undecided", "out_of_memory"),
    "wrong": ("rejected", "wrong_result"),
    "right": ("correct", None),
}


@pytest.mark.parametrize(
    ("said", "failures"),
    [
        pytest.param(["right"], 0, id="correct"),
        pytest.param(["no memory"], 1, id="undecided"),
        pytest.param(["no memory", "right"], 0, id="correct-at-last"),
        pytest.param(["no memory", "wrong"], 1, id="another-failure"),
        pytest.param(["right", "wrong"], 1, id="wrong-at-last"),
    ],
)
def test_of_a_candidate_that_was_judged_again_the_last_verdict_holds(tmp_path, said, failures):
    run = Run(tmp_path, A_RUN, kind="measured", thresholds={})
    run.start("cuda", "H200", None)
    run.task("conv", "windows")
    where = {"task_id": "conv", "stage": "tile"}
    run.journal.write("candidate", **where, **dict.fromkeys(EVENTS["candidate"]) | {"candidate_id": "k", "attempt": 0})
    for word in said:
        status, reason = VERDICTS[word]
        fields = {"candidate_id": "k", "status": status, "reason": reason, "message": word}
        run.journal.write("verdict", **where, **dict.fromkeys(EVENTS["verdict"]) | fields)
    run.end(1, wall_s=1.0)
    ingest(tmp_path)
    last = VERDICTS[said[-1]]
    assert one(tmp_path, "SELECT status, reason FROM history") == last
    assert query(tmp_path, "SELECT kind, reason, n, example FROM failures").rows == ((*last, 1, said[-1]),) * failures


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        pytest.param([("old", 2.0)], ("old", 2.0), id="one-device"),
        pytest.param([("old", 2.0), ("old", 3.0)], ("old", 2.0), id="paired-later"),
        pytest.param([("old", 2.0), ("new", 5.0)], ("new", 5.0), id="another-device"),
        pytest.param([("old", 2.0), ("new", 5.0), ("new", 6.0)], ("new", 5.0), id="paired-later-on-another-device"),
        pytest.param([("old", 2.0), ("new", 5.0), ("old", 2.0)], ("old", 2.0), id="back-on-the-first"),
        pytest.param([("old", 2.0), ("new", None)], ("old", 2.0), id="never-timed-on-the-other"),
    ],
)
def test_times_are_those_of_the_last_device(tmp_path, times, expected):
    """Device, and the speed-up that a kernel had there."""
    run = Run(tmp_path, A_RUN, kind="measured", thresholds={})
    for number, (device, speedup) in enumerate(times):
        run.start("cuda", device, None)
        if number == 0:
            run.task("conv", "windows")
            folder = tmp_path / "runs" / A_RUN / "tasks" / "conv" / "candidates"
            folder.mkdir(parents=True)
            (folder / "k.py").write_text("k")
        if speedup is not None:
            run.draft("conv", "seed", "k", speedup, category="windows")
    run.end(1, wall_s=1.0)
    ingest(tmp_path)
    device, speedup = expected
    found = one(tmp_path, "SELECT median_us, speedup, speedup_lo, best_so_far FROM history")
    assert found == pytest.approx((100 / speedup, speedup, speedup * 0.9, speedup))
    path = export_training(tmp_path, tmp_path / "out").path
    record = json.loads(path.read_text(encoding="utf-8"))
    assert (record["device"], record["median_us"]) == (device, pytest.approx(100 / speedup))
    assert record["speedup"]["value"] == speedup
    events = read_events(tmp_path / "runs" / A_RUN / "events.jsonl")
    (row,), (operator,) = rows(events), operators(events)
    assert [(point.speedup, point.lo) for point in row.points] == [(speedup, pytest.approx(speedup * 0.9))]
    assert row.vs_eager is not None
    assert row.vs_eager.value == speedup
    (candidate,) = operator.candidates
    assert candidate.timing["median_us"] == pytest.approx(100 / speedup)


def test_an_audit_is_compared_on_the_last_device(tmp_path):
    """On the first one the find was faster than the best, on the last one it is not."""
    run = Run(tmp_path, A_RUN, kind="measured", thresholds={})
    for device, best, find in (("old", 1.0, 3.0), ("new", 4.0, 2.0)):
        run.start("cuda", device, None)
        if device == "old":
            run.task("conv", "windows")
            run.rule("conv", "tile", "skip", "at_floor", "true", {"headroom": 2.0}, obeyed=True)
        run.draft("conv", "seed", "best", best, category="windows")
        run.draft("conv", "tile", "find", find, category="windows", audit=True, promoted=False)
        run.stage_end("conv", "tile", "audited", best="best", speedup=best, rule="at_floor", category="windows")
    run.end(1, wall_s=1.0)
    ingest(tmp_path)
    assert one(tmp_path, "SELECT skips, false_skips, max_gain FROM false_skips") == (1, 0, 0.5)
