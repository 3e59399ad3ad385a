"""The database: what a synthetic results folder becomes, again and again, and who may hold it."""

from __future__ import annotations

import fcntl
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from engine.errors import MissingError, StoreError
from engine.journal import read_events
from engine.rules import RuleError
from engine.store import DuckDbStore, QueryError, export, ingest, query, what_if
from engine.store.tables import TABLES
from tests.support.synthetic_results import ESTIMATED, HIGH, LOW, write_results

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "queries.sql").read_text(encoding="utf-8")
QUERIES = re.findall(r"^-- (.+)\n((?:[^-].*\n)+?)(?=\n|\Z)", DOCUMENT, re.MULTILINE)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    results = write_results(tmp_path_factory.mktemp("results"))
    ingest(results)
    return results


@pytest.fixture
def results(filled, tmp_path):
    return Path(shutil.copytree(filled, tmp_path / "results"))


def rows(results, sql):
    return list(query(results, sql).rows)


def dicts(results, sql):
    answer = query(results, sql)
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def counts(results):
    return {table.name: rows(results, f"SELECT count(*) FROM {table.name}")[0][0] for table in TABLES}


def test_every_event_is_one_row(filled):
    events = [event for path in filled.glob("runs/*/events.jsonl") for event in read_events(path)]
    found = counts(filled)
    for table in TABLES:
        assert found[table.name] == sum(event["kind"] in table.kinds for event in events), table.name
    assert sum(found.values()) == len(events)


def test_values_and_types_survive(filled):
    (row,) = dicts(filled, f"SELECT * FROM verdicts WHERE run_id = '{LOW}' AND candidate_id = 'c1'")
    assert (row["status"], row["reason"], row["error_ratio"], row["launches"]) == ("rejected", "wrong_result", None, 2)
    assert (row["wall_s"], row["host_ops"]) == (1.5, '["aten.empty"]')
    (rule,) = dicts(filled, f"SELECT * FROM rules WHERE run_id = '{HIGH}' AND kind = 'exit'")
    assert (rule["expression"], rule["fired"], rule["obeyed"]) == (
        "kernel_size and speedup and thresholds.small > 0",
        True,
        True,
    )


def test_headroom_is_the_time_over_the_floor(filled):
    found = dicts(filled, "SELECT * FROM headroom")
    assert found
    for row in found:
        assert row["headroom"] == pytest.approx(row["median_us"] / row["floor_us"])
        assert row["below_floor"] == (row["headroom"] < 0.9)
    assert {row["below_floor"] for row in found} == {True, False}


def test_ingest_again_changes_nothing(results):
    before = counts(results)
    again = ingest(results)
    assert (again.taken, again.unchanged, again.removed) == ((), 3, 0)
    assert counts(results) == before


def test_a_grown_journal_is_taken_anew_and_a_removed_one_dropped(results):
    before = counts(results)
    path = results / "runs" / LOW / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    assert ingest(results).taken == (LOW,)
    assert counts(results)["run_ends"] == before["run_ends"] - 1
    assert rows(results, f"SELECT outcome FROM runs WHERE run_id = '{LOW}'") == [("unfinished",)]
    path.write_bytes(b"".join(lines))
    assert ingest(results).taken == (LOW,)
    assert counts(results) == before
    shutil.rmtree(path.parent)
    assert ingest(results).removed == 1
    assert {run for (run,) in rows(results, "SELECT run_id FROM runs")} == {HIGH, ESTIMATED}


def test_a_damaged_journal_does_not_stop_the_others(results):
    path = results / "runs" / LOW / "events.jsonl"
    path.write_bytes(b"{broken\n" + path.read_bytes())
    (results / "results.duckdb").unlink()
    with pytest.raises(StoreError, match=LOW):
        ingest(results)
    assert {run for (run,) in rows(results, "SELECT run_id FROM runs")} == {HIGH, ESTIMATED}


def test_another_schema_is_rebuilt(results):
    before = counts(results)
    with duckdb.connect(str(results / "results.duckdb")) as connection:
        connection.execute("UPDATE _schema SET version = 'old'")
        connection.execute("DROP TABLE timings CASCADE")
    assert len(ingest(results).taken) == 3
    assert counts(results) == before


