"""Sweeps through submitit: the documented commands compose, and jobs run, in processes of this machine and under SLURM.

Under SLURM the checkout, this Python and the folder of the results must be on all nodes: `pytest --basetemp=FOLDER`."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from engine.__main__ import compose
from engine.store import query

pytest.importorskip(
    "hydra_plugins.hydra_submitit_launcher", reason="submitit is absent: pip install 'kernel-engine[slurm]'"
)

ROOT = Path(__file__).resolve().parents[2]
SWEEP = [
    *("category=recurrent", "task=bundled", "task.names=[softmax]", "backend=cpu", "llm=scripted"),
    *("search=quick", "search.seed_repairs=0", "hydra.launcher.timeout_min=5"),
]


def documented() -> list[str]:
    """The commands of docs/sweeps.md that name the SLURM launcher, each in one line."""
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"^    python -m engine (.*hydra/launcher=submitit_slurm.*)$", text, re.MULTILINE)


def test_the_documented_commands_compose():
    commands = documented()
    assert commands
    for command in commands:
        words = [word for word in shlex.split(command) if "=" in word]
        compose([word for word in words if "," not in word])
        launcher = HydraConfig.get().launcher
        assert launcher._target_.endswith(".SlurmLauncher")
        given = dict(word.split("=", 1) for word in words if word.startswith("hydra.launcher."))
        assert {name: str(launcher[name.rpartition(".")[2]]) for name in given} == given


def answers() -> bool:
    """Whether a SLURM takes jobs here."""
    if shutil.which("sinfo") is None:
        return False
    asked = subprocess.run(["sinfo", "--noheader", "--format=%a %t"], capture_output=True, text=True)
    return asked.returncode == 0 and re.search(r"^up (idle|mix|alloc)", asked.stdout, re.MULTILINE) is not None


@pytest.fixture(params=["submitit_local", "submitit_slurm"])
def launcher(request):
    if request.param == "submitit_slurm" and not answers():
        pytest.skip("no SLURM takes jobs here: sinfo is absent, does not answer, or shows no node that is up")
    return request.param


@pytest.mark.slow
def test_a_lost_job_leaves_the_other_and_the_same_command_continues(tmp_path, launcher):
    results, late = tmp_path / "results", tmp_path / "late.json"
    script = tmp_path / "script.json"
    script.write_text(json.dumps([{"slot": "*", "text": "no kernel"}]))
    command = [
        *(sys.executable, "-m", "engine", "-m", f"hydra/launcher={launcher}", *SWEEP, f"paths.results={results}"),
        *(f"llm.script={script},{late}", f"hydra.sweep.dir={tmp_path / 'hydra'}"),
    ]

    def sweep() -> tuple[int, str, list[str]]:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        rows = query(results, "SELECT outcome FROM sweep ORDER BY job").rows
        return done.returncode, done.stderr, [str(outcome) for (outcome,) in rows]

    code, said, outcomes = sweep()
    assert (code, outcomes) == (2, ["done", "failed"]), said
    assert "1 of 2 jobs are not done" in said and "job 1: exit 2" in said
    paid = (results / "steps" / "ledger.jsonl").read_text()
    assert '"kind":"reply"' in paid
    late.write_text(script.read_text())
    code, said, outcomes = sweep()
    assert (code, outcomes) == (0, ["done", "done"]), said
    assert (results / "steps" / "ledger.jsonl").read_text() == paid
    if launcher == "submitit_slurm":
        ids = [
            folder.name for folder in (tmp_path / "hydra" / ".submitit").iterdir() if re.search(r"_\d$", folder.name)
        ]
        shown = subprocess.run(["scontrol", "show", "job", min(ids)], capture_output=True, text=True).stdout
        assert len(ids) == 4 and "JobState=COMPLETED" in shown
