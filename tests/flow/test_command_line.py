"""`python -m engine` as a process: exit codes, what it loads, how jobs of a sweep end (the job itself replaced)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.__main__ import diagnose, name_sweep

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "litellm", "triton", "duckdb", "pandas", "jinja2", "rich", "engine.run")

LOADED = """
import json, sys
sys.argv = ["engine", *sys.argv[1:]]
import engine.__main__ as command
try:
    code = command.main()
finally:
    sys.stderr.write("LOADED " + json.dumps(sorted(sys.modules)) + "\\n")
sys.exit(code)
"""

REPLACED = """
import json, sys, types
from pathlib import Path
import engine.__main__ as command
from engine import errors
from engine.decode import run_identity
from engine.settings import JobEnd

def run_job(settings, tree, sweep, *, leave_ingest):
    seeds = settings.search.seeds
    place = sweep and [sweep.sweep_id, sweep.job, *sweep.overrides]
    line = {"seeds": seeds, "run_id": run_identity(tree), "sweep": place}
    with Path(sys.argv[0]).open("a") as log:
        log.write(json.dumps(line) + "\\n")
    if seeds == 3:
        raise errors.MissingError("no key", hint="set it")
    if seeds == 4:
        raise KeyboardInterrupt
    if seeds == 5:
        raise errors.EngineError("the engine broke")
    return JobEnd(sweep.job if sweep else 0, {6: 75, 7: 1}.get(seeds, 0), run_identity(tree), None, "")

