"""Append-only events: numbering, resume without doubled rows, torn lines, one writer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import StoreError
from engine.journal import ENVELOPE, EVENTS, Journal, read_events, whole_lines
from engine.store.tables import TABLES

ROOT = Path(__file__).resolve().parents[2]
NOT_IN_TABLES = {"v", "kind", "expected"}
WAITING = {"where": "box/out"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "events.jsonl"


def test_an_event_has_the_envelope_first(path):
    journal = Journal(path, "r1")
    event = journal.write("waiting", task_id="a", stage="s", where="x", extra=[1])
    journal.close()
    assert tuple(event)[:7] == ENVELOPE
    assert (event["v"], event["run_id"], event["seq"], event["kind"]) == (1, "r1", 0, "waiting")
    assert (event["task_id"], event["stage"], event["where"], event["extra"]) == ("a", "s", "x", [1])
    assert read_events(path) == [event]


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [("wating", WAITING, "unknown kind of event 'wating'"), ("waiting", {}, "lacks the fields where")],
)
def test_wrong_events_are_bugs(path, kind, fields, words):
    journal = Journal(path, "r1")
    with pytest.raises(ValueError, match=words):
        journal.write(kind, **fields)
    journal.close()
    assert read_events(path) == []


def test_resume_writes_no_event_twice_but_shows_it_again(path):
    with_first = Journal(path, "r1")
    stored = with_first.write("waiting", task_id="a", where="x")
    with_first.close()
    seen = []
    again = Journal(path, "r1", listeners=(seen.append,))
    assert again.write("waiting", task_id="a", where="x") == stored
    other = again.write("waiting", task_id="b", where="x")
    again.close()
    assert seen == [stored, other]
    assert [event["seq"] for event in read_events(path)] == [0, 1]


def test_a_step_made_again_by_a_run_that_continues_is_not_said_again(path):
    journal = Journal(path, "r1")
    stored = journal.write("step", task_id="a", stage="s", step_kind="profile", step="abc", wall_s=0.001)
    journal.close()
    again = Journal(path, "r1")
    assert again.write("step", task_id="a", stage="s", step_kind="profile", step="abc", wall_s=0.002) == stored
    again.write("step", task_id="a", stage="s", step_kind="profile", step="abd", wall_s=0.001)
    again.close()
    assert [event["step"] for event in read_events(path)] == ["abc", "abd"]


def test_a_torn_last_line_is_cut(path):
    journal = Journal(path, "r1")
    journal.write("waiting", task_id="a", where="x")
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert len(read_events(path)) == 1
    journal = Journal(path, "r1")
    assert path.read_bytes() == whole
    journal.write("waiting", task_id="b", where="x")
    journal.close()
    assert [event["seq"] for event in read_events(path)] == [0, 1]


@pytest.mark.parametrize("tail", [b"\x00\x00\x00\n", b'{"v": 1}\n', b"[]\n"], ids=["zeros", "no event", "list"])
def test_a_last_line_of_garbage_is_cut(path, tail):
    journal = Journal(path, "r1")
    journal.write("waiting", task_id="a", where="x")
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    Journal(path, "r1").close()
    assert path.read_bytes() == whole


def test_damage_in_the_middle_is_an_error_with_its_line(path):
    journal = Journal(path, "r1")
    for name in "abc":
        journal.write("waiting", task_id=name, where="x")
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{broken\n" + lines[2])
    for use in (lambda: read_events(path), lambda: Journal(path, "r1")):
        with pytest.raises(StoreError, match="line 2: expected an event"):
            use()


def test_a_foreign_run_or_version_is_refused(path):
    Journal(path, "r1").close()
    journal = Journal(path, "r1")
    journal.write("waiting", where="x")
    journal.close()
    with pytest.raises(StoreError, match="expected events of run r2, found run r1"):
        Journal(path, "r2")
    path.write_text(path.read_text().replace('"v":1', '"v":9'))
    with pytest.raises(StoreError, match="version 1, found 9"):
        read_events(path)


def test_one_writer_at_a_time(path):
    journal = Journal(path, "r1")
    with pytest.raises(StoreError, match="another process is writing"):
        Journal(path, "r1")
    journal.close()
    Journal(path, "r1").close()


def test_no_journal(path):
    with pytest.raises(StoreError, match="no journal"):
        read_events(path)


def test_values_no_reader_takes_are_replaced(path):
    journal = Journal(path, "r1")
    event = journal.write("waiting", where="a\ud800b\0c", numbers=(1.5, float("nan"), {"x": float("-inf")}))
    repeated = journal.write("waiting", where="a\ud800b\0c", numbers=(1.5, float("nan"), {"x": float("-inf")}))
    journal.close()
    assert event == repeated == read_events(path)[0]
    assert event["numbers"] == [1.5, None, {"x": None}]
    assert event["where"] == "a?b\ufffdc"


def test_what_another_program_wrote_is_cleaned_as_it_is_read(path):
    journal = Journal(path, "r1")
    journal.write("waiting", where="here")
    journal.close()
    path.write_text(path.read_text().replace('"here"', r'"a\ud800","\udc00":NaN,"far":[-Infinity,1e999]'))
    (event,) = read_events(path)
    assert (event["where"], event["?"], event["far"]) == ("a?", None, [None, None])
    continued = Journal(path, "r1")
    continued.write("waiting", where="there")
    continued.close()
    assert [event["where"] for event in read_events(path)] == ["a?", "there"]


@pytest.mark.parametrize("change", ['"kind":["waiting"]', '"kind":1', '"kind":"waiting","task_id":7', '"kind":{}'])
def test_an_envelope_of_other_types_is_damage(path, change):
    journal = Journal(path, "r1")
    for name in "ab":
        journal.write("waiting", where=name)
    journal.close()
    text = path.read_text().replace('"kind":"waiting"', change, 1)
    path.write_text(text.replace('"task_id":null', '"stage":null', 1))
    with pytest.raises(StoreError, match="line 1: expected an event"):
        read_events(path)


def test_brackets_without_end_are_damage(path):
    journal = Journal(path, "r1")
    for name in "ab":
        journal.write("waiting", where=name)
    journal.close()
    path.write_text(path.read_text().replace('"where":"a"', '"where":' + "[" * 5000 + "]" * 5000))
    with pytest.raises(StoreError, match="line 1: expected an event"):
        read_events(path)


def started(journal, task_hash):
    fields = dict.fromkeys(EVENTS["task_started"]) | {"task_hash": task_hash}
    return journal.write("task_started", task_id="a", **fields)


def test_a_task_that_is_edited_back_is_said_again_and_what_it_found_is_not(path):
    ended = dict.fromkeys(EVENTS["task_ended"])
    waiting = {"where": "x"}
    for task_hash, repeats in (("A", 2), ("B", 1), ("A", 2)):
        for _ in range(repeats):
            journal = Journal(path, "r1")
            started(journal, task_hash)
            journal.write("waiting", task_id="a", **waiting, asked=task_hash)
            journal.write("task_ended", task_id="a", **ended | {"why": task_hash})
            journal.write("run_ended", outcome="done", tasks=1, failed=[], wall_s=0.0)
            journal.close()
    events = read_events(path)
    assert [e["task_hash"] for e in events if e["kind"] == "task_started"] == ["A", "B", "A"]
    assert [e["why"] for e in events if e["kind"] == "task_ended"] == ["A", "B", "A"]
    assert [e["asked"] for e in events if e["kind"] == "waiting"] == ["A", "B"]
    assert [e["kind"] for e in events].count("run_ended") == 3
    assert events[-1]["kind"] == "run_ended"


@pytest.mark.parametrize(("texts", "stored"), [("A", 1), ("AA", 1), ("AB", 2), ("ABA", 2), ("ABAB", 2)])
def test_what_is_said_alike_of_each_text_of_a_task_is_written_for_each(path, texts, stored):
    """Or nobody could tell what the present text took; of other tasks, and of the run, it is written once."""
    for task_hash in texts:
        journal = Journal(path, "r1")
        started(journal, task_hash)
        for task_id in ("a", "b", None):
            journal.write("waiting", task_id=task_id, **WAITING)
        journal.close()
    asked = [e["task_id"] for e in read_events(path) if e["kind"] == "waiting"]
    assert [asked.count(task_id) for task_id in ("a", "b", None)] == [stored, 1, 1]


def test_durable_events_are_synced(path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path.read_bytes().count(b"\n")))
    journal = Journal(path, "r1")
    journal.write("waiting", where="x")
    assert synced == []
    assert path.read_bytes().count(b"\n") == 1
    journal.write("waiting", where="y", durable=True)
    assert synced == [2]
    journal.close()


def test_a_killed_writer_loses_nothing_that_was_written(path):
    code = (
        "import os, signal, sys; from pathlib import Path; from engine.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), 'r1')\n"
        "for n in range(50): journal.write('waiting', where=str(n))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, timeout=60)
    assert done.returncode == -9
    assert [event["where"] for event in read_events(path)] == [str(n) for n in range(50)]
    Journal(path, "r1").close()


@pytest.mark.parametrize(("data", "expected"), [(b"", b""), (b"a", b""), (b"a\nb", b"a\n"), (b"a\n", b"a\n")], ids=repr)
def test_whole_lines(data, expected):
    assert whole_lines(data) == expected


def documented() -> dict[str, tuple[set[str], str]]:
    """Kind -> (fields, table) as docs/journal.md has them: rows of the form | `kind` | `a` `b` | `table` |."""
    rows = {}
    for line in (ROOT / "docs" / "journal.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            rows[cells[0].strip("`")] = (set(re.findall(r"`(\w+)`", cells[1])), cells[2].strip("`"))
    return rows


def test_the_document_lists_exactly_the_kinds_and_fields():
    assert {kind: fields for kind, (fields, _) in documented().items()} == {k: set(f) for k, f in EVENTS.items()}


def test_the_document_names_the_table_of_every_kind():
    taken = {kind: table.name for table in TABLES for kind in table.kinds}
    assert {kind: table for kind, (_, table) in documented().items()} == taken
    assert set(taken) == set(EVENTS)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_read_only_fields_that_events_have(table):
    fields = {*ENVELOPE, *(field for kind in table.kinds for field in EVENTS[kind])}
    assert {column.field for column in table.columns} <= fields
    assert fields - {column.field for column in table.columns} <= NOT_IN_TABLES


def test_the_version_is_a_number_in_every_line(path):
    journal = Journal(path, "r1")
    journal.write("waiting", where="x")
    journal.close()
    assert json.loads(path.read_text())["v"] == 1