def test_a_file_that_is_no_database_is_named(results):
    (results / "results.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match="cannot be opened"):
        ingest(results)


def test_an_empty_folder_gives_an_empty_database(tmp_path):
    assert ingest(tmp_path).taken == ()
    for view in (
        "runs",
        "tasks",
        "leaderboard",
        "summary",
        "sweep",
        "metric_wide",
        "stage_yield",
        "rule_audit",
        "false_skips",
        "failures",
        "history",
        "llm_usage",
        "stage_cost",
        "cost",
        "fast_p(1)",
    ):
        assert rows(tmp_path, f"FROM {view}") == []


def test_a_busy_database_is_left_alone(results):
    with (results / "results.duckdb.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="busy with another ingest"):
            ingest(results, wait_s=0.1)


def holding(results, read_only):
    """A process that has the database open until its input is closed; it then says how many runs it sees."""
    code = (
        "import duckdb, sys; db = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == 'True');"
        "print('open', flush=True);"
        "sys.stdin.read(); print(db.execute('SELECT count(*) FROM runs').fetchone()[0])"
    )
    command = [sys.executable, "-c", code, str(results / "results.duckdb"), str(read_only)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_reader_keeps_what_it_opened_and_holds_up_nobody(results):
    with holding(results, read_only=True) as notebook:
        assert notebook.stdout.readline() == "open\n"
        shutil.rmtree(results / "runs" / LOW)
        assert ingest(results).removed == 1
        assert len(rows(results, "FROM runs")) == 2
        assert notebook.communicate()[0] == "3\n"


def test_a_program_that_writes_the_database_is_named(results):
    with holding(results, read_only=False) as shell:
        assert shell.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match="is held open for writing by another program"):
            ingest(results, wait_s=0.1)
        shell.communicate()
    assert ingest(results).unchanged == 3


def test_the_store_is_a_sink(filled, tmp_path):
    events = read_events(filled / "runs" / LOW / "events.jsonl")
    store = DuckDbStore(tmp_path)
    assert store.take(LOW, events) == len(events)
    assert store.take(LOW, events) == len(events)
    assert sum(counts(tmp_path).values()) == len(events)


def test_kinds_of_score_never_rank_together(filled):
    board = dicts(filled, "FROM leaderboard WHERE task_id = 'conv' ORDER BY score_kind, rank")
    assert [(row["score_kind"], row["rank"], row["speedup"], row["device"]) for row in board] == [
        ("estimated", 1, 8.0, "sm_90"),
        ("measured", 1, 0.5, "H200"),
        ("measured", 2, 0.25, "H200"),
    ]


def test_summary(filled):
    (low,) = dicts(filled, f"FROM summary WHERE run_id = '{LOW}'")
    assert (low["score_kind"], low["tasks"], low["solved"]) == ("measured", 2, 2)
    assert low["geomean"] == pytest.approx(1.0)
    assert (low["fast_0"], low["fast_1"], low["fast_1_5"], low["fast_2"]) == (1.0, 0.5, 0.5, 0.0)
    (estimated,) = dicts(filled, f"FROM summary WHERE run_id = '{ESTIMATED}'")
    assert (estimated["tasks"], estimated["solved"], estimated["fast_0"]) == (2, 1, 0.5)
    assert estimated["geomean"] == pytest.approx(8.0)


def test_sweep(filled):
    low, high = dicts(filled, "FROM sweep ORDER BY job")
    expected = {"sweep_id": "sweep1", "job": 0, "overrides": "thresholds.small=0.2", "small": 0.2, "floor": 1.1}
    expected |= {"tasks": 2, "solved": 2, "score_kind": "measured", "tokens": 6000, "gpu_s": 0.75, "wall_s": 60.0}
    expected |= {"stages_run": 2, "stages_skipped": 1, "exits": 0, "outcome": "done", "run_id": LOW}
    expected |= {"why": None, "found": False, "unpriced": 0, "judge_s": 4.5}
    assert low == {**expected, "geomean": pytest.approx(1.0), "usd": pytest.approx(0.05)}
    assert (high["small"], high["stages_run"], high["exits"]) == (0.3, 1, 1)
    assert (high["gpu_s"], high["judge_s"]) == (0.25, 1.0), "the memo gave it the step that the other job paid for"
    assert high["geomean"] == pytest.approx(math.sqrt(0.5))


def test_a_threshold_named_like_a_column_gets_a_column(filled, tmp_path):
    events = read_events(filled / "runs" / LOW / "events.jsonl")
    started = next(event for event in events if event["kind"] == "run_started")
    started["thresholds"] = {"job": 7.0, 'odd "name': 8.0}
    DuckDbStore(tmp_path).take(LOW, events)
    (row,) = dicts(tmp_path, "FROM sweep")
    assert (row["threshold_job"], row["job"], row['odd "name']) == (7.0, 0, 8.0)


def test_metric_wide(filled):
    wide = dicts(filled, f"FROM metric_wide WHERE run_id = '{LOW}'")
    assert [(row["candidate_id"], row["launches"], row["dram_pct"]) for row in wide] == [
        ("c2", 2.0, 55.5),
        (None, 3.0, None),
    ]


def test_stage_yield(filled):
    (tile,) = dicts(filled, "FROM stage_yield WHERE category = 'windows' AND stage = 'tile'")
    expected = {"score_kind": "measured", "plans": 2, "skipped": 0, "attempts": 2, "correct": 2, "improved": 1}
    # Two calls of 2 s, two verdicts of 1.5 s, of which 0.25 s on the GPU.
    spent = {"tokens": 2400, "seconds": 7.0, "gpu_s": 0.5}
    assert tile == {"category": "windows", "stage": "tile", **expected, "median_gain": 1.5} | spent
    seeds = dicts(filled, "FROM stage_yield WHERE category = 'windows' AND stage = 'seed' ORDER BY score_kind")
    assert [(row["score_kind"], row["attempts"], row["correct"]) for row in seeds] == [
        ("estimated", 1, 1),
        ("measured", 4, 2),
    ]


def test_rule_audit(filled):
    audit = {(row["category"], row["rule"]): row for row in dicts(filled, "FROM rule_audit")}
    alone = audit["windows", "alone"]
    assert (alone["evaluations"], alone["true"], alone["obeyed"], alone["audits"]) == (1, 1, 1, 1)
    assert alone["audited_gain_measured"] == pytest.approx(3.0)
    assert alone["audited_gain_estimated"] is None
    assert (audit["flat", "at_floor"]["unknown"], audit["flat", "at_floor"]["fired"]) == (2, 0)
    assert (audit["windows", "small_window"]["fired"], audit["windows", "small_window"]["evaluations"]) == (1, 2)


def test_cost(filled):
    (seed,) = dicts(filled, f"FROM cost WHERE run_id = '{LOW}' AND task_id = 'conv' AND role = 'seed'")
    assert (seed["calls"], seed["tokens"], seed["usd"], seed["unpriced"]) == (2, 2400, pytest.approx(0.02), 0)


def test_calls_without_a_known_price_are_counted(filled, tmp_path):
    events = read_events(filled / "runs" / LOW / "events.jsonl")
    next(event for event in events if event["kind"] == "llm_call" and event["stage"] == "seed")["cost_usd"] = None
    DuckDbStore(tmp_path).take(LOW, events)
    (job,) = dicts(tmp_path, "FROM sweep")
    assert (job["usd"], job["unpriced"]) == (pytest.approx(0.04), 1)
    stages = dicts(tmp_path, "FROM stage_cost WHERE task_id = 'conv' ORDER BY stage NULLS LAST")
    assert [(row["stage"], row["calls"], row["unpriced"]) for row in stages] == [
        ("fuse", 1, 0),
        ("seed", 2, 1),
        ("tile", 1, 0),
        (None, 0, 0),
    ]


def test_steps_are_what_was_really_done(filled):
    paid = rows(filled, "SELECT run_id, kind, count(*), sum(wall_s), sum(gpu_s) FROM steps GROUP BY ALL ORDER BY ALL")
    assert paid == [(LOW, "reply", 1, 2.0, None), (LOW, "timing", 2, 4.5, 0.75), (HIGH, "timing", 1, 1.0, 0.25)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("kernel_size <= 3 and speedup < 0.3", {"exit": (2, 0, 0), "skip": (0, 0, 5)}),
        ("kernel_size <= 3 and speedup < thresholds.small", {"exit": (1, 1, 0), "skip": (0, 0, 5)}),
        ("dtype == 'float32'", {"exit": (2, 0, 0), "skip": (5, 0, 0)}),
        ("headroom > 1.1", {"exit": (0, 0, 2), "skip": (2, 0, 3)}),
    ],
)
def test_what_if(filled, rule, expected):
    answer = what_if(filled, rule)
    found: dict[str, list[int]] = {"exit": [0, 0, 0], "skip": [0, 0, 0]}
    for _, _, kind, moments, *outcomes in answer.rows:
        assert sum(outcomes) == moments
        found[kind] = [a + b for a, b in zip(found[kind], outcomes, strict=True)]
    assert {kind: tuple(numbers) for kind, numbers in found.items()} == expected


def test_what_if_names_what_it_does_not_know(filled):
    with pytest.raises(RuleError, match="did you mean 'speedup'"):
        what_if(filled, "speedupp < 1")


def test_a_wrong_query_is_explained(filled):
    with pytest.raises(QueryError, match="leaderbord") as caught:
        query(filled, "FROM leaderbord")
    assert caught.value.exit_code == 2


def test_queries_cannot_write(filled):
    with pytest.raises(QueryError, match="read-only"):
        query(filled, "DELETE FROM rules")


def test_no_database(tmp_path):
    with pytest.raises(MissingError, match="no database"):
        query(tmp_path, "FROM runs")


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_export(filled, tmp_path, form):
    files = export(filled, tmp_path / "out", form)
    names = {path.stem for path in files}
    assert names >= {"leaderboard", "sweep", "runs", *(table.name for table in TABLES)}
    assert not any(name.startswith("_") for name in names)
    with duckdb.connect() as connection:
        path = tmp_path / "out" / f"leaderboard.{form}"
        assert connection.execute(f"SELECT count(*) FROM '{path}'").fetchone() == (5,)


def test_the_document_has_its_queries():
    assert len(QUERIES) >= 15
    assert len(QUERIES) == DOCUMENT.count(";\n")


@pytest.mark.parametrize(("title", "sql"), QUERIES, ids=[title for title, _ in QUERIES])
def test_documented_queries_answer(filled, title, sql):
    assert query(filled, sql).rows
