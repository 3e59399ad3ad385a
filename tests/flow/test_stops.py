"""What a stop leaves of a run with a fake device: a budget at any step, Ctrl-C, a display that nobody reads."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

import engine.paid
from engine.app import run_job
from engine.display import end_table
from engine.display.lines import line
from engine.journal import read_events
from engine.report import rows, write_report, write_reports
from engine.store import ingest, query
from tests.flow.test_runner import FAST_STAGES, SEED, ScriptLlm, go, kernel, of
from tests.support.compose import compose
from tests.support.fake_backend import FakeBackend

__all__ = ["go"]

FIRST, LAST = "primary_conv", "fuse_activation_pooling"
TWO = f"categories.fusion_memory.stages.{FIRST}.budget.candidates=2"
TURNS = f"categories.fusion_memory.stages.{FIRST}.sequential=true"
GPU_S = r"search.budget.gpu_s: {0}.0 s spent of {0}.0 s allowed for judge steps (wall clock)"


@pytest.fixture(autouse=True)
def contract(go):
    # Declared, or a process with torch would be started to derive them.
    (go.folder / "toy.yaml").write_text("variants: {small: {N: 4}}\n")


@pytest.fixture
def second(monkeypatch):
    """Each judge step takes one second, or what `of_each` says in turn."""

    def take(*of_each):
        left = list(of_each)
        monkeypatch.setattr(engine.paid, "_spent", lambda started: {"wall_s": left.pop(0) if left else 1.0})

    take()
    return take


@pytest.fixture
def log(go):
    path = go.folder / "log"
    path.touch()
    return path


def paid(log, what):
    return sum(text.startswith(what) and "reference" not in text for text in log.read_text().splitlines())


def table(events):
    """The end table, its lines joined."""
    return " ".join(end_table(rows(events)).split())


def best_of(go):
    (path,) = (go.folder / "results").glob("runs/*/tasks/toy/best.py")
    return path.read_text()


def events_of(go):
    return read_events(next((go.folder / "results").glob("runs/*/events.jsonl")))


def test_a_correct_kernel_that_cannot_be_timed_any_more_is_kept_without_a_score(go, second, log):
    events, _, llm = go(
        FAST_STAGES, "backend=cuda", "search.seeds=2", "search.budget.gpu_s=2", backend=FakeBackend(log)
    )
    (end,) = of(events, "task_ended")
    spent = GPU_S.format(2)
    assert (end["outcome"], end["best_id"]) == ("budget", of(events, "candidate")[0]["candidate_id"])
    assert (end["speedup"], end["score_kind"], end["headroom"]) == (None, None, None)
    assert end["why"] == f"{spent}; the best kernel is not confirmed nor timed"
    (promotion,) = of(events, "promotion")
    assert (promotion["promoted"], promotion["why"]) == (True, f"first correct kernel, not timed: {spent}")
    assert (paid(log, "judge"), paid(log, "measure")) == (1, 0), "no judge step beyond the budget"
    assert set(llm.seen) == {"seed.seed.0.0"}, "no reply is paid for that no judge may see"
    assert "us=200" in best_of(go)
    (row,) = rows(events)
    assert (row.solved, row.vs_eager) == (True, None)
    assert "- not timed -" in table(events)
    assert "best.py" in table(events)
    assert line(end).startswith("  budget: a correct kernel, not timed; search.budget.gpu_s")
    (folder,) = (go.folder / "results/runs").iterdir()
    write_reports(folder, events)
    assert "not timed: search.budget.gpu_s" in write_report(folder, events).read_text()
    assert json.loads((folder / "summary.json").read_text())["solved"] == 1
    ingest(go.folder / "results")
    found = query(go.folder / "results", "SELECT best_id, speedup, score_kind, outcome FROM tasks").rows
    assert found == ((end["best_id"], None, None, "budget"),)


def test_an_estimate_costs_nothing_and_is_made_whatever_is_spent(go, second, log):
    events, _, llm = go(FAST_STAGES, "search.seeds=2", "search.budget.gpu_s=2", backend=FakeBackend(log))
    (end,) = of(events, "task_ended")
    assert (end["outcome"], end["speedup"], end["confirmed"]) == ("budget", 0.5, None)
    assert end["why"] == f"{GPU_S.format(3)}; the best kernel is not confirmed".replace("of 3.0", "of 2.0")
    assert (paid(log, "judge"), set(llm.seen)) == (1, {"seed.seed.0.0"})


@pytest.mark.parametrize(
    ("backend", "limit", "speedup", "why"),
    [
        ("cpu", 6, 1.25, "2.500x the best, lower end 2.475 above 1.01"),
        ("cuda", 6, 0.5, f"not timed: {GPU_S.format(6)}"),
        ("cuda", 7, 0.5, f"no paired measurement with the best: {GPU_S.format(7)}"),
    ],
    ids=["an estimate is free", "no timing", "no pairing"],
)
@pytest.mark.parametrize("turns", ["all at once", "in turn"])
def test_a_later_kernel_takes_the_bests_place_only_where_that_can_be_shown(
    go, second, log, backend, limit, speedup, why, turns
):
    """Baseline, verdict and timing of the seed, two profiles, and the verdict of the kernel are six seconds."""
    rest = (TURNS,) if turns == "in turn" else ()
    events, _, _ = go(
        FAST_STAGES, f"backend={backend}", f"search.budget.gpu_s={limit}", *rest, backend=FakeBackend(log)
    )
    (end,) = of(events, "task_ended")
    promotion = of(events, "promotion", stage=FIRST)[0]
    assert (end["outcome"], end["speedup"], promotion["why"]) == ("budget", speedup, why)
    assert paid(log, "judge") == 2
    assert ("us=80" in best_of(go)) is promotion["promoted"] is (speedup > 1)


def test_a_plan_goes_on_after_a_stage_that_was_out_of_budget(go, second):
    events, _, _ = go(FAST_STAGES, "search.budget.stage.gpu_s=3")
    assert [e["outcome"] for e in of(events, "task_ended")] == ["done"]
    assert of(events, "task_ended")[0]["speedup"] == pytest.approx(2.5)


def test_a_plan_goes_on_from_seeds_that_could_not_be_timed(go, second):
    """On a GPU the confirmation times them; a slower kernel that is timed first does not take their place."""
    seed = kernel(us=200, again="50,55,60")
    replies = {**FAST_STAGES, "seed.seed.0.0": seed, f"{FIRST}.optimise.0.0": kernel(us=300)}
    second(0.0, 9.0, *[0.0] * 9)
    events, _, llm = go(replies, "backend=cuda", "search.budget.stage.gpu_s=9")
    (end,) = of(events, "task_ended")
    cut = "search.budget.stage.gpu_s: 9.0 s spent of 9.0 s allowed for judge steps (wall clock) in stage seed"
    assert (end["outcome"], end["why"]) == ("done", f"all stages ended; {cut}")
    assert of(events, "promotion", stage=FIRST)[0]["why"].startswith("0.667x the best")
    assert llm.seen[f"{LAST}.optimise.0.0"] == 1
    assert "us=40" in best_of(go)
    assert f"done: {cut}" in table(events)


def test_the_confirmation_times_a_kernel_that_a_stage_budget_left_untimed(go, second):
    replies = {"seed.seed.0.0": kernel(us=200, again="50,55,60")}
    second(0.0, 9.0, *[0.0] * 9)
    events, _, _ = go(replies, "backend=cuda", "search.budget.stage.gpu_s=9")
    (end,) = of(events, "task_ended")
    assert (end["outcome"], end["speedup"], end["confirmed"]) == ("done", pytest.approx(100 / 55), True)


@pytest.mark.parametrize("level", ["", "task."])
def test_a_stage_that_a_budget_cut_has_an_end_that_says_so(go, level):
    events, _, _ = go(FAST_STAGES, f"search.budget.{level}calls=1")
    (ended,) = of(events, "stage_ended")
    assert (ended["stage"], ended["outcome"]) == (FIRST, "done")
    assert ended["why"] == of(events, "task_ended")[0]["why"]
    assert f"search.budget.{level}calls: 1 spent of 1 allowed" in ended["why"]
    assert "running" not in table(events)


def test_a_rule_that_ends_the_plan_does_not_hide_the_budget_that_cut_its_stage(go):
    slow = {**FAST_STAGES, "seed.seed.0.0": kernel(us=1000), f"{FIRST}.strategy.0.0": "{}"}
    events, _, _ = go(slow, "search.strategy=true", "search.budget.stage.calls=1")
    (ended,) = of(events, "stage_ended")
    cut = f"search.budget.stage.calls: 1 spent of 1 allowed in stage {FIRST}"
    assert (ended["outcome"], ended["rule"]) == ("exited", "small_conv")
    assert ended["why"].startswith("cuDNN") and ended["why"].endswith(f"; {cut}")
    assert cut in table(events)


def test_a_stage_that_an_error_broke_is_not_shown_as_running(go):
    replies = {**SEED, f"{FIRST}.optimise.0.0": kernel(us=1, boom=1)}
    events, _, _ = go(replies, backend=FakeBackend(fail_on="boom=1"))
    assert f"{FIRST} stopped" in table(events)


class Impatient(ScriptLlm):
    """The user presses Ctrl-C when this slot is asked."""

    def __init__(self, replies, slot):
        super().__init__(replies)
        self.slot = slot

    def complete(self, request):
        if f"{request.slot.stage}.{request.slot.role}.0.{request.slot.sample}" == self.slot:
            raise KeyboardInterrupt
        return super().complete(request)


def test_after_ctrl_c_nothing_is_paid_for_and_the_same_command_compares(go, log):
    replies = {**FAST_STAGES, f"{FIRST}.optimise.0.1": kernel(us=70)}
    with pytest.raises(KeyboardInterrupt):
        go(replies, TWO, backend=FakeBackend(log), llm=Impatient(replies, f"{FIRST}.optimise.0.1"))
    assert paid(log, "measure") == 2, "the seed's timing and the candidate's; no pairing"
    assert "us=200" in best_of(go)
    events, _, _ = go(replies, TWO, backend=FakeBackend(log))
    assert of(events, "task_ended")[0]["speedup"] == pytest.approx(2.5)
    assert [e["promoted"] for e in of(events, "promotion")] == [True, True, True, True]


def test_a_kernel_is_kept_by_ctrl_c_among_its_siblings(go, log):
    replies = {**FAST_STAGES, "seed.seed.0.1": kernel(us=190)}
    with pytest.raises(KeyboardInterrupt):
        go(replies, "search.seeds=2", backend=FakeBackend(log), llm=Impatient(replies, "seed.seed.0.1"))
    assert "us=200" in best_of(go)


def test_a_kernel_is_kept_by_ctrl_c_while_it_is_timed(go):
    class Impatiently(FakeBackend):
        def measure(self, operator, candidate, incumbent):
            if candidate is not None:
                raise KeyboardInterrupt
            return super().measure(operator, candidate, incumbent)

    with pytest.raises(KeyboardInterrupt):
        go(FAST_STAGES, backend=Impatiently())
    assert "us=200" in best_of(go)
    (row,) = rows(events_of(go))
    assert (row.solved, row.vs_eager) == (True, None)
    events, _, _ = go(FAST_STAGES)
    assert of(events, "task_ended")[0]["speedup"] == pytest.approx(2.5)
    assert len(of(events, "promotion", stage="seed")) == 1


def unread() -> io.TextIOWrapper:
    """A stream whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", buffering=1)  # noqa: PTH123 - a descriptor has no path


def test_a_table_that_nobody_reads_loses_nothing(go, monkeypatch):
    go(FAST_STAGES)
    with unread() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        ended = run_job(*compose(*go.base), None)
        monkeypatch.undo()
    assert ended.code == 0
    assert query(go.folder / "results", "SELECT count(*) FROM leaderboard").rows == ((1,),)
    assert list((go.folder / "results").glob("runs/*/report.html"))


def test_a_display_that_nobody_reads_ends_the_run_as_ctrl_c_does(go, monkeypatch, log):
    go({}, "search.budget.calls=0")
    device = FakeBackend(log)
    monkeypatch.setattr("engine.run.open_llm", lambda *_, **__: ScriptLlm(FAST_STAGES))
    monkeypatch.setattr("engine.run.open_backend", lambda *_: device)
    with unread() as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(KeyboardInterrupt):
            run_job(*compose(*go.base, "display.mode=plain"), None)
    assert log.read_text() == ""
