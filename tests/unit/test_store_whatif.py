"""A rule replayed over recorded plans: what it would have cut short, saved and lost."""

from __future__ import annotations

import json

import pytest

from engine.errors import MissingError
from engine.journal import EVENTS
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
    scope = Scope(runs="bbbb")
    assert replayed(tmp_path, "headroom < 0", "at_floor", scope)[0] == [("fuse", "runs", None), ("tune", "runs", None)]


def also(results, run_id, stage, kind, *, obeyed=True):
    """Rule `other` of the same stage fired beside the rules of `plan`."""
    path = results / "runs" / run_id / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    mine = next(line for line in lines if f'"{stage}"' in line and f'"rule_kind":"{kind}"' in line)
    event = json.loads(mine) | {"rule": "other", "outcome": "true", "fired": True, "obeyed": obeyed}
    lines.insert(lines.index(mine), json.dumps(event, separators=(",", ":")) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def test_a_rule_beside_another_that_was_obeyed_changes_nothing(tmp_path):
    run_id = "a" * 16
    plan(tmp_path, run_id, skipped=("tile",), exits=("fuse",))
    asked = [("headroom < 0", "at_floor", Scope(stage="tile")), ("speedup < 0", "poor", Scope())]
    before = [[effect for _, effect, _ in replayed(tmp_path, *words)[0]] for words in asked]
    assert before == [["runs"], ["goes on"]]
    also(tmp_path, run_id, "tile", "skip")
    also(tmp_path, run_id, "fuse", "exit")
    assert [replayed(tmp_path, *words)[0] for words in asked] == [[], []]


def test_the_other_rules_of_an_observing_run_are_read_as_obeyed(tmp_path):
    """`other` would have left tune out, or ended the plan after fuse: neither is what `poor` or `at_floor` saves."""
    plan(tmp_path, "a" * 16)
    assert replayed(tmp_path, "headroom < 6", "at_floor")[0] == [("fuse", "skips", 2.0), ("tune", "skips", 1.5)]
    also(tmp_path, "a" * 16, "tune", "skip", obeyed=False)
    decisions, found = replayed(tmp_path, "speedup < 1.5")
    assert decisions == [("tile", "ends", 2.0)]
    (total,) = found.totals
    assert (found.decisions[0].saved.stages, total.saved.tokens, total.spent.tokens) == (1, 1200, 2400)
    assert replayed(tmp_path, "headroom < 6", "at_floor")[0] == [("fuse", "skips", 2.0)]
    plan(tmp_path, "b" * 16)
    also(tmp_path, "b" * 16, "fuse", "exit", obeyed=False)
    scope = Scope(runs="bbbb")
    assert replayed(tmp_path, "headroom < 6", "at_floor", scope)[0] == [("fuse", "skips, goes on", 2.0)]
    assert replayed(tmp_path, "headroom < 4", "at_floor", scope)[0] == [], "the plan ended before"
    assert replayed(tmp_path, "speedup < 2.5", scope=scope)[0] == [("tile", "ends", 2.0)]


def test_what_other_runs_took_from_the_memo_counts_once(tmp_path):
    """Runs a and b are the same; c and d ended by the rule itself where a goes on; e clocked fuse anew."""
    plan(tmp_path, "a" * 16)
    alone = replayed(tmp_path, "headroom < 6", "at_floor")[1]
    plan(tmp_path, "b" * 16)
    plan(tmp_path, "c" * 16, skipped=("fuse",))
    plan(tmp_path, "d" * 16, skipped=("tile",))
    _, found = replayed(tmp_path, "headroom < 6", "at_floor")
    assert (found.decisions, found.totals) == (alone.decisions, alone.totals)
    assert (found.repeats, alone.repeats) == (3, 0)
    assert "3 plans of other runs tell the same" in replaying.SHOW["table"](found)
    plan(tmp_path, "e" * 16, speedups=(1.0, 2.1, 3.0))
    _, found = replayed(tmp_path, "headroom < 6", "at_floor")
    assert [(made.run_id[0], made.stage) for made in found.decisions] == [
        ("a", "fuse"),
        ("a", "tune"),
        ("e", "fuse"),
        ("e", "tune"),
    ]
    # The tune of a and e is one paid stage.
    assert (found.totals[0].plans, found.totals[0].saved.stages, found.totals[0].saved.tokens) == (2, 3, 3600)


def unjudged(results, run_id, stage):
    """No draft came in this stage: the model gave no reply."""
    path = results / "runs" / run_id / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    gone = ("candidate", "verdict", "timing", "ratio", "promotion")
    kept = [line for line in lines if not (f'"{stage}"' in line and json.loads(line)["kind"] in gone)]
    path.write_text("".join(kept), encoding="utf-8")


def test_a_stage_without_a_judged_draft_tells_nothing_of_what_it_would_find(tmp_path):
    plan(tmp_path, "a" * 16, gains=(1.0, 1.0, 1.5))
    assert replayed(tmp_path, "headroom < 6", "at_floor")[0][0] == ("fuse", "skips", 1.0)
    unjudged(tmp_path, "a" * 16, "fuse")
    decisions, found = replayed(tmp_path, "headroom < 6 and headroom > 4", "at_floor")
    assert decisions == [("fuse", "skips", None)]
    (total,) = found.totals
    assert (total.gain_lost, total.unjudged, total.worse, total.saved.tokens) == (None, 1, 0, 1200)
    assert "no draft of the stages left out was judged" in replaying.SHOW["table"](found)
    assert replayed(tmp_path, "speedup < 1.5")[0] == [("tile", "ends", 1.5)]


@pytest.mark.parametrize(("found", "gain"), [(6.0, 6.0 / 3.0), (3.1, 1.0)])
def test_an_audit_tells_what_the_stage_would_cost_and_find(tmp_path, found, gain):
    """The best has 3.0 with ten per cent each way: 6.0 lies above it, 3.1 does not."""
    plan(tmp_path, "a" * 16, audited=("tune",), speedups=(1.0, 3.0, 3.0))
    run = Run(tmp_path, "a" * 16, kind="measured", thresholds={"small": 0.5})
    run.draft("conv", "tune", "audit", found, category="windows", audit=True, promoted=False)
    run.end(1, wall_s=1.0)
    path = tmp_path / "runs" / ("a" * 16) / "events.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace('"best_id":"seed","speedup":3.0', '"best_id":"fuse-1","speedup":3.0'), encoding="utf-8"
    )
    decisions, told = replayed(tmp_path, "headroom < 0", "at_floor")
    assert decisions == [("tune", "runs", pytest.approx(1 / gain))]
    (made,), (total,) = told.decisions, told.totals
    assert (made.saved.stages, made.saved.tokens, made.saved.gpu_s) == (-1, -1200, -0.25)
    assert made.saved.usd == pytest.approx(-0.01)
    assert (total.saved.tokens, total.open, total.worse) == (-1200, 1, 0)
    assert total.gain_lost == pytest.approx(1 / gain)


