"""Journals into tables: the fast way, the careful way, and several processes at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from benchmarks import database
from benchmarks.synthetic_journals import Synthetic
from engine.errors import StoreError
from engine.journal import EVENTS, read_events
from engine.store import DuckDbStore, ingest, query
from engine.store.database import reading
from engine.store.tables import STEPS, TABLES
from engine.store.views import VARYING, VIEWS
from tests.support.synthetic_results import LOW, Run, write_results

ROOT = Path(__file__).resolve().parents[2]
NAMES = [table.name for table in TABLES]


def content(results):
    return {name: query(results, f"FROM {name} ORDER BY run_id, seq").rows for name in NAMES}


@pytest.fixture(scope="module")
def journals(tmp_path_factory):
    """Two synthetic runs, some 11 000 rows."""
    folder = tmp_path_factory.mktemp("synthetic")
    made = Synthetic(folder)
    made.fill(6000)
    return folder, made


def test_synthetic_journals_have_every_field_of_the_engine(journals):
    folder, made = journals
    events = [event for run in made.runs for event in read_events(folder / "runs" / run / "events.jsonl")]
    assert all(set(EVENTS[event["kind"]]) <= event.keys() for event in events)
    lines = (folder / "steps" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(events) + len(lines) == made.rows >= 6000
    assert len({event["kind"] for event in events}) >= 18


def test_the_benchmark_times_ingest_and_every_view(journals):
    folder, made = journals
    found = database.measure(folder, made.rows, 1)
    assert [one.name for one in found[:3]] == ["ingest", "again", "one run"]
    assert [one.name for one in found[3:]] == [*(f"FROM {name}" for name in (*VIEWS, *VARYING)), "FROM fast_p(1.2)"]
    assert all(one.rows > 0 for one in found if one.name != "again")
    assert database.table(found).count("\n") == len(found) + 2
    total = sum(query(folder, f"SELECT count(*) FROM {name}").rows[0][0] for name in (*NAMES, STEPS.name))
    assert total == made.rows


def test_lines_of_another_form_give_the_same_rows(tmp_path):
    """The engine's own form is sorted as text; what another program wrote again is read as JSON."""
    plain, other = write_results(tmp_path / "plain"), write_results(tmp_path / "other")
    for path in other.glob("runs/*/events.jsonl"):
        same = (plain / path.relative_to(other)).read_text(encoding="utf-8").splitlines()
        turned = (dict(reversed(json.loads(line).items())) for line in same)
        path.write_text("".join(json.dumps(event) + "\n" for event in turned), encoding="utf-8")
    ingest(plain)
    ingest(other)
    assert content(plain) == content(other)
    assert sum(map(len, content(plain).values())) > 100


def test_a_value_of_another_type_is_null_and_costs_nothing_else(tmp_path):
    results = write_results(tmp_path)
    ingest(results)
    before = content(results)
    path = results / "runs" / LOW / "events.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"launches":2,', '"launches":"two",'), encoding="utf-8")
    ingest(results)
    after = content(results)
    assert {name for name in NAMES if before[name] != after[name]} == {"verdicts"}
    assert query(results, f"SELECT DISTINCT launches FROM verdicts WHERE run_id = '{LOW}'").rows == ((None,),)


def test_a_last_line_that_a_power_cut_spoilt_is_left_out(tmp_path):
    results = write_results(tmp_path)
    path = results / "runs" / LOW / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + b"\0" * 40 + b"\n")
    assert LOW in ingest(results).taken
    assert query(results, f"SELECT outcome FROM runs WHERE run_id = '{LOW}'").rows == (("unfinished",),)


def test_a_damaged_run_is_named_with_its_line_and_nothing_of_it_is_taken(tmp_path):
    results = write_results(tmp_path)
    path = results / "runs" / LOW / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5][:60] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(StoreError, match=f"run {LOW}: .*line 6"):
        ingest(results)
    assert query(results, f"SELECT count(*) FROM candidates WHERE run_id = '{LOW}'").rows == ((0,),)
    path.write_bytes(b"".join(lines[:5]))
    assert ingest(results).taken == (LOW,)


def edited(results, old, new):
    path = results / "runs" / LOW / "events.jsonl"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "sql", "found"),
    [
        ('"message":"out', r'"message":"\ud800out', "SELECT min(message) FROM verdicts WHERE message > ''", "?out"),
        ('"device":{', r'"device":{"\ud800":"\udfff",', "SELECT min(device ->> '?') FROM environment", "?"),
        ('"metric":"dram_pct"', '"metric":""', "SELECT count(*) FROM metrics WHERE metric = ''", 1),
        ('"metric":"dram_pct"', '"metric":null', "SELECT count(*) FROM metrics WHERE metric IS NULL", 1),
        ('"thresholds":{', r'"thresholds":{"":1,"a\u0000b":2,"Tasks":3,', "SELECT max(threshold_Tasks) FROM sweep", 3),
    ],
    ids=["surrogate", "surrogate-key", "no-name", "null-name", "threshold-names"],
)
def test_text_that_duckdb_cannot_take_is_cleaned(tmp_path, old, new, sql, found):
    results = write_results(tmp_path)
    edited(results, old, new)
    assert len(ingest(results).taken) == 3
    assert str(query(results, sql).rows[0][0]).startswith(str(found))


