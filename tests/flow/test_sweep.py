"""A sweep over a threshold: later jobs pay only for what it changes, and SQL shows what it changed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import engine.run
from benchmarks.sweep_tasks import overrides, write_tasks
from benchmarks.threshold_sweep import COLUMNS, measure, rows_of
from engine.__main__ import compose, main
from engine.store import Scope, query, replay
from engine.sweeping import shared_compositions
from engine.tasks import facts_client
from tests.support.fake_backend import FakeBackend

ROOT = Path(__file__).resolve().parents[2]
STAGE = "conv2d_relu_bias/fusion_memory"


def reply(us: int) -> str:
    return f"```python\n# fake: us={us}\nclass ModelNew: ...\n```"


def test_three_thresholds_give_three_rows_and_pay_once(tmp_path):
    slots = {
        f"{STAGE}/seed/seed.0.*": reply(900),
        f"{STAGE}/primary_conv/strategy.0.0": "{}",
        f"{STAGE}/primary_conv/optimise.0.0": reply(400),
        f"{STAGE}/fuse_activation_pooling/strategy.0.0": "{}",
        f"{STAGE}/fuse_activation_pooling/optimise.0.0": reply(50),
    }
    script = tmp_path / "script.json"
    script.write_text(json.dumps([{"slot": slot, "text": text} for slot, text in slots.items()]))
    results = tmp_path / "results"
    command = [
        sys.executable,
        "-m",
        "tests.support.fake_engine",
        "-m",
        "category=fusion_memory",
        "backend=cpu",
        "llm=scripted",
        f"llm.script={script}",
        f"paths.results={results}",
        "thresholds.small_conv_speedup=0.1,0.2,0.3",
        f"hydra.sweep.dir={tmp_path / 'hydra'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = query(results, "select small_conv_speedup, exits, geomean, solved from sweep order by 1").rows
    assert [(row[0], row[1], round(row[2], 3), row[3]) for row in rows] == [
        (0.1, 0, 2.0, 1),
        (0.2, 0, 2.0, 1),
        (0.3, 1, 0.25, 1),
    ]
    ledger = [json.loads(line) for line in (results / "steps" / "ledger.jsonl").read_text().splitlines()]
    assert len({entry["key"] for entry in ledger}) == len(ledger)
    first = ledger[0]["run_id"]
    later = [entry["kind"] for entry in ledger if entry["run_id"] != first]
    assert later == ["confirm"], (
        "the first job pays; the others find every step, or leave stages out, but for one winner"
    )


@pytest.fixture(scope="module")
def traced():
    return {}


@pytest.fixture
def fake(monkeypatch, traced):
    """The fake device, and each task traced once for all tests of this file: torch takes seconds to start."""

    def describe(tasks, scratch):
        new = [task for task in tasks if task.task_hash not in traced]
        traced.update(zip([task.task_hash for task in new], facts_client.describe(new, scratch), strict=True))
        return tuple(traced[task.task_hash] for task in tasks)

    monkeypatch.setattr(engine.run, "describe", describe)
    monkeypatch.setattr(engine.run, "open_backend", lambda *_: FakeBackend(delay_s=0.001))


@pytest.fixture
def in_process(monkeypatch, fake):
    """Runs a command of the engine in this process; its exit code must be 0."""

    def run(_module: str, arguments: Sequence[str]) -> float:
        monkeypatch.setattr(sys, "argv", ["engine", *arguments])
        assert main() == 0
        return 0.0

    return run


SWEPT_RULES = (
    # Stage, rule, its expression, a threshold at which it never acts and another one, how many tasks that changes.
    ("primary_matmul", "poor_matmul", "speedup < {}", "poor_matmul_speedup", 0.0, 0.5, 1),
    ("swizzle", "fast_enough", "speedup > {}", "swizzle_speedup", 99.0, 0.3, 1),
    ("staging", "fast_enough", "speedup > {}", "staging_speedup", 99.0, 0.9, 0),
)


def told_as_obeyed(folder, in_process):
    """What-if over the observing run says what a job that obeys pays and finds. The other rules act in a job, too:
    staging is left out by no_reuse whatever its threshold, and the last stage of the fused task by nothing_to_fuse."""
    results = folder / "results"
    ((observed,),) = query(results, "SELECT DISTINCT run_id FROM rules WHERE fired AND NOT obeyed").rows
    for stage, rule, expression, name, never, value, changed in SWEPT_RULES:
        swept = [f"thresholds.{name}={never},{value}", f"hydra.sweep.dir={folder / 'hydra'}"]
        in_process("engine", ["-m", *overrides(folder, results, replay=True), f"run.sweep={stage}", *swept])
        sql = (
            "SELECT task_id, sum(c.tokens), any_value(t.speedup) FROM stage_cost c JOIN tasks t USING (run_id, task_id)"
        )
        sql += f" JOIN sweep_jobs j USING (run_id) WHERE j.sweep_id = '{stage}' AND j.job = {{}} GROUP BY task_id"
        whole, left = ({row[0]: row[1:] for row in query(results, sql.format(job)).rows} for job in (0, 1))
        found = replay(results, expression.format(value), rule, Scope(runs=observed, stage=stage))
        told = {made.task_id: made for made in found.decisions}
        assert set(told) == {task for task in whole if whole[task] != left[task]}
        assert len(told) == changed
        for task, made in told.items():
            assert made.saved.tokens == whole[task][0] - left[task][0]
            assert made.gain_lost == pytest.approx(whole[task][1] / left[task][1])
        # What the jobs found in the memo counts no second time.
        everywhere = replay(results, expression.format(value), rule, Scope(stage=stage))
        assert (everywhere.decisions, everywhere.repeats > 0) == (found.decisions, True)
        assert sum(total.saved.tokens for total in everywhere.totals) == sum(
            made.saved.tokens for made in told.values()
        )


def test_a_sweep_after_an_observing_run_pays_nothing_and_shows_what_runs_from_scratch_give(tmp_path, in_process):
    found = measure(tmp_path, tasks=3, values=2, sample=1, jobs=0, run=in_process)
    assert (found.jobs, found.rows, found.calls, found.steps, found.different) == (8, 8, 0, 0, 0)
    assert found.distinct > 2, "the thresholds change nothing, so the test could not fail"
    compared = [dict(zip(COLUMNS.split(", "), row, strict=False)) for row in rows_of(tmp_path / "results").values()]
    assert len({row["tokens"] for row in compared}) > 1, "what a job costs is compared, too"
    told_as_obeyed(tmp_path, in_process)


def test_a_forecast_of_a_run_that_has_ended_expects_nothing(tmp_path, capsys, in_process):
    write_tasks(tmp_path, 1)
    command = overrides(tmp_path, tmp_path / "results", replay=False)

    def foretold():
        capsys.readouterr()
        in_process("engine", [*command, "run.mode=forecast", "run.form=json"])
        return json.loads(capsys.readouterr().out)

    before = foretold()
    assert (before["in_all"]["done"], before["in_all"]["calls"]["most"] > 3) == (False, True)
    in_process("engine", command)
    after = foretold()
    assert (after["in_all"]["done"], after["in_all"]["usd"]) == (True, {"least": 0.0, "most": 0.0})
    assert after["paid_before"]["calls"] > 0


def test_a_job_that_cannot_run_is_in_the_sweep_and_the_same_command_continues(tmp_path, monkeypatch, capsys, fake):
    write_tasks(tmp_path, 1)
    results = tmp_path / "results"
    base = overrides(tmp_path, results, replay=False)
    late = tmp_path / "late.json"
    kept = [word for word in base if not word.startswith("llm.script=")]
    sweep = ["-m", *kept, f"llm.script={tmp_path / 'script.json'},{late}", f"hydra.sweep.dir={tmp_path / 'hydra'}"]

    def rows():
        monkeypatch.setattr(sys, "argv", ["engine", *sweep])
        code = main()
        return code, query(results, "select outcome, why, found, solved from sweep order by job").rows

    code, found = rows()
    assert (code, [row[0] for row in found]) == (2, ["done", "failed"])
    assert "there is no file" in found[1][1]
    assert "1 of 2 jobs are not done" in capsys.readouterr().err
    late.write_bytes((tmp_path / "script.json").read_bytes())
    before = (results / "steps" / "ledger.jsonl").read_text()
    code, found = rows()
    assert (code, [(row[0], row[3]) for row in found]) == (0, [("done", 1), ("done", 1)])
    assert (results / "steps" / "ledger.jsonl").read_text() == before
    assert "job 0" in (said := capsys.readouterr().out)
    assert "finished before, nothing was done" in said


def test_a_job_with_a_fault_names_it(tmp_path, monkeypatch, capsys, fake):
    write_tasks(tmp_path, 1)
    results = tmp_path / "results"
    base = overrides(tmp_path, results, replay=False)
    swept = ["task.names=[],[nosuch,nowhere]", f"hydra.sweep.dir={tmp_path / 'hydra'}"]
    monkeypatch.setattr(sys, "argv", ["engine", "-m", *base, *swept])
    assert main() == 2
    (sound,), (faulty,) = query(results, "select why from sweep order by job").rows
    assert sound is None
    assert re.fullmatch(r"ConfigError: task.names\[0\]: .*'nosuch'.*, and 1 more", faulty)
    assert f"job 1: exit 2, {faulty.removeprefix('ConfigError: ')}\n" in capsys.readouterr().err


def test_a_run_that_had_ended_before_its_job_books_no_time(tmp_path, monkeypatch, fake):
    write_tasks(tmp_path, 1)
    results = tmp_path / "results"
    base = overrides(tmp_path, results, replay=False)
    for arguments in ([*base, "search.min_gain=1.5"], ["-m", *base, "search.min_gain=1.5,1.6"]):
        monkeypatch.setattr(sys, "argv", ["engine", *arguments, f"hydra.sweep.dir={tmp_path / 'hydra'}"])
        assert main() == 0
    first, second = query(results, "select found, wall_s from sweep order by job").rows
    assert first == (True, 0.0)
    assert second[0] is False
    assert second[1] > 0


class Held(FakeBackend):
    """Most of a step's time goes by without a GPU: tracing, compiling."""

    def judge(self, operator, source):
        return replace(super().judge(operator, source), gpu_s=0.25)

    def measure(self, operator, candidate, incumbent):
        return replace(super().measure(operator, candidate, incumbent), gpu_s=0.5)

    def confirm(self, operator, winner):
        made = super().confirm(operator, winner)
        timed = replace(super().measure(operator, winner, None), gpu_s=2.0)
        return replace(made, verdict=replace(made.verdict, gpu_s=1.0), measurements=(timed, timed))


