"""A kernel that is refused as it is confirmed was no find: not for the stage, its rules, training or the report."""

from __future__ import annotations

import json

import pytest

from engine.journal import read_events
from engine.report import rows
from engine.store import Scope, export_training, ingest, query, replay
from tests.support.synthetic_results import Run

RUN = "a" * 16
FIRST = ("seed", "s", None)
PAIR = (FIRST, ("tile", "t", 2.0), ("fuse", "f", 3.0))
ONE_STAGE = (FIRST, ("tile", "t", 2.0), ("tile", "u", 1.5), ("fuse", "f", None))
"""Stage, kernel and the paired ratio with which it became the best; None in a later stage: it did not."""


@pytest.fixture
def told(tmp_path):
    """Writes a run that observes its rules, whose kernels are confirmed with these outcomes, in this order."""

    def tell(drafts, confirmed, *, ended=True):
        run = Run(tmp_path, RUN, kind="measured", thresholds={})
        run.start("cuda", "H200", None)
        run.task("conv", "windows")
        folder = tmp_path / "runs" / RUN / "tasks" / "conv" / "candidates"
        folder.mkdir(parents=True)
        speedup = best = 1.0
        for stage in ("seed", "tile", "fuse"):
            gain = 1.0
            if stage != "seed":
                run.rule("conv", stage, "skip", "at_floor", "true", {"headroom": 2.0}, obeyed=False)
            for sample, (_, name, ratio) in enumerate(draft for draft in drafts if draft[0] == stage):
                (folder / f"{name}.py").write_text(name)
                gain *= ratio or 1.0
                more = {"promoted": stage == "seed" or ratio is not None, "ratio": ratio}
                speedup = best * gain
                run.draft("conv", stage, name, speedup, sample=sample, category="windows", **more)
            best *= gain
            if stage != "seed":
                run.stage_end("conv", stage, "done", best="b", speedup=best, gain=gain, category="windows")
        for name, outcome in confirmed:
            run.confirmation("conv", name, outcome, "crash" if outcome == "refused" else None)
        if ended:
            run.task_end("conv", "windows", "done", None, None)
            run.end(1, wall_s=1.0)
        run.journal.close()
        ingest(tmp_path)
        return tmp_path

    return tell


CASES = [
    pytest.param(PAIR, [("f", "confirmed")], {"tile": 2.0, "fuse": 3.0}, "", id="none"),
    pytest.param(PAIR, [("f", "undecided")], {"tile": 2.0, "fuse": 3.0}, "", id="undecided"),
    pytest.param(PAIR, [("f", "refused"), ("t", "confirmed")], {"tile": 2.0, "fuse": 1.0}, "f", id="one"),
    pytest.param(PAIR, [("f", "refused"), ("t", "refused")], {"tile": 1.0, "fuse": 1.0}, "ft", id="two"),
    pytest.param(ONE_STAGE, [("u", "refused")], {"tile": 2.0, "fuse": 1.0}, "u", id="in-an-earlier-stage"),
    pytest.param(ONE_STAGE, [("u", "refused"), ("t", "refused")], {"tile": 1.0, "fuse": 1.0}, "tu", id="all-of-one"),
    pytest.param(PAIR, [("f", "refused"), ("f", "confirmed")], {"tile": 2.0, "fuse": 3.0}, "", id="refused-no-more"),
]


@pytest.mark.parametrize(("drafts", "confirmed", "gains", "refused"), CASES)
def test_a_refused_kernel_is_no_find(told, drafts, confirmed, gains, refused):
    results = told(drafts, confirmed)
    finds = {
        stage: sum(made is not None and stage == at and name not in refused for at, name, made in drafts)
        for stage in gains
    }
    correct = {stage: sum(stage == at and name not in refused for at, name, _ in drafts) for stage in gains}
    sql = "SELECT stage, median_gain, correct, improved FROM stage_yield WHERE stage <> 'seed'"
    assert {row[0]: row[1:] for row in query(results, sql).rows} == {
        stage: (pytest.approx(gain), correct[stage], finds[stage]) for stage, gain in gains.items()
    }
    sql = "SELECT stage, false_skips, max_gain FROM false_skips"
    assert {row[0]: row[1:] for row in query(results, sql).rows} == {
        stage: (int(gain > 1), pytest.approx(gain)) for stage, gain in gains.items()
    }
    decisions = replay(results, "headroom < 9", "at_floor", Scope()).decisions
    assert {made.stage: made.gain_lost for made in decisions} == pytest.approx(gains)


@pytest.mark.parametrize(("drafts", "confirmed", "gains", "refused"), CASES)
def test_history_failures_and_training_say_that_it_was_refused(told, drafts, confirmed, gains, refused):
    results = told(drafts, confirmed)
    said = {
        name: ("rejected" if name in refused else "correct", name not in refused and (at == "seed" or made is not None))
        for at, name, made in drafts
    }
    rows_of = query(
        results, "SELECT candidate_id, status, promoted, reason, best_so_far FROM history ORDER BY seq"
    ).rows
    assert {name: (status, promoted) for name, status, promoted, *_ in rows_of} == said
    assert {name for name, *_, reason, _ in rows_of if reason == "crash"} == set(refused)
    assert rows_of[-1][-1] == pytest.approx(gains["tile"] * gains["fuse"])
    failed = query(results, "SELECT kind, reason, n, example FROM failures").rows
    found = [("rejected", "crash", 1, "crash")] * len(refused)
    assert sum(row[2] for row in failed) == len(found)
    assert {row[:2] for row in failed} == {row[:2] for row in found}
    path = export_training(results, results / "out").path
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {one["child"]["id"]: (one["verdict"]["status"], one["promoted"]) for one in records} == said
    assert {one["child"]["id"] for one in records if one["verdict"]["reason"] == "crash"} == set(refused)


@pytest.mark.parametrize(("drafts", "confirmed", "gains", "refused"), CASES)
@pytest.mark.parametrize("ended", [True, False])
def test_the_report_says_so_too(told, drafts, confirmed, gains, refused, ended):
    results = told(drafts, confirmed, ended=ended)
    (row,) = rows(read_events(results / "runs" / RUN / "events.jsonl"))
    assert {stage.name: stage.gain for stage in row.stages if stage.name in gains} == pytest.approx(gains)
    crashed = [point.candidate_id for point in row.points if (point.status, point.reason) == ("rejected", "crash")]
    assert sorted(crashed) == sorted(refused)
    kept = [name for at, name, made in drafts if name not in refused and (at == "seed" or made is not None)]
    assert [point.candidate_id for point in row.points if point.promoted] == kept
    assert row.best_id == (None if ended else kept[-1])


def test_an_audit_beside_a_refused_best_is_no_evidence(tmp_path):
    for number, outcome in enumerate(("confirmed", "refused")):
        run = Run(tmp_path, f"{number}" * 16, kind="measured", thresholds={})
        run.start("cuda", "H200", None)
        run.task("conv", "flat", text=outcome)
        run.draft("conv", "seed", f"{outcome}-best", 9.0, category="flat")
        run.rule("conv", "tile", "skip", "at_floor", "true", {"headroom": 1.0}, obeyed=True)
        run.draft("conv", "tile", f"{outcome}-found", 3.0, category="flat", audit=True, promoted=False)
        run.stage_end("conv", "tile", "audited", best=f"{outcome}-best", speedup=9.0, rule="at_floor", category="flat")
        run.confirmation("conv", f"{outcome}-best", outcome)
        run.end(1, wall_s=1.0)
    ingest(tmp_path)
    assert query(tmp_path, "SELECT skips, false_skips FROM false_skips").rows == ((1, 0),)
