"""Each step once: found again, done by one of several processes, never left broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import StoreError, StoreFull
from engine.memo import Memo, step_key

ROOT = Path(__file__).resolve().parents[2]
INPUTS = {"a": 1}


@pytest.fixture
def memo(tmp_path):
    return Memo(tmp_path / "steps", "r1")


def forbidden():
    raise AssertionError("the step was done before")


def ledger(memo):
    path = memo.root / "ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_step_runs_once(memo):
    first = memo.step("verdict", INPUTS, lambda: ({"x": (1, 2)}, {"wall_s": 3}))
    assert (first.ran, first.outcome, first.cost) == (True, {"x": [1, 2]}, {"wall_s": 3})
    again = memo.step("verdict", INPUTS, forbidden)
    assert (again.ran, again.outcome, again.key) == (False, first.outcome, first.key)
    assert memo.lookup("verdict", INPUTS) == again


def test_kind_and_inputs_address_a_step(memo):
    memo.step("verdict", INPUTS, lambda: (1, {}))
    assert memo.lookup("timing", INPUTS) is None
    assert memo.lookup("verdict", {"a": 2}) is None
    assert step_key("verdict", {"b": 1, "a": 2}) == step_key("verdict", {"a": 2, "b": 1})


def test_the_file_says_what_it_is(memo):
    step = memo.step("verdict", INPUTS, lambda: ("out", {"usd": 1}))
    path = memo.root / "verdict" / step.key[:2] / f"{step.key}.json"
    tree = json.loads(path.read_text())
    assert {k: tree[k] for k in ("v", "kind", "inputs", "outcome", "cost")} == {
        "v": 1,
        "kind": "verdict",
        "inputs": INPUTS,
        "outcome": "out",
        "cost": {"usd": 1},
    }
    (entry,) = ledger(memo)
    assert set(entry) == {"t", "run_id", "kind", "key", "cost", "pid"}
    assert (entry["run_id"], entry["kind"], entry["key"], entry["cost"]) == ("r1", "verdict", step.key, {"usd": 1})


def test_failed_work_stores_nothing(memo):
    with pytest.raises(AssertionError):
        memo.step("verdict", INPUTS, forbidden)
    assert memo.lookup("verdict", INPUTS) is None
    assert ledger(memo) == []
    assert memo.step("verdict", INPUTS, lambda: (1, {})).ran


def test_other_runs_find_it_too(memo):
    memo.step("verdict", INPUTS, lambda: (1, {}))
    assert not Memo(memo.root, "r2").step("verdict", INPUTS, forbidden).ran


@pytest.mark.parametrize("text", ["", "{", "[]", '{"v": 1}'])
def test_a_damaged_step_is_named(memo, text):
    step = memo.step("verdict", INPUTS, lambda: (1, {}))
    path = memo.path("verdict", step.key)
    path.write_text(text)
    with pytest.raises(StoreError, match=step.key):
        memo.step("verdict", INPUTS, forbidden)


def test_half_a_line_in_the_ledger_swallows_no_other(memo):
    memo.step("verdict", INPUTS, lambda: (1, {}))
    path = memo.root / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    second = memo.step("verdict", {"a": 2}, lambda: (1, {}))
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()[1:]] == [second.key]


def test_a_ledger_without_room_for_its_line_is_a_full_disk(memo, monkeypatch):
    monkeypatch.setattr(os, "write", lambda descriptor, data: len(data) // 2)
    with pytest.raises(StoreFull, match="No space left"):
        memo.step("verdict", INPUTS, lambda: (1, {}))
    monkeypatch.undo()
    assert not memo.step("verdict", INPUTS, forbidden).ran, "the step itself was stored"


def test_a_failed_write_leaves_nothing_beside_the_step(memo, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFull):
        memo.step("verdict", INPUTS, lambda: (1, {}))
    assert [path for path in (memo.root / "verdict").rglob("*") if path.is_file()] == []


def test_asking_for_a_step_is_seen_at_its_file(memo):
    path = memo.path("verdict", memo.step("verdict", INPUTS, lambda: (1, {})).key)
    os.utime(path, (1000, 1000))
    memo.lookup("verdict", {"a": 2})
    assert path.stat().st_mtime == 1000
    memo.lookup("verdict", INPUTS)
    assert path.stat().st_mtime > 1000


def test_not_finite_numbers_survive(memo):
    memo.step("verdict", INPUTS, lambda: ({"ratio": float("inf")}, {}))
    found = memo.lookup("verdict", INPUTS)
    assert found is not None
    assert found.outcome == {"ratio": float("inf")}


def test_no_lock_is_left_behind(memo):
    memo.step("verdict", INPUTS, lambda: (1, {}))
    assert [path for path in (memo.root / "locks").rglob("*") if path.is_file()] == []


RACER = """
import sys, time
from pathlib import Path
from engine.memo import Memo

def work():
    with open(sys.argv[2], "a") as file:
        file.write("work\\n")
    time.sleep(0.3)
    return "out", {}

step = Memo(Path(sys.argv[1]), "r").step("verdict", {"a": 1}, work)
assert step.outcome == "out"
"""


def test_two_processes_do_one_step_once(tmp_path):
    command = [sys.executable, "-c", RACER, str(tmp_path / "steps"), str(tmp_path / "done")]
    racers = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [racer.wait(timeout=60) for racer in racers] == [0, 0, 0]
    assert (tmp_path / "done").read_text() == "work\n"
    assert len((tmp_path / "steps" / "ledger.jsonl").read_text().splitlines()) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from engine.memo import Memo

Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Memo(Path(sys.argv[1]), "r").step("verdict", {"a": 1}, lambda: ("out", {}))
"""


def test_a_kill_before_the_rename_leaves_no_step_and_no_lock(memo):
    done = subprocess.run([sys.executable, "-c", KILLED, str(memo.root)], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert memo.lookup("verdict", INPUTS) is None
    assert memo.step("verdict", INPUTS, lambda: ("again", {})).outcome == "again"
    assert len(ledger(memo)) == 1


def test_a_full_disk_is_our_error(memo, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        memo.step("verdict", INPUTS, lambda: (1, {}))
    assert memo.lookup("verdict", INPUTS) is None
