"""A reference that is edited and edited back within one run: what holds is what is said of its present text."""

from __future__ import annotations

import json

import pytest

import tests.flow.test_fresh
from engine.store import Scope, ingest, query, replay
from engine.store.training import export_training
from tests.flow.test_fresh import REPLIES, Lab, Slower, device, fresh
from tests.flow.test_runner import TASK, kernel, of

LAST = "fuse_activation_pooling"
OTHER = {**REPLIES, f"{LAST}.optimise.0.0": kernel(us=20, launches=1)}
FIRST_BEST, OTHER_BEST = 2.5, 5.0


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """Runs text A or B of the task on one results folder: the same run, whose model answers otherwise for B."""
    lab = Lab(tmp_path, monkeypatch)

    def go(text):
        (tmp_path / "toy.py").write_text(TASK + ("\nEDITED = 1\n" if text == "B" else ""))
        monkeypatch.setattr(tests.flow.test_fresh, "REPLIES", OTHER if text == "B" else REPLIES)
        found = lab.run()
        ingest(tmp_path / "results")
        return found

    return go


def state(results):
    return query(results, "SELECT task_hash, round(speedup, 3), outcome FROM tasks").rows


def test_the_latest_state_is_that_of_the_present_text(edited, tmp_path):
    results = tmp_path / "results"
    _, events, _ = edited("A")
    first = of(events, "task_started")[0]["task_hash"]
    _, events, _ = edited("B")
    other = of(events, "task_started")[-1]["task_hash"]
    assert state(results) == ((other, OTHER_BEST, "done"),)
    _, events, llm = edited("A")
    assert not llm.seen, "all of it was known"
    assert state(results) == ((first, FIRST_BEST, "done"),)
    assert query(results, "SELECT task_hash, round(speedup, 3) FROM leaderboard").rows == ((first, FIRST_BEST),)
    last = "SELECT round(max(best_so_far), 3) FROM history WHERE task_hash = '{}'"
    assert query(results, last.format(first)).rows == ((FIRST_BEST,),)
    assert query(results, last.format(other)).rows == ((OTHER_BEST,),)
    count = len(events)
    _, events, llm = edited("A")
    assert (len(events), dict(llm.seen)) == (count, {}), "it had ended: nothing is done, nothing is written"


def test_no_paid_row_is_doubled(edited, tmp_path):
    results = tmp_path / "results"
    counts = []
    sql = "SELECT (SELECT count(*) FROM llm_calls), (SELECT count(*) FROM candidates), (SELECT count(*) FROM step_uses)"
    for text in "AB":
        edited(text)
        counts.append(query(results, sql).rows)
    edited("A")
    assert query(results, sql).rows == counts[-1] != counts[0]


def test_an_edit_that_was_not_finished_has_no_result_of_the_text_before(edited, tmp_path):
    results = tmp_path / "results"
    run_id, _, _ = edited("A")
    edited("B")
    path = results / "runs" / run_id / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if '"kind":"task_started"' in line]
    path.write_text("".join(lines[: starts[-1] + 1]))
    ingest(results)
    ((_, speedup, outcome),) = state(results)
    assert (speedup, outcome) == (None, "unfinished")


def test_training_records_and_replays_are_of_the_present_text(edited, tmp_path):
    results = tmp_path / "results"
    for text in "ABA":
        edited(text)
    hashes = {row[0] for row in state(results)}
    export_training(results, tmp_path / "exported")
    lines = (tmp_path / "exported" / "training.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["task"]["task_hash"] for record in records} == hashes
    assert len(records) == len({record["child"]["id"] for record in records}) == 3
    rule = query(results, "SELECT rule FROM rules WHERE kind = 'exit' LIMIT 1").rows[0][0]
    asked = [d.now for d in replay(results, "speedup < 4", rule, Scope()).decisions]
    assert asked == ["true"] * len(asked)


def test_an_edit_that_no_prompt_shows_costs_what_it_did_and_asks_nobody(tmp_path, monkeypatch):
    """Another contract: all replies are in the memo, and the present text took them, too; a fresh run keeps them."""
    lab, results = Lab(tmp_path, monkeypatch), tmp_path / "results"
    costs = []
    for size in (4, 5):
        (tmp_path / "toy.yaml").write_text(f"variants: {{small: {{N: {size}}}}}\n")
        _, _, llm = lab.run()
        ingest(results)
        costs.append(query(results, "SELECT stage, calls, tokens FROM stage_cost ORDER BY stage").rows)
    assert not llm.seen
    assert costs[0] == costs[1]
    assert sum(calls for _, calls, _ in costs[0]) == len(REPLIES)
    _, _, llm = lab.run(fresh("timing"), Slower(1.3))
    assert not llm.seen


def test_a_run_that_went_on_on_another_device_asked_once_for_each_reply(tmp_path, monkeypatch):
    """Its prompts name the device, so that each was asked again: all of it was paid, one of each is the plan's."""
    lab, results = Lab(tmp_path, monkeypatch), tmp_path / "results"
    run_id, _, _ = lab.run()
    path = results / "runs" / run_id / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"kind":"run_ended"' not in line))
    again, _, llm = lab.run(backend=device("another GPU"))
    assert (again, sum(llm.seen.values())) == (run_id, len(REPLIES))
    ingest(results)
    sql = "SELECT (SELECT sum(calls) FROM {}), (SELECT sum(attempts) FROM stage_yield)"
    assert query(results, sql.format("stage_cost")).rows == ((len(REPLIES), len(REPLIES)),)
    assert query(results, sql.format("cost")).rows == ((2 * len(REPLIES), len(REPLIES)),)
