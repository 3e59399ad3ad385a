"""`python -m engine.results` as people use it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.results.__main__ import main
from tests.support.synthetic_results import LOW, write_results

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
        (("whatif", "speedup <"), "column 10: not an expression"),
        (("whatif", "speedup < unheard"), "unknown name 'unheard'"),
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


def test_as_a_process(results):
    command = [sys.executable, "-m", "engine.results", "--results", str(results), "sql", "--csv", "SELECT 1 AS one"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one\n1\n", "")
