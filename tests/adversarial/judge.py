"""One judge per back-end and settings for all of the corpus: its processes start once and end with this one.

Works without Hydra, so that it runs on a GPU machine as well.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.compose import compose
from engine.judging.client import JudgeClient
from engine.project import project_root
from engine.records import Facts, Operator, Task, Verdict

SEED = 11
SCRATCH = f"corpus-{os.getpid()}-"
"""How the names of our judges' folders begin; their processes have them in the environment."""

FACTS = Facts(0, 0, 0, 0, 0, 0, 0, 0, 0, None, None, 0.0, 0.0, 0.0, "float32", "none")
LIMITS = {"cpu": {"run_s": 60, "trace_s": 60, "memory_gib": 4}, "cuda": {"run_s": 120, "trace_s": 60, "memory_gib": 16}}
NARROW = {
    "cpu": {"": {}, "time": {"run_s": 5, "trace_s": 5}, "memory": {"memory_gib": 2}},
    "cuda": {"": {}, "time": {"run_s": 30, "trace_s": 20}, "memory": {"run_s": 30, "trace_s": 20}},
}
"""What is narrowed for candidates that are to meet a limit, and no other: filling memory may take a slow machine longer
than a hanging candidate is given. On a device a process first makes a context."""


@functools.cache
def _client(backend: str, limit: str) -> JudgeClient:
    limits = LIMITS[backend] | NARROW[backend][limit]
    overrides = {"judge.seed": SEED, **{f"judge.limits.{name}": value for name, value in limits.items()}}
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH))
    client = JudgeClient(compose(backend, overrides), backend, project_root(), scratch)

    def end() -> None:
        client.close()
        shutil.rmtree(scratch, ignore_errors=True)

    atexit.register(end)
    return client


def judge(backend: str, task: Task, source: str, *, limit: str = "") -> Verdict:
    """The verdict of `cpu` or `cuda` with fixed seeds; `limit`: a narrow one, `time` or `memory`."""
    return _client(backend, limit).judge(Operator(task, FACTS), source)


def left_behind() -> tuple[int, ...]:
    """Processes that came from a fork server of ours and still run: between two verdicts there are none."""
    ours = {
        int(path.parent.name): _read(path.parent / "cmdline")
        for path in Path("/proc").glob("[0-9]*/environ")
        if SCRATCH in _read(path)
    }
    services = {pid for pid, command in ours.items() if "engine.judging.service" in command}
    return tuple(pid for pid, command in ours.items() if "forkserver" in command and _parent(pid) not in services)


def _parent(pid: int) -> int:
    """0 for a process that has ended."""
    lines = _read(Path(f"/proc/{pid}/status")).splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("PPid:")), 0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
