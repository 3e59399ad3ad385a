from __future__ import annotations

import csv
import json
import math
import xml.etree.ElementTree as ElementTree

import pytest

from engine.report import rows, summary, write_reports
from engine.report.__main__ import main
from engine.report.detail import operators
from engine.report.figure import score_curve
from engine.report.rows import Score
from tests.support.sample_journal import RUN, Writer, call, draft, end, promote, sample_events, start

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def by_task():
    return {row.task_id: row for row in rows(sample_events())}


def test_rows_keep_the_order_of_the_journal():
    assert [row.task_id for row in rows(sample_events())] == ["alpha", "level1/beta", "gamma", "delta"]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("alpha", {"outcome": "done", "solved": True, "tokens": 450, "calls": 3, "named": False}),
        ("level1/beta", {"outcome": "done", "solved": True, "tokens": 150, "calls": 1, "named": True}),
        ("gamma", {"outcome": "failed", "solved": False, "tokens": 0, "why": "WorkerError: worker died"}),
        ("delta", {"outcome": "waiting", "solved": False, "why": "for replies in box/out"}),
    ],
    ids=["solved", "named", "failed", "waiting"],
)
def test_row_fields(by_task, task, expected):
    assert {name: getattr(by_task[task], name) for name in expected} == expected


def test_interval_is_that_of_the_candidates_own_measurement(by_task):
    assert by_task["alpha"].vs_eager == Score("eager", 2.0, 1.9, 2.1)
    assert by_task["alpha"].vs_fastest == Score("compile", 1.6, 1.4, 1.8)


def test_a_value_without_its_ratio_has_no_interval():
    write = Writer()
    start(write, "t", "c")
    end(write, "t", "done", "k", 3.0)
    assert rows(write.events)[0].vs_eager == Score("eager", 3.0)


def test_unknown_price_makes_the_cost_unknown_not_zero(by_task):
    assert by_task["alpha"].cost_usd == pytest.approx(0.03)
    assert by_task["level1/beta"].cost_usd is None


def test_stages_say_what_happened(by_task):
    told = [(s.name, s.outcome, s.rule, s.gain, s.correct, s.candidates, s.repairs) for s in by_task["alpha"].stages]
    assert told == [
        ("seed", "done", None, None, 1, 2, 1),
        ("tile", "done", None, 4.0, 1, 1, 0),
        ("fuse", "skipped", "nothing", None, 0, 0, 0),
    ]


def test_points_of_the_curve(by_task):
    told = [(p.stage, p.status, p.reason, p.speedup, p.promoted) for p in by_task["alpha"].points]
    assert told == [
        ("seed", "rejected", "wrong_result", None, False),
        ("seed", "correct", None, 0.5, True),
        ("tile", "correct", None, 2.0, True),
    ]


@pytest.mark.parametrize("cut", range(0, len(sample_events()), 5))
def test_an_unfinished_journal_still_gives_rows_and_a_summary(cut):
    events = sample_events()[:cut]
    assert summary(events)["tasks"] == len(rows(events))


def test_an_open_stage_is_running():
    write = Writer()
    start(write, "t", "c")
    write("stage_started", "t", "one", audit=False)
    assert rows(write.events)[0].stages[0].outcome == "running"
    assert rows(write.events)[0].outcome == "running"


def drafted_twice():
    """Two stages draft the same source; the second one finds it no faster than the best, which it is."""
    write = Writer()
    start(write, "a", "flat")
    for stage, promoted in (("tile", True), ("fuse", False)):
        write("stage_started", "a", stage, category="flat", audit=False)
        call(write, "a", stage)
        draft(write, "a", stage, "same", reason=None, speedup=2.0)
        why = "first correct kernel" if promoted else "not above 1"
        write("promotion", "a", stage, candidate_id="same", promoted=promoted, why=why)
    return write.events


def test_a_source_that_two_stages_drafted_is_decided_in_each():
    (row,) = rows(drafted_twice())
    assert [(p.stage, p.candidate_id, p.status, p.promoted) for p in row.points] == [
        ("tile", "same", "correct", True),
        ("fuse", "same", "correct", False),
    ]
    assert [(stage.name, stage.candidates) for stage in row.stages] == [("tile", 1), ("fuse", 1)]
    (found,) = operators(drafted_twice())
    assert [(made.number, made.promotion["why"]) for made in found.candidates] == [
        (1, "first correct kernel"),
        (2, "not above 1"),
    ]
    assert [[made.number for call in stage.calls for made in call.candidates] for stage in found.stages] == [[1], [2]]


def edited(*texts):
    """One draft for each text of a task; what is in the journal is not written again when it is edited back."""
    write = Writer()
    for number, text in enumerate(texts):
        fields = {"named": None, "classified": text, "facts": {}}
        write("task_started", "a", name="a", category=f"of {text}", task_hash=text, **fields)
        if text not in texts[:number]:
            call(write, "a", "tile")
            draft(write, "a", "tile", f"for {text}", reason=None, speedup=2.0)
            write("promotion", "a", "tile", candidate_id=f"for {text}", promoted=True, why="")
    return write.events


