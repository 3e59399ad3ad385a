"""Workers end with whoever could speak to them, whatever they are doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.errors import WorkerError
from engine.worker import Worker

ROOT = Path(__file__).resolve().parents[2]
BUSY = """
import subprocess, sys, time
if __name__ == "__main__":
    beside = subprocess.Popen(["sleep", "600"])
    for line in sys.stdin:
        print(beside.pid, flush=True)
        while True:
            time.sleep(600)
"""


@pytest.fixture
def words(tmp_path):
    """A module that answers once, with the pid of a process that it started, and then hangs."""
    (tmp_path / "busy_worker.py").write_text(BUSY)
    return [sys.executable, "-m", "engine.worker", "busy_worker"]


def environment(tmp_path):
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}


def gone(*pids: int) -> bool:
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _runs(pid: int) -> bool:
    """An ended process that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_busy_worker_ends_with_its_group_when_nobody_can_write_to_it(tmp_path, words):
    pipe, ours = subprocess.PIPE, environment(tmp_path)
    worker = subprocess.Popen(words, stdin=pipe, stdout=pipe, env=ours, start_new_session=True)
    with worker:
        worker.stdin.write(b"1\n")
        worker.stdin.flush()
        beside = int(worker.stdout.readline())
        assert worker.poll() is None
        assert _runs(beside)
        worker.stdin.close()
        assert worker.wait(30) == -signal.SIGKILL
    assert gone(beside)


def test_a_worker_may_be_asked_through_it(tmp_path, words):
    worker = Worker(words, environment=environment(tmp_path), cwd=str(tmp_path), log=str(tmp_path / "log"))
    beside = worker.ask({"op": "any"}, 60.0)
    assert _runs(beside)
    with pytest.raises(WorkerError, match=r"no answer within 0\.2 s"):
        worker.ask({"op": "any"}, 0.2)
    assert gone(beside, worker.process.pid)
