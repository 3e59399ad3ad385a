"""What the design promises for bad luck and has no better place: no device, no disk, two jobs at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import StoreError
from engine.journal import Journal
from engine.memo import Memo
from engine.store import query

ROOT = Path(__file__).resolve().parents[2]
STAGE = "conv2d_relu_bias/fusion_memory"


def script_of(folder: Path) -> Path:
    slots = {
        f"{STAGE}/seed/seed.0.*": "```python\n# fake: us=90\nclass ModelNew: ...\n```",
        f"{STAGE}/*/strategy.0.0": "{}",
        f"{STAGE}/*/optimise.0.0": "```python\n# fake: us=50\nclass ModelNew: ...\n```",
    }
    path = folder / "script.json"
    path.write_text(json.dumps([{"slot": slot, "text": text} for slot, text in slots.items()]))
    return path


def command(results: Path, script: Path, *overrides: str) -> list[str]:
    start = [sys.executable, "-m", "tests.support.fake_engine", "category=fusion_memory", "backend=cpu"]
    return [*start, "llm=scripted", f"llm.script={script}", f"paths.results={results}", *overrides]


def test_a_run_that_needs_a_gpu_refuses_without_one_before_anything_is_spent(tmp_path):
    results = tmp_path / "results"
    done = subprocess.run(
        [sys.executable, "-m", "engine", "backend=cuda", f"paths.results={results}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2, done.stderr
    assert "CUDA" in done.stderr
    assert "doctor" in done.stderr
    assert not list(results.glob("steps/reply/**/*.json"))


def test_two_sweep_jobs_at_once_finish_and_never_pay_one_step_twice(tmp_path):
    results, script = tmp_path / "results", script_of(tmp_path)
    jobs = [
        subprocess.Popen(
            command(results, script, f"thresholds.small_conv_speedup={value}"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for value in (0.1, 0.2, 0.3)
    ]
    for job in jobs:
        _, errors = job.communicate(timeout=120)
        assert job.returncode == 0, errors[-2000:]
    ledger = [json.loads(line)["key"] for line in (results / "steps" / "ledger.jsonl").read_text().splitlines()]
    assert len(set(ledger)) == len(ledger)
    done = subprocess.run(
        [sys.executable, "-m", "engine.results", "--results", str(results), "ingest"], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert query(results, "select count(*), count(distinct run_id) from runs").rows == ((3, 3),)


@pytest.mark.parametrize("what", ["journal", "memo"])
def test_a_full_disk_is_named_with_a_remedy(tmp_path, monkeypatch, what):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        if what == "memo":
            Memo(tmp_path, "r").step("kind", {}, lambda: (1, {}))
        else:
            journal = Journal(tmp_path / "events.jsonl", "r")
            try:
                journal.write("waiting", where="x", durable=True)
            finally:
                monkeypatch.undo()
                journal.close()
    assert "space" in caught.value.hint
    monkeypatch.undo()
    assert Memo(tmp_path, "r").lookup("kind", {}) is None