@pytest.mark.parametrize(
    ("finds", "gain"),
    [
        pytest.param({"tune": 1.5}, 1.5, id="one"),
        pytest.param({"fuse": 1.5, "tune": 2.0}, 2.0, id="two"),
        pytest.param({"fuse": 2.0, "tune": 1.0}, 2.0, id="one-found-nothing"),
        pytest.param({"fuse": 1.0, "tune": 0.5}, 1.0, id="none-found-anything"),
        pytest.param({"tile": 1.5, "fuse": 3.0, "tune": 2.0}, 3.0, id="three"),
    ],
)
def test_of_several_audits_the_largest_find_counts(tmp_path, finds, gain):
    """Each is over the same best, whose speed-up is 1.0: they do not add up."""
    plan(tmp_path, "a" * 16, audited=tuple(finds), speedups=(1.0, 1.0, 1.0), gains=(1.0, 1.0, 1.0))
    run = Run(tmp_path, "a" * 16, kind="measured", thresholds={"small": 0.5})
    for stage, found in finds.items():
        run.draft("conv", stage, f"audit-{stage}", found, category="windows", audit=True, promoted=False)
    run.end(1, wall_s=1.0)
    decisions, told = replayed(tmp_path, "headroom < 0", "at_floor")
    assert decisions == [(stage, "runs", pytest.approx(1 / max(1.0, found))) for stage, found in finds.items()]
    assert told.totals[0].gain_lost == pytest.approx(1 / gain)


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
    plan(tmp_path, "b" * 16, speedups=(1.1, 2.0, 3.0))
    assert len(replayed(tmp_path, "speedup < 1.5")[1].decisions) == 2
    (made,) = replayed(tmp_path, "speedup < 1.5", scope=Scope(runs="bbbb"))[1].decisions
    assert made.run_id == "b" * 16
    assert replayed(tmp_path, "speedup < 9", scope=Scope(stage="fuse"))[0] == [("fuse", "ends", 1.5)] * 2
    with pytest.raises(MissingError, match=r"no evaluation of a rule 'poor'.*at_floor, poor"):
        replayed(tmp_path, "speedup < 1", scope=Scope(category="flat"))
    with pytest.raises(MissingError, match="'poor' in stage 'tiles'; it is recorded in fuse, tile, tune"):
        replayed(tmp_path, "speedup < 1", scope=Scope(stage="tiles"))
    with pytest.raises(RuleError, match="unknown name"):
        replayed(tmp_path, "speed < 1")