@pytest.mark.parametrize("texts", ["A", "AB", "ABA"])
def test_an_edited_operator_has_the_candidates_of_its_present_text(texts):
    (row,) = rows(edited(*texts))
    present = texts[-1]
    assert (row.category, [point.candidate_id for point in row.points]) == (f"of {present}", [f"for {present}"])
    assert (row.best_id, row.outcome) == (f"for {present}", "running")
    assert (row.calls, row.cost_usd) == (len(set(texts)), pytest.approx(0.01 * len(set(texts)))), "it was all paid"
    (found,) = operators(edited(*texts))
    assert [made.event["candidate_id"] for made in found.candidates] == [f"for {present}"]
    assert found.started["task_hash"] == present


def test_the_best_so_far_gives_way_to_the_end():
    write = Writer()
    start(write, "t", "c")
    draft(write, "t", "seed", "slow", reason=None, speedup=0.5)
    promote(write, "t", "seed", "slow")
    so_far = rows(write.events)[0]
    assert (so_far.ended, so_far.best_id, so_far.vs_eager.value, so_far.vs_fastest) == (False, "slow", 0.5, None)
    end(write, "t", "done", "fast", 3.0)
    promote(write, "t", "seed", "slow")
    ended = rows(write.events)[0]
    assert (ended.ended, ended.best_id, ended.vs_eager.value) == (True, "fast", 3.0)


def test_summary_totals():
    tree = summary(sample_events())
    counts = {"run_id": RUN, "tasks": 4, "solved": 2, "failed": 1, "calls": 4, "input_tokens": 400}
    assert {name: tree[name] for name in counts} == counts
    assert tree["usd"] is None
    assert tree["wall_s"] == len(sample_events()) - 1
    assert tree["fast_p"] == {"measured": {"0": 0.5, "1": 0.25, "1.5": 0.25, "2": 0.0}}


def test_kinds_of_score_are_never_averaged_together():
    events = sample_events()
    next(e for e in events if e["kind"] == "task_ended" and e["task_id"] == "level1/beta")["score_kind"] = "estimated"
    assert summary(events)["geomean_speedup"] == {"measured": pytest.approx(2.0), "estimated": pytest.approx(0.5)}


def test_geomean_of_one_kind():
    assert summary(sample_events())["geomean_speedup"] == {"measured": pytest.approx(math.sqrt(2.0 * 0.5))}


def test_files(tmp_path):
    events = sample_events()
    write_reports(tmp_path, events)
    write_reports(tmp_path, events)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    figures = ["alpha", "delta", "gamma", "level1__beta"]
    assert files == [*(f"figures/{name}.svg" for name in figures), "summary.csv", "summary.json", "usage.csv"]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary(events)
    with (tmp_path / "summary.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [(r["task_id"], r["correct"], r["speedup"]) for r in table][:2] == [
        ("alpha", "True", "2.0"),
        ("level1/beta", "True", "0.5"),
    ]
    with (tmp_path / "usage.csv").open() as file:
        usage = list(csv.DictReader(file))
    assert [(u["task_id"], u["input_tokens"], u["cost_usd"]) for u in usage][-1] == ("level1/beta", "100", "")
    assert len(usage) == 4


def test_curve_has_a_marker_per_candidate_and_a_line_through_the_best(by_task):
    root = ElementTree.fromstring(score_curve(by_task["alpha"]))
    circles, paths = root.findall(f"{SVG}circle"), root.findall(f"{SVG}path")
    assert len(circles) == 2
    whiskers = [p for p in paths if p.get("stroke-width") == "1.4"]
    assert len(whiskers) == 1, "0.4 to 0.6 shows; 1.9 to 2.1 is no taller than the mark"
    assert [p.get("class") for p in paths if p not in whiskers] == ["s-blue", "s-red"]
    better = [float(circle.get("cy")) for circle in circles]
    assert better[1] < better[0]
    words = " ".join(root.itertext())
    assert "1. seed: wrong_result" in words
    assert "best 2.00x [1.90, 2.10]" in words


@pytest.mark.parametrize(
    "speedups", [[], [None], [1.0], [1.0, 1.0], [0.001, 300.0], [0.0]], ids=lambda values: str(values)
)
def test_curve_stays_inside_its_frame(speedups):
    write = Writer()
    start(write, "a<b&c", "x")
    for number, speedup in enumerate(speedups):
        draft(write, "a<b&c", f"stage_{number}_with_a_very_long_name", f"k{number}", reason=None, speedup=speedup)
        promote(write, "a<b&c", "s", f"k{number}")
    root = ElementTree.fromstring(score_curve(rows(write.events)[0]))
    height, width = float(root.get("height")), float(root.get("width"))
    for circle in root.findall(f"{SVG}circle"):
        assert 0 < float(circle.get("cx")) < width
        assert 0 < float(circle.get("cy")) < height


def test_command_writes_the_files_again_and_shows_the_table(tmp_path, capsys):
    lines = "".join(json.dumps(event) + "\n" for event in sample_events())
    (tmp_path / "events.jsonl").write_text(lines)
    assert main([str(tmp_path)]) == 0
    assert "alpha" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["solved"] == 2


def test_command_without_a_journal(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert f"no journal at {tmp_path / 'events.jsonl'}" in capsys.readouterr().err