def test_what_duckdb_refuses_all_the_same_costs_one_run(tmp_path):
    """A line longer than its parser takes."""
    results = write_results(tmp_path)
    whole = {name for (name,) in query_runs(results)}
    edited(results, '"message":"out', '"message":"' + "x" * (34 << 20) + "out")
    with pytest.raises(StoreError, match=f"^run {LOW}: [^\n]*maximum_object_size[^\n]*$") as caught:
        ingest(results)
    assert "all other runs were taken" in caught.value.hint
    assert {name for (name,) in query(results, "SELECT run_id FROM runs").rows} == whole - {LOW}
    assert query(results, f"SELECT count(*) FROM verdicts WHERE run_id = '{LOW}'").rows == ((0,),)


def query_runs(results):
    ingest(results)
    return query(results, "SELECT run_id FROM runs").rows


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (duckdb.IOException("no space left"), "cannot be written", "free some space"),
        (duckdb.OutOfMemoryException("too much"), "cannot be written", "free some space"),
        (duckdb.BinderException("no such column"), "DuckDB refuses it", "delete that file"),
    ],
    ids=["disk", "memory", "form"],
)
def test_a_disk_that_fails_is_told_apart_from_what_duckdb_refuses(tmp_path, monkeypatch, error, said, hint):
    results = write_results(tmp_path)

    def fail(*_):
        raise error

    monkeypatch.setattr("engine.store.load._insert_all", fail)
    monkeypatch.setattr("engine.store.database._names", fail)
    with pytest.raises(StoreError, match=said) as caught:
        ingest(results)
    assert hint in caught.value.hint
    assert not (results / "results.duckdb").exists()


def test_a_line_without_a_usable_envelope_is_damage(tmp_path):
    results = write_results(tmp_path)
    edited(results, '"kind":"verdict"', '"kind":["verdict"]')
    with pytest.raises(StoreError, match=f"run {LOW}: .*expected an event"):
        ingest(results)
    assert len(query(results, "SELECT run_id FROM runs").rows) == 2


def test_what_has_not_changed_is_not_written_again(tmp_path):
    results = write_results(tmp_path)
    ingest(results)
    before = (results / "results.duckdb").stat()
    assert ingest(results).unchanged == 3
    assert (results / "results.duckdb").stat().st_mtime_ns == before.st_mtime_ns
    assert (results / "results.duckdb").stat().st_ino == before.st_ino


def test_rebuilt_is_what_grew(tmp_path):
    """A database that took a journal in parts holds the same as one that is built at the end."""
    results, grown = write_results(tmp_path / "whole"), tmp_path / "grown"
    for share in (0.6, 1.0):
        for path in results.glob("runs/*/events.jsonl"):
            copy = grown / path.relative_to(results)
            copy.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_bytes().splitlines(keepends=True)
            copy.write_bytes(b"".join(lines[: int(share * len(lines))]))
        ingest(grown)
    ingest(results)
    assert content(grown) == content(results)


def test_the_journal_replaces_what_a_sink_took(tmp_path):
    results = write_results(tmp_path)
    events = read_events(results / "runs" / LOW / "events.jsonl")
    DuckDbStore(results).take(LOW, events[:5])
    ingest(results)
    total = sum(query(results, f"SELECT count(*) FROM {name} WHERE run_id = '{LOW}'").rows[0][0] for name in NAMES)
    assert total == len(events)


def test_a_half_written_copy_of_a_killed_ingest_is_in_nobodys_way(tmp_path):
    results = write_results(tmp_path)
    (results / "results.duckdb.new").write_bytes(b"half")
    assert len(ingest(results).taken) == 3
    assert not (results / "results.duckdb.new").exists()


JOB = """
import sys
from pathlib import Path
from engine.store import ingest, query
from tests.support.synthetic_results import Run

results, name = Path(sys.argv[1]), sys.argv[2]
run = Run(results, name * 16, kind="measured", thresholds={"small": 0.2})
run.start("cuda", "H200", ("sweep", int(name, 16), []))
for task in ("one", "two", "three"):
    run.task(task, "flat")
    run.draft(task, "seed", f"{task}{name}", 2.0, category="flat")
    run.task_end(task, "flat", "done", f"{task}{name}", 2.0)
    if task == "two":
        ingest(results)
        assert query(results, f"SELECT count(*) FROM tasks WHERE run_id = '{name * 16}'").rows == ((2,),)
run.end(3, wall_s=1.0)
ingest(results)
"""


def test_eight_jobs_and_a_reader_lose_nothing(tmp_path):
    first = Run(tmp_path, "f" * 16, kind="measured", thresholds={})
    first.start("cuda", "H200", None)
    first.end(0, wall_s=1.0)
    ingest(tmp_path)
    names = "01234567"
    with reading(tmp_path) as held:
        jobs = [
            subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path), name], cwd=ROOT, stderr=subprocess.PIPE)
            for name in names
        ]
        ended = [(job.communicate()[1].decode(), job.returncode) for job in jobs]
        assert ended == [("", 0)] * len(names)
        assert held.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    events = [event for path in tmp_path.glob("runs/*/events.jsonl") for event in read_events(path)]
    found = {(row[0], row[1]) for name in NAMES for row in query(tmp_path, f"SELECT run_id, seq FROM {name}").rows}
    assert found == {(event["run_id"], event["seq"]) for event in events}
    ends = query(tmp_path, "SELECT outcome, count(*) FROM runs GROUP BY outcome").rows
    assert ends == (("done", len(names) + 1),)
    assert query(tmp_path, "SELECT count(*) FROM leaderboard").rows == ((3 * len(names),),)
