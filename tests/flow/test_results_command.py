"""`python -m engine.results` as people use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.results.__main__ import main
from tests.support.synthetic_results import ESTIMATED, LOW, write_results

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("results"))


def call(capsys, results, *arguments):
    code = main(["--results", str(results), *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_ingest_says_what_it_did(capsys, tmp_path):
    write_results(tmp_path)
    assert call(capsys, tmp_path, "ingest") == (0, "3 runs taken, 0 unchanged\n", "")
    assert call(capsys, tmp_path, "ingest") == (0, "0 runs taken, 3 unchanged\n", "")


def test_sql_ingests_and_prints_a_table(capsys, results):
    code, out, err = call(
        capsys, results, "sql", "SELECT task_id, speedup, NULL AS nothing, 'x' AS x FROM tasks ORDER BY ALL"
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["task_id", "speedup", "nothing", "x"]
    assert lines[2].split() == ["conv", "0.25", "x"]
    assert lines[-1] == "(6 rows)"


def test_json_and_csv(capsys, results):
    sql = "SELECT task_id, speedup FROM leaderboard WHERE score_kind = 'estimated'"
    assert json.loads(call(capsys, results, "sql", "--json", sql)[1]) == [{"task_id": "conv", "speedup": 8.0}]
    assert call(capsys, results, "sql", "--csv", sql)[1] == "task_id,speedup\nconv,8.0\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sql", "FROM nothing"), "nothing does not exist"),
        (("sql", "SELEC 1"), "syntax error"),
        (("sql", ""), "there is no statement in this query"),
        (("sql", "-- FROM tasks"), "there is no statement in this query"),
        (("whatif", "speedup <"), "column 10: not an expression"),
        (("whatif", "speedup < unheard"), "unknown name 'unheard'"),
        (("whatif", "speedup < 1", "--rule", "unheard"), "recorded are alone, at_floor, small_window"),
        (("whatif", "speedup < 1", "--stage", "tile"), "need --rule"),
        (("compare", LOW, "nobody"), "no run is called 'nobody'"),
        (("export", "nowhere", "--view", "sweeps"), "did you mean 'sweep'"),
        (("export", "nowhere", "--training", "--format", "csv"), "training records are JSON lines"),
    ],
)
def test_faults_end_with_2_and_say_why(capsys, results, arguments, words):
    code, out, err = call(capsys, results, *arguments)
    assert (code, out) == (2, "")
    assert words in err


def test_a_missing_folder_is_not_made(capsys, tmp_path):
    code, _, err = call(capsys, tmp_path / "typo", "sql", "FROM runs")
    assert code == 2
    assert "no folder" in err
    assert not (tmp_path / "typo").exists()


def test_whatif_counts(capsys, results):
    code, out, _ = call(capsys, results, "whatif", "--json", "speedup < 0.3 and kernel_size == 3")
    assert code == 0
    (row,) = [row for row in json.loads(out) if row["kind"] == "exit"]
    assert row == {
        "category": "windows",
        "stage": "tile",
        "kind": "exit",
        "moments": 2,
        "true": 2,
        "false": 0,
        "unknown": 0,
    }


def test_export(capsys, results, tmp_path):
    code, out, _ = call(capsys, results, "export", str(tmp_path / "out"), "--format", "csv")
    assert code == 0
    assert out.endswith(f"files in {tmp_path / 'out'}\n")
    assert LOW in (tmp_path / "out" / "runs.csv").read_text()


def test_one_view_alone(capsys, results, tmp_path):
    out = call(capsys, results, "export", str(tmp_path), "--view", "sweep", "--view", "cost", "--format", "jsonl")
    assert out == (0, f"2 files in {tmp_path}\n", "")
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.jsonl", "cost.jsonl"}
    jobs = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    assert [job["overrides"] for job in jobs] == ["thresholds.small=0.2", "thresholds.small=0.3"]


def test_whatif_replays_a_rule(capsys, results):
    command = ("whatif", "headroom > 1", "--rule", "at_floor", "--runs", "sweep1")
    code, out, _ = call(capsys, results, *command)
    assert code == 0
    assert [line.split()[:8] for line in out.splitlines() if line.startswith(LOW)] == [
        [LOW, "conv", "windows", "tile", "skip", "false", "true", "skips"],
        [LOW, "relu", "flat", "tile", "skip", "unknown", "unknown", "unknown"],
    ]
    found = json.loads(call(capsys, results, *command, "--json")[1])
    assert [(total["plans"], total["skips"], total["saved"]["tokens"]) for total in found["totals"]] == [(3, 2, 2400)]
    assert call(capsys, results, *command, "--csv")[1].count("\n") == 4
    assert "nothing would be decided otherwise" in call(capsys, results, "whatif", "ops > 0", "--rule", "alone")[1]


def test_compare(capsys, results):
    code, out, _ = call(capsys, results, "compare", LOW, "thresholds.small=0.3")
    assert code == 0
    assert "A: aaaaaaaaaaaaaaaa\n" in out
    assert [line.split()[:7] for line in out.splitlines() if line.startswith("conv")] == [
        ["conv", "windows", "measured", "0.5", "0.25", "0.5", "loss"]
    ]
    found = json.loads(call(capsys, results, "compare", "--json", LOW, ESTIMATED)[1])
    assert (found["kinds_differ"], found["only_a"], found["only_b"], found["pairs"]) == (
        ["conv"],
        ["relu"],
        ["gru"],
        [],
    )


def test_training_records(capsys, results, tmp_path):
    code, out, _ = call(capsys, results, "export", str(tmp_path), "--training")
    assert (code, out) == (0, f"0 records in {tmp_path / 'training.jsonl'}; 11 left out, whose source is gone\n")


def test_schema_needs_no_results(capsys, tmp_path):
    assert main(["schema"]) == 0
    assert "### leaderboard" in capsys.readouterr().out


def test_as_a_process(results):
    command = [sys.executable, "-m", "engine.results", "--results", str(results), "sql", "--csv", "SELECT 1 AS one"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n1\n", "")
