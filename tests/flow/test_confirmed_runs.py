"""Whole runs with a fake device: the best kernel is confirmed at the end, and what follows when it is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from engine.errors import WorkerError
from engine.llm.budget import Budget
from engine.llm.caller import Caller
from engine.memo import Step, step_key
from engine.records import Judged
from engine.report import rows
from tests.flow.test_runner import FAST_STAGES, SEED, go, kernel, of
from tests.support.fake_backend import FakeBackend

__all__ = ["go"]

FIRST, SECOND, THIRD = "seed.seed.0.0", "primary_conv.optimise.0.0", "fuse_activation_pooling.optimise.0.0"


def best_of(go):
    return [path.read_text() for path in (go.folder / "results").glob("runs/*/tasks/toy/best.py")]


def paid(log):
    """What the device was asked; a profile without values is asked again each time, and left out here."""
    return [word for line in log.read_text().splitlines() if (word := line.split()[0]) != "profile"]


def test_the_best_kernel_is_confirmed_once_at_the_end(go, tmp_path):
    log = tmp_path / "log"
    events, _, _ = go(FAST_STAGES, backend=FakeBackend(log))
    (event,) = of(events, "confirmation")
    end = of(events, "task_ended")[0]
    assert (event["outcome"], event["candidate_id"], end["confirmed"]) == ("confirmed", end["best_id"], True)
    assert event["variants"] == {"unseen1": {"N": 7}}
    kinds = [e["kind"] for e in events]
    assert kinds.index("confirmation") == kinds.index("task_ended") - 1
    assert paid(log).count("confirm") == 1


def test_a_refused_kernel_makes_room_for_the_best_before_it(go):
    replies = {**FAST_STAGES, THIRD: kernel(us=40, confirm="crash")}
    events, _, _ = go(replies)
    end = of(events, "task_ended")[0]
    assert [(e["outcome"], e["reason"]) for e in of(events, "confirmation")] == [
        ("refused", "crash"),
        ("confirmed", None),
    ]
    assert (end["outcome"], end["speedup"], end["confirmed"]) == ("done", pytest.approx(1.25), True)
    promoted = [e["candidate_id"] for e in of(events, "promotion", promoted=True)]
    assert end["best_id"] == promoted[1]
    (best,) = best_of(go)
    assert "us=80" in best


def test_a_task_whose_kernels_are_all_refused_is_unsolved(go):
    replies = {slot: text.replace("fake:", "fake: confirm=unstable") for slot, text in FAST_STAGES.items()}
    events, outcome, _ = go(replies)
    end = of(events, "task_ended")[0]
    assert len(of(events, "confirmation", outcome="refused")) == 3
    assert (end["outcome"], end["best_id"], end["speedup"], end["confirmed"]) == ("unsolved", None, None, False)
    assert "refused" in end["why"]
    assert best_of(go) == []
    assert outcome.exit_code == 0


def test_a_kernel_that_cannot_be_decided_stays_without_the_mark(go):
    events, _, _ = go({**FAST_STAGES, THIRD: kernel(us=40, confirm="unsupported")})
    end = of(events, "task_ended")[0]
    assert [e["outcome"] for e in of(events, "confirmation")] == ["undecided"]
    assert (end["speedup"], end["confirmed"]) == (pytest.approx(2.5), None)


def test_the_middle_time_of_fresh_processes_is_reported_with_its_interval(go):
    events, _, _ = go({**FAST_STAGES, THIRD: kernel(us=40, again="55,40,50")})
    (event,), end = of(events, "confirmation"), of(events, "task_ended")[0]
    assert (end["speedup"], end["headroom"]) == (pytest.approx(2.0), pytest.approx(2.5))
    assert (len(event["ratios"]), event["chosen"]) == (3, 2)
    assert any("disagree" in remark for remark in event["remarks"])
    (row,) = rows(events)
    assert (row.vs_eager.value, row.vs_eager.lo, row.confirmed) == (2.0, pytest.approx(1.98), True)


def test_nothing_is_confirmed_where_it_is_switched_off(go):
    events, _, _ = go(FAST_STAGES, "judge.confirm.enabled=false")
    assert of(events, "confirmation") == []
    assert (of(events, "task_ended")[0]["confirmed"], len(best_of(go))) == (None, 1)


def test_nothing_is_confirmed_where_there_is_no_kernel(go):
    events, _, _ = go({FIRST: kernel(reason="shape")})
    assert of(events, "confirmation") == []
    assert of(events, "task_ended")[0]["confirmed"] is None


def test_a_spent_budget_still_confirms_what_was_found(go):
    events, _, _ = go(FAST_STAGES, "search.budget.calls=2")
    end = of(events, "task_ended")[0]
    assert (end["outcome"], end["confirmed"], len(of(events, "task_ended"))) == ("budget", True, 1)


class Breaking(FakeBackend):
    def confirm(self, operator, winner):
        raise WorkerError("the judge died")


def test_a_judge_that_dies_while_it_confirms_costs_the_confirmation_alone(go, tmp_path):
    events, outcome, _ = go(FAST_STAGES, backend=Breaking())
    end = of(events, "task_ended")[0]
    assert (end["outcome"], end["speedup"], end["confirmed"]) == ("failed", pytest.approx(2.5), None)
    assert outcome.exit_code == 1
    log = tmp_path / "log"
    events, outcome, _ = go(FAST_STAGES, backend=FakeBackend(log))
    assert (of(events, "task_ended")[-1]["confirmed"], outcome.exit_code) == (True, 0)
    assert paid(log) == ["confirm"], "all else was paid before"


class BreakingLater(FakeBackend):
    """Refuses the first kernel that is to be confirmed and dies at the next."""

    def confirm(self, operator, winner):
        made = super().confirm(operator, winner)
        if made.refused:
            return made
        raise WorkerError("the judge died")


def test_a_judge_that_dies_after_a_refusal_leaves_no_refused_kernel_as_the_best(go):
    replies = {**FAST_STAGES, THIRD: kernel(us=40, confirm="crash")}
    events, _, _ = go(replies, backend=BreakingLater())
    end = of(events, "task_ended")[0]
    assert [e["outcome"] for e in of(events, "confirmation")] == ["refused"]
    assert (end["outcome"], end["best_id"], end["speedup"], end["confirmed"]) == ("failed", None, None, None)
    assert best_of(go) == []
    events, _, _ = go(replies)
    assert (of(events, "task_ended")[-1]["confirmed"], ["us=80" in best for best in best_of(go)][-1]) == (True, True)


def test_a_sweep_over_policy_does_not_confirm_again(go, tmp_path):
    log = tmp_path / "log"
    go(FAST_STAGES, backend=FakeBackend(log))
    before = paid(log)
    events, _, _ = go(FAST_STAGES, "thresholds.floor_headroom=1.01", backend=FakeBackend(log))
    assert of(events, "confirmation")[0]["outcome"] == "confirmed"
    assert paid(log) == before


def keys(go, kind):
    """Inputs of the one step of a kind, and its address."""
    found = [json.loads(path.read_text()) for path in (go.folder / "results" / "steps" / kind).rglob("*.json")]
    return {step_key(kind, step["inputs"]): step["inputs"] for step in found}


def test_what_a_confirmation_is_addressed_by(go):
    go(FAST_STAGES)
    (first,), verdicts = keys(go, "confirm").items(), keys(go, "verdict")
    assert set(first[1]) == {"task", "source", "device", "judge", "target", "compile", "variants"}
    assert "confirm" not in first[1]["judge"]
    for same in ("judge.confirm.enabled=false", "judge.confirm.repeats=5", "judge.confirm.sanitizer_s=9"):
        go(FAST_STAGES, same)
    assert len(keys(go, "confirm")) == 1, "without a device nothing is repeated or sanitized"
    go(FAST_STAGES, "judge.confirm.variants=3")
    assert len(keys(go, "confirm")) == 2
    assert keys(go, "verdict") == verdicts, "verdicts of the search do not depend on how the best is confirmed"
    go(FAST_STAGES, "judge.suites=[nominal]")
    assert len(keys(go, "confirm")) == 3


def test_on_a_device_the_address_has_the_protocol_and_the_tool(monkeypatch):
    import engine.paid
    from engine.confirmation import Confirmation
    from engine.paid import Paid
    from engine.records import Mode, Operator, Status, Verdict
    from tests.flow.test_runner import FACTS
    from tests.support.compose import compose
    from tests.support.judge import bundled_tasks

    asked = []

    class Memo:
        def step(self, kind, inputs, work):
            asked.append((kind, inputs))
            return Step("key", inputs, *work(), ran=True)

    made = Confirmation(Verdict(Status.CORRECT, None, Mode.PLAN, ""), {})
    device = FakeBackend()
    monkeypatch.setattr(device, "confirm", lambda *_: made)
    operator = Operator(bundled_tasks()["softmax"], FACTS)
    cases = [(None, []), ("/x", []), ("/x", ["judge.confirm.sanitizer=off"]), ("/x", ["backends.cuda.cuda.block_ms=7"])]
    for path, overrides in cases:
        monkeypatch.setattr(engine.paid, "find_sanitizer", lambda path=path: path)
        settings, _ = compose("backend=cuda", *overrides)
        paid = Paid(
            settings,
            backend=device,
            caller=Caller(None, settings.llm.retry, Budget(settings.search.budget)),
            memo=Memo(),
            journal=SimpleNamespace(due=None),
            folder=None,
            free_replies=True,
        )
        assert paid.confirm(operator, Judged("source", None)) == made
    assert {kind for kind, _ in asked} == {"confirm"}
    absent, there, off, other = (step_key(*step) for step in asked)
    assert absent == off
    assert len({absent, there, other}) == 3
    assert {"protocol", "repeats", "sanitizer", "sanitizer_s"} <= set(asked[0][1])


def test_the_seed_alone_can_be_the_best(go):
    events, _, _ = go({**SEED, SECOND: kernel(us=500), THIRD: kernel(us=500)})
    assert of(events, "confirmation")[0]["candidate_id"] == of(events, "task_ended")[0]["best_id"]