def required(results, drafts, *, obey=False, stage="tile", outcome="done", text=""):
    """A stage with requirement `few`, `launches <= 2`. `drafts`: launches and the paired ratio of each kernel, None
    where it did not become the best. Where it is obeyed, one that breaks it has the next one as its repair. `text`: of
    the task, and before each name."""
    run = Run(results, "a" * 16, kind="measured", thresholds={"most": 2.0})
    run.start("cuda", "H200", None)
    run.task("conv", "windows", text=text)
    where = {"task_id": "conv", "stage": stage}
    sample = attempt = 0
    for number, (launches, ratio) in enumerate(drafts):
        broken = launches is not None and launches > 2
        slot = {"role": "repair" if attempt else "optimise", "attempt": attempt, "sample": sample}
        call = {"input_tokens": 1000, "output_tokens": 200, "cost_usd": 0.01, "latency_s": 2.0}
        run.journal.write("llm_call", **where, **dict.fromkeys(EVENTS["llm_call"]) | slot | call)
        kernel = {"candidate_id": f"{text}k{number}"}
        run.journal.write("candidate", **where, **dict.fromkeys(EVENTS["candidate"]) | slot | kernel)
        run.verdict(where, kernel["candidate_id"], correct=True)
        said = {"rule": "few", "rule_kind": "require", "fired": broken, "obeyed": broken and obey}
        said |= {"outcome": "unknown" if launches is None else "false" if broken else "true"}
        said |= {"operands": {"launches": launches, "thresholds.most": 2.0}}
        run.journal.write("rule", **where, **dict.fromkeys(EVENTS["rule"]) | said | kernel)
        if broken and obey:
            attempt += 1
            continue
        decided = {"promoted": ratio is not None, "ratio": ratio}
        run.journal.write("promotion", **where, **dict.fromkeys(EVENTS["promotion"]) | decided | kernel)
        sample, attempt = sample + 1, 0
    run.stage_end("conv", stage, outcome, best=f"{text}k0", speedup=2.0, gain=2.0, category="windows")
    run.task_end("conv", "windows", "done", f"{text}k0", 2.0)
    run.end(1, wall_s=1.0)


def kernels(results, expression):
    found = replayed(results, expression, "few")[1]
    return [(made.candidate_id, made.effect, made.gain_lost) for made in found.decisions], found


@pytest.mark.parametrize(
    ("drafts", "expression", "expected"),
    [
        pytest.param([(1, 2.0), (2, None)], "launches <= 2", [], id="as-recorded"),
        pytest.param([(3, 2.0)], "launches <= 2", [("k0", "refused", 2.0)], id="observed"),
        pytest.param([(2, 2.0), (1, None)], "launches <= 1", [("k0", "refused", 2.0)], id="the-best"),
        pytest.param([(2, 2.0), (1, 1.5)], "launches <= 1", [("k0", "refused", 1.0)], id="a-faster-one-stays"),
        pytest.param(
            [(1, 2.0), (2, 1.5), (2, 1.2)],
            "launches <= 1",
            [("k1", "refused", 1.5), ("k2", "refused", 1.2)],
            id="down-to-the-one-that-stays",
        ),
        pytest.param([(2, None)], "launches <= 1", [("k0", "refused", 1.0)], id="never-the-best"),
        pytest.param([(None, 2.0)], "launches <= 1", [("k0", "unknown", None)], id="unknown"),
        pytest.param([(2, 2.0)], "launches < thresholds.most", [("k0", "refused", 2.0)], id="a-threshold"),
        pytest.param([(2, 2.0)], "norm_ops == 0 and kernel_size > 3", [("k0", "refused", 2.0)], id="facts"),
    ],
)
def test_a_requirement_refuses_kernels(tmp_path, drafts, expression, expected):
    required(tmp_path, drafts)
    decisions, found = kernels(tmp_path, expression)
    assert decisions == expected
    (total,) = found.totals
    refused = [effect for _, effect, _ in expected].count("refused")
    assert (total.refused, total.open, total.skips, total.ends) == (refused, min(refused, 1), 0, 0)
    assert total.evaluations == len(drafts)
    assert total.saved.tokens == 0, "what a refused kernel saves and its repair costs is not in the record"


