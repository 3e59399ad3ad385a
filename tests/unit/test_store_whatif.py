"""A rule replayed over recorded plans: what it would have cut short, saved and lost."""

from __future__ import annotations

import json

import pytest

from engine.errors import MissingError
from engine.results import replaying
from engine.rules import RuleError
from engine.store import Scope, ingest, replay
from tests.support.synthetic_results import Run

PLAN = ("tile", "fuse", "tune")


def plan(results, run_id, *, exits=(), skipped=(), audited=(), speedups=(1.0, 2.0, 3.0), gains=(1.0, 2.0, 1.5), on=()):
    """One plan of three stages, each with a skip rule on `headroom` and an exit rule on `speedup` and `stage_gain`;
    `on`: stages whose exit rule was unknown and fired, as on_missing: fire has it."""
    run = Run(results, run_id, kind="measured", thresholds={"small": 0.5})
    run.start("cuda", "H200", None)
    run.task("conv", "windows")
    run.draft("conv", "seed", "seed", 1.0, category="windows")
    for stage, speedup, gain in zip(PLAN, speedups, gains, strict=True):
        left = stage in skipped or stage in audited
        said = "true" if left else "false"
        run.rule("conv", stage, "skip", "at_floor", said, {"headroom": 10.0 / speedup}, obeyed=left)
        if left:
            outcome = "audited" if stage in audited else "skipped"
            run.stage_end("conv", stage, outcome, best="seed", speedup=speedup, category="windows", rule="at_floor")
            continue
        run.draft("conv", stage, f"{stage}-1", speedup, category="windows")
        known = {"speedup": None if stage in on else speedup, "stage_gain": gain}
        said = "unknown" if stage in on else "true" if stage in exits else "false"
        ends = stage in exits or stage in on
        run.journal.write(
            "rule", task_id="conv", stage=stage, rule="poor", rule_kind="exit", when="speedup < thresholds.small",
            outcome=said, fired=ends, obeyed=stage in exits, operands=known, missing=[], why="", candidate_id=None,
        )  # fmt: skip
        outcome = "exited" if stage in exits else "done"
        run.stage_end("conv", stage, outcome, best=f"{stage}-1", speedup=speedup, gain=gain, category="windows")
        if stage in exits:
            break
    run.task_end("conv", "windows", "done", "seed", speedups[-1])
    run.end(1, wall_s=1.0)


def replayed(results, expression, rule="poor", scope=Scope()):  # noqa: B008
    ingest(results)
    found = replay(results, expression, rule, scope)
    return [(made.stage, made.effect, made.gain_lost) for made in found.decisions], found


def test_an_exit_saves_and_loses_all_later_stages(tmp_path):
    plan(tmp_path, "a" * 16)
    decisions, found = replayed(tmp_path, "speedup < 1.5")
    assert decisions == [("tile", "ends", pytest.approx(3.0))]
    (made,), (total,) = found.decisions, found.totals
    assert (made.recorded, made.now, made.score_kind) == ("false", "true", "measured")
    # A call has 1200 tokens, 0.01 dollars and 2 s, a verdict 1.5 s, of these 0.25 s on the GPU.
    assert (made.saved.stages, made.saved.calls, made.saved.tokens, made.saved.gpu_s) == (2, 2, 2400, 0.5)
    assert (made.saved.usd, made.saved.seconds) == (pytest.approx(0.02), 7.0)
    assert (total.plans, total.evaluations, total.ends, total.worse, total.open) == (1, 1, 1, 1, 0)
    assert (total.saved, total.spent.tokens, total.gain_lost) == (made.saved, 3600, pytest.approx(3.0))


def test_the_recorded_expression_changes_nothing(tmp_path):
    plan(tmp_path, "a" * 16)
    plan(tmp_path, "b" * 16, exits=("fuse",), speedups=(1.0, 0.4, 0.4))
    decisions, found = replayed(tmp_path, "speedup < thresholds.small")
    assert decisions == []
    assert (found.totals[0].plans, found.totals[0].gain_lost, found.totals[0].saved.tokens) == (2, 1.0, 0)


def test_a_skip_takes_its_own_stage_and_its_exit_rule_along(tmp_path):
    plan(tmp_path, "a" * 16)
    decisions, found = replayed(tmp_path, "headroom < 6", "at_floor")
    assert decisions == [("fuse", "skips", 2.0), ("tune", "skips", 1.5)]
    assert found.totals[0].gain_lost == pytest.approx(3.0)
    assert found.totals[0].saved.tokens == 2400


def test_where_the_record_stopped_nothing_is_invented(tmp_path):
    plan(tmp_path, "a" * 16, exits=("fuse",))
    plan(tmp_path, "b" * 16, skipped=("fuse",), audited=("tune",))
    decisions, found = replayed(tmp_path, "speedup < 0.1")
    assert decisions == [("fuse", "goes on", None)]
    assert found.totals[0].open == 1
    assert found.decisions[0].saved is None
    assert replayed(tmp_path, "headroom < 0", "at_floor")[0] == [("fuse", "runs", None), ("tune", "runs", None)]