def test_a_job_pays_the_gpu_for_as_long_as_its_steps_held_it(tmp_path, monkeypatch, fake):
    monkeypatch.setattr(engine.run, "open_backend", lambda *_: Held(delay_s=0.001))
    write_tasks(tmp_path, 1)
    results = tmp_path / "results"
    base = overrides(tmp_path, results, replay=False, backend="cuda")
    swept = ["-m", *base, "run.label=paid,the_same,again", f"hydra.sweep.dir={tmp_path / 'hydra'}"]
    monkeypatch.setattr(sys, "argv", ["engine", *swept])
    assert main() == 0
    kinds = dict(
        query(results, "SELECT kind, count(*) FROM steps WHERE kind NOT IN ('reply', 'facts') GROUP BY kind").rows
    )
    each = {"verdict": 0.25, "baseline": 0.5, "timing": 0.5, "promotion": 0.5, "profile": 0.0, "confirm": 5.0}
    assert {"verdict", "baseline", "timing", "confirm"} <= kinds.keys()
    first, *others = query(results, "SELECT gpu_s, judge_s, judge_s <= wall_s FROM sweep ORDER BY job").rows
    assert first[0] == pytest.approx(sum(each[kind] * n for kind, n in kinds.items()))
    assert others == [(0.0, 0.0, True)] * 2


@pytest.mark.parametrize(
    "overrides",
    [
        ["category=recurrent", "thresholds.swizzle_speedup=2", "+thresholds.foo=1", "~thresholds.staging_speedup"],
        ["category=recurrent", "+thresholds={a: 1}", "thresholds.a=3"],
    ],
    ids=" ".join,
)
def test_a_shared_composition_is_the_composition(overrides):
    def composed():
        config = compose(overrides)
        hydra = HydraConfig.get()
        return OmegaConf.to_container(config, resolve=False), str(hydra.overrides), hydra.job.override_dirname

    alone = composed()
    with shared_compositions():
        assert [composed(), composed()] == [alone, alone]