def test_a_looser_requirement_accepts_what_was_refused_and_saves_its_repairs(tmp_path):
    required(tmp_path, [(4, None), (3, None), (1, 2.0), (1, None)], obey=True)
    assert kernels(tmp_path, "launches <= 2")[0] == []
    decisions, found = kernels(tmp_path, "launches <= 3")
    assert decisions == [("k1", "accepted", None)]
    (made,) = found.decisions
    # The call and the verdict of the one repair after it; the next draft is none of its repairs.
    assert (made.saved.stages, made.saved.calls, made.saved.tokens) == (0, 1, 1200)
    assert (made.saved.seconds, made.saved.gpu_s) == (3.5, 0.25)
    assert (found.totals[0].open, found.totals[0].refused) == (1, 0)
    assert "k1" in replaying.SHOW["table"](found)
    assert kernels(tmp_path, "launches <= 1")[0] == []


@pytest.mark.parametrize(
    ("texts", "repairs"),
    [
        pytest.param({"A": 2}, [("Ak0", 2)], id="not-edited"),
        pytest.param({"A": 2, "B": 1}, [("Bk0", 1)], id="one-repair-of-the-present"),
        pytest.param({"A": 2, "B": 0}, [], id="none-of-the-present"),
    ],
)
def test_repairs_are_those_of_the_present_text(tmp_path, texts, repairs):
    """Each text has one draft that is refused until its repairs are enough; `texts`: how many it took."""
    for text, count in texts.items():
        required(tmp_path, [*[(3, None)] * count, (1, 2.0)], obey=True, text=text)
    found = kernels(tmp_path, "launches <= 3")[1]
    first = [made for made in found.decisions if made.candidate_id.endswith("k0")]
    assert [(made.candidate_id, made.saved.calls) for made in first] == repairs
    assert found.totals[0].plans == 1


def test_a_kernel_that_another_requirement_refused_stays_refused(tmp_path):
    required(tmp_path, [(4, None), (1, 2.0)], obey=True)
    path = tmp_path / "runs" / ("a" * 16) / "events.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    mine = next(line for line in lines if '"rule_kind":"require"' in line)
    other = json.loads(mine) | {"rule": "other"}
    path.write_text("".join(lines) + json.dumps(other, separators=(",", ":")) + "\n", encoding="utf-8")
    assert kernels(tmp_path, "launches <= 9")[0] == []


def test_a_requirement_loses_nothing_with_a_kernel_that_was_refused_as_it_was_confirmed(tmp_path):
    required(tmp_path, [(2, 2.0)])
    assert kernels(tmp_path, "launches <= 1")[0] == [("k0", "refused", 2.0)]
    run = Run(tmp_path, "a" * 16, kind="measured", thresholds={})
    run.confirmation("conv", "k0", "refused", "crash")
    run.journal.close()
    assert kernels(tmp_path, "launches <= 1")[0] == [("k0", "refused", 1.0)]


def test_an_audit_is_no_part_of_the_plan(tmp_path):
    required(tmp_path, [(2, None)], outcome="audited")
    assert kernels(tmp_path, "launches <= 1")[0] == []


def test_a_name_for_two_kinds_of_rule_needs_a_scope(tmp_path):
    required(tmp_path, [(2, 2.0)])
    run = Run(tmp_path, "b" * 16, kind="measured", thresholds={})
    run.start("cuda", "H200", None)
    run.task("conv", "windows")
    run.rule("conv", "fuse", "skip", "few", "false", {"launches": 1}, obeyed=False)
    run.draft("conv", "fuse", "f1", 1.0, category="windows")
    run.stage_end("conv", "fuse", "done", best="k0", speedup=2.0, gain=1.0, category="windows")
    run.end(1, wall_s=1.0)
    with pytest.raises(MissingError, match="'few' is the name of a require rule") as caught:
        replayed(tmp_path, "launches <= 1", "few")
    assert "--stage" in caught.value.hint
    assert replayed(tmp_path, "launches <= 1", "few", Scope(stage="fuse"))[0] == [("fuse", "skips", 1.0)]
    assert replayed(tmp_path, "launches <= 1", "few", Scope(stage="tile"))[0] == [("tile", "refused", 2.0)]
