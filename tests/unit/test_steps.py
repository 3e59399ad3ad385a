"""`python -m engine.steps`: what the memo holds, whether it is whole, what goes and what stays."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.codec import encode
from engine.decode import run_identity
from engine.errors import MissingError, StoreError
from engine.journal import EVENTS, Journal
from engine.memo import Memo
from engine.records import Reply, Usage
from engine.steps.__main__ import main
from engine.steps.listing import Filter, listing
from engine.steps.prune import Fate, Judged, plan, remove, sweep_up
from engine.steps.stored import RECENT_S, step_files
from engine.steps.verify import Fault, verify

REPLY = encode(Reply("text", "stop", Usage(3, 2, cost_usd=0.25), 1.5, "m", "scripted"))
SPENT = {"usage": REPLY["usage"], "latency_s": 1.5}
DAY_S = 86400.0
SOURCE_HASH, TASK_HASH = "s" * 64, "t" * 64


@pytest.fixture
def memo(tmp_path):
    return Memo(tmp_path / "steps", "run1")


def make(memo, kind="other", source=SOURCE_HASH, run_id="run1", cost=None):
    """A step of a kind whose outcome this version does not know, so that any will do; its path."""
    work = Memo(memo.root, run_id)
    inputs = {"task": TASK_HASH, "source": source, "run": run_id}
    step = work.step(kind, inputs, lambda: ({"x": 1}, {"wall_s": 2.0} if cost is None else cost))
    return memo.path(kind, step.key)


def reply(memo, text="hello", run_id="run1"):
    inputs = {"model": "m", "messages": [{"role": "user", "content": text}], "params": {}, "sample": 0}
    step = Memo(memo.root, run_id).step("reply", inputs, lambda: (REPLY, SPENT))
    return memo.path("reply", step.key)


def unused(*paths, age_s=2 * RECENT_S):
    """Nobody asked for these for a while."""
    for path in paths:
        os.utime(path, (time.time() - age_s, time.time() - age_s))


def journal(results, run_id, *, ended, candidates=(SOURCE_HASH,), replies=(), config=None):
    folder = results / "runs" / run_id
    written = Journal(folder / "events.jsonl", run_id)
    written.write("task_started", task_id="a", **dict.fromkeys(EVENTS["task_started"]) | {"task_hash": TASK_HASH})
    for source in candidates:
        written.write("candidate", task_id="a", **dict.fromkeys(EVENTS["candidate"]) | {"source_hash": source})
    for number, step in enumerate(replies):
        fields = dict.fromkeys(EVENTS["llm_call"]) | {"sample": number}
        written.write("llm_call", task_id="a", step=step, **fields)
    if ended:
        written.write("run_ended", outcome=ended, tasks=1, failed=[], wall_s=1.0)
    written.close()
    if config is not None:
        (folder / "config.yaml").write_text(json.dumps(config))


def fates(results, wanted=None, *, unreferenced=False):
    judged = plan(results, wanted or Filter(), unreferenced=unreferenced)
    return {one.step.path: one.fate for one in judged}


def test_the_list_has_a_row_a_kind_and_their_sum(memo):
    make(memo)
    make(memo, source="u" * 64)
    path = reply(memo)
    rows = {row[0]: row[1:] for row in listing(memo.root, Filter()).rows}
    assert rows["other"][0] == 2
    assert rows["other"][2:4] == (4.0, None)
    assert rows["reply"][:4] == (1, path.stat().st_size, 1.5, 0.25)
    assert rows["all"][0] == 3
    assert rows["all"][2:4] == (5.5, 0.25)
    assert rows["all"][4] <= rows["all"][5]


def test_the_list_is_of_a_kind_a_run_and_an_age(memo):
    make(memo)
    make(memo, run_id="run2")
    reply(memo)
    soon = time.time() + DAY_S
    assert [row[:2] for row in listing(memo.root, Filter(kinds=("reply",))).rows] == [("reply", 1)]
    assert [row[:2] for row in listing(memo.root, Filter(run="run2")).rows] == [("other", 1)]
    assert listing(memo.root, Filter(before=soon - 2 * DAY_S)).rows == ()
    assert listing(memo.root, Filter(after=soon)).rows == ()
    assert listing(memo.root, Filter(before=soon)).rows[-1][:2] == ("all", 3)


def test_a_step_that_is_not_in_the_ledger_tells_its_cost_itself(memo):
    reply(memo)
    (memo.root / "ledger.jsonl").unlink()
    assert listing(memo.root, Filter()).rows[0][3:5] == (1.5, 0.25)


def test_a_run_is_named_by_the_start_of_its_id_and_an_unknown_one_is_refused(memo, capsys):
    results = memo.root.parent
    make(memo, run_id="09b3" + "0" * 12)
    make(memo, run_id="09c3" + "0" * 12)
    (results / "runs" / ("77aa" + "0" * 12)).mkdir(parents=True)

    def listed(word):
        code = main(["--results", str(results), "list", "--json", "--run", word])
        said = capsys.readouterr()
        return code, [row["steps"] for row in json.loads(said.out or "[]")], said.err

    assert listed("09b3") == listed("09b3" + "0" * 12) == (0, [1], "")
    assert listed("77aa") == (0, [], ""), "a run that found all in the memo"
    code, _, told = listed("nosuch")
    assert (code, told.splitlines()[0]) == (2, "no run is called 'nosuch'")
    assert listed("09b")[0] == 2
    make(memo, run_id="09b3" + "1" * 12)
    assert "2 runs begin with '09b3'" in listed("09b3")[2]
    assert main(["--results", str(results), "prune", "--unreferenced", "--run", "nosuch"]) == 2


def test_an_unknown_kind_is_named(memo):
    make(memo)
    with pytest.raises(MissingError, match="timming"):
        listing(memo.root, Filter(kinds=("timming",)))


def test_a_whole_memo_has_no_findings(memo):
    make(memo)
    reply(memo)
    found = verify(memo.root)
    assert (found.steps, found.findings) == (2, ())


def rewrite(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        pytest.param(lambda path: path.write_text("{"), Fault.CORRUPT, id="not-json"),
        pytest.param(lambda path: path.write_text("[]"), Fault.CORRUPT, id="not-a-step"),
        pytest.param(lambda path: path.write_bytes(b"\0" * 90), Fault.CORRUPT, id="zeros"),
        pytest.param(lambda path: rewrite(path, v=2), Fault.CORRUPT, id="version"),
        pytest.param(lambda path: rewrite(path, outcome=REPLY | {"text": "teXt"}), Fault.CORRUPT, id="bit-rot"),
        pytest.param(
            lambda path: rewrite(path, outcome={}, outcome_sha256=None), Fault.CORRUPT, id="unreadable-outcome"
        ),
        pytest.param(lambda path: rewrite(path, inputs={"model": "x"}), Fault.MISPLACED, id="inputs-changed"),
        pytest.param(lambda path: rewrite(path, kind="verdict"), Fault.MISPLACED, id="other-kind"),
        pytest.param(lambda path: path.rename(path.with_name("0" * 64 + ".json")), Fault.MISPLACED, id="moved"),
        pytest.param(lambda path: path.rename(path.parents[1] / path.name), Fault.MISPLACED, id="no-place"),
    ],
)
def test_a_damaged_step_is_found_with_its_path_and_a_remedy(memo, capsys, damage, fault):
    make(memo)
    damage(reply(memo))
    errors = [finding for finding in verify(memo.root).findings if finding.fault in (Fault.CORRUPT, Fault.MISPLACED)]
    assert [finding.fault for finding in errors] == [fault]
    assert main(["--results", str(memo.root.parent), "verify"]) == 1
    told = capsys.readouterr().out
    assert str(errors[0].path) in told
    assert "delete" in told


def test_what_the_ledger_and_the_steps_lack_of_each_other_is_noted(memo, capsys):
    gone, kept = make(memo), reply(memo)
    gone.unlink()
    ledger = memo.root / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text(lines[0] + lines[1][:20])
    make(memo, source="u" * 64)
    found = {finding.fault: finding for finding in verify(memo.root).findings}
    assert set(found) == {Fault.LOST, Fault.UNLISTED, Fault.TORN}
    assert gone.stem in found[Fault.LOST].problem
    assert found[Fault.UNLISTED].path == kept
    assert "line 2" in found[Fault.TORN].problem
    assert main(["--results", str(memo.root.parent), "verify", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["steps"], tree["errors"], len(tree["findings"])) == (2, 0, 3)


def test_files_of_a_killed_process_are_noted_and_swept_up(memo):
    path = make(memo)
    mine, others = path.with_name(".x.json.77"), path.with_name(".y.json.78")
    mine.write_text("{")
    others.write_text("{")
    unused(others)
    assert [finding.path for finding in verify(memo.root).findings] == [others]
    assert sweep_up(memo.root.parent, ()) == 1
    assert mine.exists(), "its process may be at work"


def test_a_dry_run_takes_nothing_and_yes_does(memo, capsys):
    path, other = make(memo), reply(memo)
    unused(path, other)
    results = ["--results", str(memo.root.parent)]
    assert main([*results, "prune", "--kind", "other"]) == 0
    assert "--yes" in capsys.readouterr().err
    assert path.exists()
    assert main([*results, "prune", "--kind", "other", "--yes"]) == 0
    assert "1 steps removed" in capsys.readouterr().err
    assert not path.exists()
    assert other.exists()
    assert verify(memo.root).findings == (), "the ledger keeps the line, and the step is not missed"
    assert listing(memo.root, Filter()).rows[0][0] == "reply"


@pytest.mark.parametrize(
    "arguments", [["prune"], ["prune", "--yes"], ["list", "--older-than", "3 days"], ["remove"]], ids=" ".join
)
def test_a_command_that_says_too_little_is_refused(memo, arguments):
    make(memo)
    with pytest.raises(SystemExit) as caught:
        main(["--results", str(memo.root.parent), *arguments])
    assert caught.value.code == 2


def test_without_a_memo_there_is_nothing_to_do(tmp_path, capsys):
    assert main(["--results", str(tmp_path), "list"]) == 2
    assert "steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("age_s", "fate"),
    [(2 * RECENT_S, Fate.REMOVE), (60.0, Fate.RECENT), (-DAY_S, Fate.RECENT)],
    ids=["long-ago", "just-now", "clock-was-set-back"],
)
def test_what_was_used_just_now_stays(memo, age_s, fate):
    path = make(memo)
    unused(path, age_s=age_s)
    assert fates(memo.root.parent) == {path: fate}


def test_asking_for_a_step_keeps_it(memo):
    path = make(memo)
    unused(path)
    assert make(memo) == path
    assert fates(memo.root.parent) == {path: Fate.RECENT}


def test_what_an_unfinished_run_needs_stays_whatever_is_asked(memo, tmp_path):
    used, answered = make(memo, run_id="gone"), reply(memo, run_id="gone")
    foreign = make(memo, source="u" * 64, run_id="gone")
    made = make(memo, source="w" * 64, run_id="open")
    unused(used, answered, foreign, made)
    journal(tmp_path, "open", ended=None, replies=[answered.stem])
    assert fates(tmp_path) == {
        used: Fate.NEEDED,
        answered: Fate.NEEDED,
        made: Fate.NEEDED,
        foreign: Fate.REMOVE,
    }


@pytest.mark.parametrize(("outcome", "kept"), [("done", False), ("budget", False), ("failed", True)])
def test_a_run_has_ended_when_the_same_command_does_nothing_more(memo, tmp_path, outcome, kept):
    path = make(memo, run_id="gone")
    unused(path)
    journal(tmp_path, "r", ended=outcome)
    assert fates(tmp_path) == {path: Fate.NEEDED if kept else Fate.REMOVE}


def test_a_step_without_a_line_in_the_ledger_may_be_that_of_an_unfinished_run(memo, tmp_path):
    path = make(memo, source="u" * 64, run_id="gone")
    (memo.root / "ledger.jsonl").unlink()
    unused(path)
    assert fates(tmp_path) == {path: Fate.REMOVE}
    journal(tmp_path, "open", ended=None)
    assert fates(tmp_path) == {path: Fate.NEEDED}


def test_unreferenced_is_what_no_journal_names(memo, tmp_path):
    named, answered, reference = make(memo), reply(memo), make(memo, kind="first", source=None)
    nobodys, unanswered = make(memo, source="u" * 64), reply(memo, "another")
    unused(named, answered, reference, nobodys, unanswered)
    journal(tmp_path, "done", ended="done", replies=[answered.stem])
    found = fates(tmp_path, unreferenced=True)
    assert {path for path, fate in found.items() if fate is Fate.REMOVE} == {nobodys, unanswered}
    assert {found[named], found[answered], found[reference]} == {Fate.REFERRED}
    remove(tmp_path, plan(tmp_path, Filter(), unreferenced=True))
    assert [path.exists() for path in (named, answered, reference, nobodys, unanswered)] == [True] * 3 + [False] * 2


def test_a_fresh_run_keeps_the_replies_of_the_run_that_it_repeats(memo, tmp_path):
    tree = {"run": {"mode": "run", "sweep": None, "debug": False}, "search": {"fresh": ["timing"], "repeat": 2}}
    base = run_identity({**tree, "search": {"fresh": [], "repeat": 1}})
    answered = reply(memo, run_id=base)
    unused(answered)
    journal(tmp_path, base, ended="done", candidates=(), replies=[answered.stem])
    assert fates(tmp_path) == {answered: Fate.REMOVE}
    journal(tmp_path, run_identity(tree), ended=None, candidates=(), config=tree)
    assert fates(tmp_path) == {answered: Fate.NEEDED}


def test_a_journal_that_cannot_be_read_may_refer_to_anything(memo, tmp_path):
    unused(make(memo))
    journal(tmp_path, "r", ended="done")
    path = tmp_path / "runs" / "r" / "events.jsonl"
    path.write_text("rubbish\n" + path.read_text())
    with pytest.raises(StoreError, match="line 1"):
        plan(tmp_path, Filter(), unreferenced=False)


def test_a_step_that_is_asked_for_while_it_is_taken_away_stays(memo, tmp_path):
    path = make(memo)
    unused(path)
    judged = plan(tmp_path, Filter(), unreferenced=False)
    make(memo)
    assert [one.fate for one in remove(tmp_path, judged)] == [Fate.TAKEN]
    assert path.exists()
    assert verify(memo.root).findings == ()


def test_engines_beside_a_prune_never_fail_and_never_miss_what_they_were_given(memo, tmp_path):
    """Threads ask for a few steps while these are taken away over and over: each answer is whole."""
    stop, wrong, answers = threading.Event(), [], []
    make(memo)

    def ask(number):
        mine = Memo(memo.root, f"run{number}")
        while not stop.wait(0.001):
            for key in range(4):
                found = mine.step("other", {"task": "x", "n": key}, lambda key=key: ({"n": key}, {"wall_s": 0.0}))
                answers.append(key)
                if found.outcome != {"n": key}:
                    wrong.append(found)

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, number) for number in range(3)]
        removed, rounds = 0, 0
        try:
            while removed < 20 and rounds < 5000:
                rounds += 1
                found = [Judged(step, None, Fate.REMOVE) for step in step_files(memo.root, ())]
                removed += sum(one.fate is Fate.REMOVE for one in remove(tmp_path, found))
        finally:
            stop.set()
        for one in asking:
            one.result()
    assert wrong == []
    assert removed >= 20
    assert len(answers) > 20
    assert verify(memo.root).errors == 0