def also(results, run_id, stage, kind, *, obeyed=True):
    """Rule `other` of the same stage fired beside the rules of `plan`."""
    path = results / "runs" / run_id / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    mine = next(line for line in lines if f'"{stage}"' in line and f'"rule_kind":"{kind}"' in line)
    event = json.loads(mine) | {"rule": "other", "outcome": "true", "fired": True, "obeyed": obeyed}
    lines.insert(lines.index(mine), json.dumps(event, separators=(",", ":")) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize(("obeyed", "skip", "exit_"), [(True, [], []), (False, ["runs"], ["goes on"])])
def test_a_rule_beside_another_that_was_obeyed_changes_nothing(tmp_path, obeyed, skip, exit_):
    run_id = "a" * 16
    plan(tmp_path, run_id, skipped=("tile",), exits=("fuse",))
    also(tmp_path, run_id, "tile", "skip", obeyed=obeyed)
    also(tmp_path, run_id, "fuse", "exit", obeyed=obeyed)
    scope = Scope(stage="tile")
    assert [effect for _, effect, _ in replayed(tmp_path, "headroom < 0", "at_floor", scope)[0]] == skip
    assert [effect for _, effect, _ in replayed(tmp_path, "speedup < 0")[0]] == exit_


def test_without_a_stage_that_ended_the_plan_it_goes_on(tmp_path):
    plan(tmp_path, "a" * 16, exits=("fuse",))
    decisions, found = replayed(tmp_path, "headroom < 6", "at_floor")
    assert decisions == [("fuse", "skips, goes on", 2.0)]
    (total,) = found.totals
    assert (total.skips, total.open, total.saved.tokens) == (1, 1, 1200)


def test_after_the_last_stage_nothing_goes_on(tmp_path):
    plan(tmp_path, "a" * 16, exits=("tune",))
    assert replayed(tmp_path, "headroom < 4", "at_floor")[0] == [("tune", "skips, goes on", 1.5)]
    plan(tmp_path, "b" * 16)
    decisions, found = replayed(tmp_path, "headroom < 4", "at_floor", Scope(runs="aaaa"))
    assert decisions == [("tune", "skips", 1.5)]
    assert found.totals[0].open == 0
    assert replayed(tmp_path, "speedup < 0", scope=Scope(runs="aaaa"))[0] == []


def test_an_unknown_price_is_not_zero(tmp_path):
    plan(tmp_path, "a" * 16)
    path = tmp_path / "runs" / ("a" * 16) / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    free = [line.replace('"cost_usd":0.01', '"cost_usd":null') if '"fuse"' in line else line for line in lines]
    path.write_text("".join(free), encoding="utf-8")
    _, found = replayed(tmp_path, "headroom < 6", "at_floor")
    assert [made.saved.usd for made in found.decisions] == [None, pytest.approx(0.01)]
    (total,) = found.totals
    assert (total.saved.usd, total.spent.usd, total.saved.tokens) == (None, None, 2400)
    table = replaying.SHOW["table"](found)
    (fuse,) = [line.split() for line in table.splitlines() if " fuse " in line]
    assert fuse[8:11] == ["1", "1200", "?"]
    assert table.endswith("?: a call has no known price\n")
    assert json.loads(replaying.SHOW["json"](found))["decisions"][0]["saved"]["usd"] is None


def test_a_later_unknown_wins_over_an_older_answer(tmp_path):
    """The stage began twice, with another kernel; of the second no headroom is known."""
    plan(tmp_path, "a" * 16)
    path = tmp_path / "runs" / ("a" * 16) / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    mine = next(line for line in lines if '"tune"' in line and '"rule_kind":"skip"' in line)
    event = json.loads(mine) | {"candidate_id": "later", "operands": {"headroom": None}, "seq": len(lines) + 1}
    path.write_text("".join(lines) + json.dumps(event, separators=(",", ":")) + "\n", encoding="utf-8")
    assert replayed(tmp_path, "headroom < 4", "at_floor")[0] == [("tune", "unknown", None)]


def test_losing_gains_counts_improvements_only(tmp_path):
    plan(tmp_path, "a" * 16, gains=(1.0, 1.0, 1.0))
    plan(tmp_path, "b" * 16, gains=(1.0, 4.0, 1.0))
    _, found = replayed(tmp_path, "speedup < 1.5")
    assert (found.totals[0].worse, found.totals[0].gain_lost) == (1, pytest.approx(2.0))


def test_an_operand_that_no_rule_read_is_unknown(tmp_path):
    plan(tmp_path, "a" * 16)
    decisions, found = replayed(tmp_path, "headroom < 100")
    assert decisions == [(stage, "unknown", None) for stage in PLAN]
    assert found.totals[0].unknown == 3


def test_a_rule_that_fires_when_unknown_still_does(tmp_path):
    plan(tmp_path, "a" * 16, on=("fuse",))
    assert replayed(tmp_path, "speedup < 0.1")[0] == [("fuse", "ends", 1.5)]


def test_scope(tmp_path):
    plan(tmp_path, "a" * 16)
    plan(tmp_path, "b" * 16)
    assert len(replayed(tmp_path, "speedup < 1.5")[1].decisions) == 2
    (made,) = replayed(tmp_path, "speedup < 1.5", scope=Scope(runs="bbbb"))[1].decisions
    assert made.run_id == "b" * 16
    assert replayed(tmp_path, "speedup < 9", scope=Scope(stage="fuse"))[0] == [("fuse", "ends", 1.5)] * 2
    with pytest.raises(MissingError, match=r"no evaluation of a skip or exit rule 'poor'.*at_floor, poor"):
        replayed(tmp_path, "speedup < 1", scope=Scope(category="flat"))
    with pytest.raises(MissingError, match="'poor' in stage 'tiles'; it is recorded in fuse, tile, tune"):
        replayed(tmp_path, "speedup < 1", scope=Scope(stage="tiles"))
    with pytest.raises(RuleError, match="unknown name"):
        replayed(tmp_path, "speed < 1")