app = types.ModuleType("engine.app")
app.run_job = run_job
sys.modules["engine.app"] = app
sys.argv = [LOG, *sys.argv[1:]]
sys.exit(command.main())
"""


def python(code: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, timeout=120, cwd=cwd, env=environment, check=False
    )


@pytest.fixture
def replaced(tmp_path):
    """Runs the command with a job that notes its settings and ends as `search.seeds` says; returns result and notes."""

    def run(*arguments: str):
        log = tmp_path / "engine.log"
        log.unlink(missing_ok=True)
        if not any(argument.startswith(("category=", "experiment=")) for argument in arguments):
            arguments = (*arguments, "category=attention")  # one category composes faster than seven
        done = python(["-c", REPLACED.replace("LOG", repr(str(log))), *arguments], tmp_path)
        notes = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return done, notes

    return run


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--cfg", "job"], ["--info", "defaults"], ["--cfg", "job", "category=recurrent"]],
    ids=" ".join,
)
def test_answers_at_once_and_loads_nothing_heavy(arguments, tmp_path):
    done = python(["-c", LOADED, *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stderr.rsplit("LOADED ", 1)[1])
    assert [name for name in HEAVY if name in loaded] == []
    assert done.stdout.strip()
    assert list(tmp_path.iterdir()) == []


def test_help_shows_examples_groups_and_exit_codes(tmp_path):
    text = python(["-m", "engine", "--help"], tmp_path).stdout
    for fragment in ("python -m engine llm=gpt", "category: attention, auto", "Exit codes: 0 done", "engine.doctor"):
        assert fragment in text


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["llm=gptt", "judge.seeds=x"], ["2 faults", "did you mean 'gpt'?", "judge.seeds: expected int"]),
        (["task=path"], ["task.path: missing; it has no default (conf/task/path.yaml)"]),
        (["search.seeds=${nowhere}"], ["search.seeds: Interpolation key 'nowhere' not found"]),
        (["thresholds.small_conv_speedup=a < b"], ["inner quotes"]),
        (["--config-dir=nowhere"], ["nowhere"]),
        (["hydra/launcher=jobli"], ["no option 'jobli', did you mean 'joblib'?"]),
    ],
    ids=["two faults", "no default", "interpolation", "unreadable", "no folder", "no launcher"],
)
def test_bad_configuration_is_one_message_and_exit_2(arguments, fragments, tmp_path):
    done = python(["-m", "engine", *arguments], tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [fragment for fragment in fragments if fragment not in done.stderr] == []


@pytest.mark.parametrize(
    ("launcher", "extra"), [("joblib", "sweep"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm")]
)
def test_a_launcher_that_is_not_installed_says_what_to_install(launcher, extra):
    """Its own keys are then no faults of the command line, others are."""
    if any(Path(folder, "hydra_plugins").is_dir() for folder in sys.path):
        pytest.skip("a plugin of Hydra is installed")
    faults = diagnose(
        [f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=2", "search.seedss=1", "category=attention"]
    )
    told = f"the launcher '{launcher}' is not installed: pip install 'kernel-engine[{extra}]'"
    assert [fault.problem for fault in faults] == [told, "unknown key, did you mean 'seeds'?"]


def test_broken_yaml_names_file_and_line(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "torn.yaml").write_text("seeds: 2\nrules: {obey\n")
    done = python(["-m", "engine", f"--config-dir={tmp_path}", "search=torn"], tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "torn.yaml" in done.stderr and "line 3" in done.stderr


@pytest.mark.parametrize(
    ("seeds", "code", "message"),
    [
        (2, 0, ""),
        (3, 2, "engine: no key\nset it\n"),
        (4, 130, "engine: interrupted"),
        (5, 1, "engine: the engine broke\n"),
        (6, 75, ""),
        (7, 1, ""),
    ],
    ids=["done", "missing", "interrupted", "engine error", "waiting", "failed"],
)
def test_exit_codes_of_one_job(replaced, seeds, code, message):
    done, notes = replaced(f"search.seeds={seeds}")
    assert done.returncode == code, done.stderr
    assert len(notes) == 1 and notes[0]["sweep"] is None
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(replaced):
    done, _ = replaced("search.seeds=5", "run.debug=true")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "the engine broke" in done.stderr


@pytest.mark.parametrize(
    ("seeds", "code"),
    [("1,2", 0), ("3,1", 2), ("5,6,3", 75), ("3,7", 1)],
    ids=["all done", "one misses a key", "waiting wins", "failure beats missing"],
)
def test_every_job_of_a_sweep_runs_and_the_worst_decides(replaced, seeds, code):
    done, notes = replaced("-m", f"search.seeds={seeds}")
    assert [str(note["seeds"]) for note in notes] == seeds.split(",")
    assert done.returncode == code, done.stderr


def test_an_interrupt_ends_the_sweep(replaced):
    done, notes = replaced("-m", "search.seeds=1,4,2")
    assert done.returncode == 130
    assert len(notes) == 2


def test_jobs_of_a_sweep_know_each_other(replaced):
    _, first = replaced("-m", "thresholds.small_conv_speedup=0.1,0.2", "category=fusion_memory")
    assert len({note["sweep"][0] for note in first}) == 1
    assert [note["sweep"][1:] for note in first] == [
        [0, "thresholds.small_conv_speedup=0.1", "category=fusion_memory"],
        [1, "thresholds.small_conv_speedup=0.2", "category=fusion_memory"],
    ]
    assert len({note["run_id"] for note in first}) == 2


def test_a_job_of_a_sweep_is_the_same_run_as_alone(replaced):
    _, swept = replaced("-m", "thresholds.floor_headroom=1.1,1.2")
    _, alone = replaced("thresholds.floor_headroom=1.2")
    assert swept[1]["run_id"] == alone[0]["run_id"]


def test_an_experiment_that_sweeps_needs_no_flag(replaced):
    done, notes = replaced("experiment=small_conv_sweep")
    assert done.returncode == 0, done.stderr
    assert len(notes) == 3
    assert len({note["sweep"][0] for note in notes}) == 1
    assert len({note["run_id"] for note in notes}) == 3


def test_a_bad_swept_value_is_found_before_the_first_job(replaced):
    done, notes = replaced("-m", "search.seeds=1,2,none_of_it")
    assert done.returncode == 2
    assert notes == []
    assert "got 'none_of_it'" in done.stderr


def test_a_sweep_leaves_nothing_but_hydras_note(replaced, tmp_path):
    replaced("-m", "search.seeds=1,2")
    assert {path.name for path in tmp_path.iterdir()} == {"engine.log", "results"}
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"hydra"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["search.seeds=1"], False),
        (["-m", "search.seeds=1,2"], True),
        (["--multirun", "search.seeds=1,2"], True),
        (["hydra.mode=MULTIRUN", "search.seeds=1,2"], True),
        (["-m", "run.sweep=mine", "search.seeds=1,2"], False),
    ],
    ids=["alone", "short", "long", "mode", "named already"],
)
def test_sweeps_are_named_on_the_command_line(arguments, named):
    added = name_sweep(arguments)[len(arguments) :]
    assert bool(added) == named
    assert all(text.startswith("run.sweep='") and len(text) == len("run.sweep=''") + 16 for text in added)


def test_the_name_of_a_sweep_is_what_it_does():
    sweep = ["-m", "search.seeds=1,2"]
    assert name_sweep([*sweep, "display.mode=none", "hydra/launcher=basic"])[-1] == name_sweep(sweep)[-1]
    assert name_sweep(["-m", "search.seeds=1,3"])[-1] != name_sweep(sweep)[-1]
