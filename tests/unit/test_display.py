from __future__ import annotations

import io
from dataclasses import replace

import pytest

from engine.display import end_table, open_display
from engine.display.lines import HIDDEN, count, line, microseconds, money, times
from engine.display.none import NoDisplay
from engine.display.plain import PlainDisplay
from engine.errors import ConfigError
from engine.report import rows
from engine.report.page import run_page
from tests.support.sample_journal import RUN, Writer, draft, promote, sample_events, start


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("NO_COLOR", "CI", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def shown(mode: str, stream: io.StringIO) -> str:
    display = open_display(mode, stream)
    for event in sample_events():
        display.show(event)
    display.close()
    return stream.getvalue()


@pytest.mark.parametrize(
    ("mode", "stream", "variable", "kind"),
    [
        ("auto", io.StringIO(), None, "PlainDisplay"),
        ("auto", Terminal(), None, "RichDisplay"),
        ("auto", Terminal(), "NO_COLOR", "PlainDisplay"),
        ("auto", Terminal(), "CI", "PlainDisplay"),
        ("rich", io.StringIO(), "CI", "RichDisplay"),
        ("plain", Terminal(), None, "PlainDisplay"),
        ("none", Terminal(), None, "NoDisplay"),
    ],
    ids=["pipe", "terminal", "no_color", "ci", "forced_rich", "forced_plain", "none"],
)
def test_choice_of_display(monkeypatch, mode, stream, variable, kind):
    if variable:
        monkeypatch.setenv(variable, "1")
    display = open_display(mode, stream)
    display.close()
    assert type(display).__name__ == kind


def test_unknown_mode_lists_the_known_ones():
    with pytest.raises(ConfigError, match="auto, rich, plain, none"):
        open_display("fancy", io.StringIO())


def test_plain_says_what_a_person_wants_to_know():
    text = shown("plain", io.StringIO())
    for words in (
        f"run {RUN}: backend cuda, llm replay",
        "on H200",
        "alpha: pointy",
        "level1/beta: flat (named)",
        "baseline eager 100 us (measured), floor 10 us",
        "optimise: 100 in, 50 out, 1.5 s",
        "aaaaaaaa rejected, wrong_result: out[3] is 4.0, expected 2.0",
        "bbbbbbbb correct",
        "cccccccc is best now: because",
        "skip nothing: nothing to fuse",
        "stage fuse skipped: nothing to fuse",
        "done: 2.00x over eager, 1.60x over compile (measured)",
        "failed, WorkerError: worker died",
        "waiting for replies in box/out; the same command continues",
        f"run {RUN} failed: 4 operators in 12.5 s",
    ):
        assert words in text
    assert "second line" not in text
    assert "\x1b" not in text


def test_rich_shows_every_operator_and_restores_the_terminal():
    text = shown("rich", Terminal())
    for words in ("alpha", "level1/beta", "gamma", "2.00x", "2 of 3 correct"):
        assert words in text
    assert text.rstrip("\n").count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_none_shows_nothing():
    assert shown("none", io.StringIO()) == ""
    assert isinstance(open_display("none", io.StringIO()), NoDisplay)
    assert isinstance(open_display("plain", io.StringIO()), PlainDisplay)


def test_every_kind_of_event_has_a_line_or_is_hidden_on_purpose():
    from engine.display.lines import _LINES
    from engine.journal import EVENTS

    assert set(EVENTS) <= set(_LINES) | HIDDEN
    assert not set(_LINES) & HIDDEN


CONFIRMATION = {
    "kind": "confirmation",
    "candidate_id": "0123456789",
    "variants": {"unseen1": {}, "unseen2": {}},
    "message": "a kernel wrote\nfar",
}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"kind": "metric"}, None),
        ({"kind": "unheard_of"}, None),
        ({"kind": "rule", "fired": False}, None),
        (
            {"kind": "rule", "fired": True, "obeyed": False, "rule": "r", "rule_kind": "exit", "why": "w"},
            "    exit r: w (not obeyed)",
        ),
        (
            {"kind": "llm_failed", "role": "seed", "failure": "rate_limit", "message": "429"},
            "    seed failed, rate_limit: 429",
        ),
        (
            {"kind": "reply_unusable", "role": "seed", "problem": "no_code", "message": "prose"},
            "    seed reply unusable, no_code: prose",
        ),
        (
            {"kind": "sweep_job", "sweep_id": "s", "job": 1, "overrides": ["a=1", "b=2"]},
            "sweep s, job 1: a=1 b=2",
        ),
        (
            {**CONFIRMATION, "outcome": "confirmed", "reason": None},
            "  01234567 confirmed at 2 new shapes",
        ),
        (
            {**CONFIRMATION, "outcome": "refused", "reason": "crash"},
            "  01234567 refused, crash: a kernel wrote",
        ),
        (
            {"kind": "task_ended", "best_id": None, "outcome": "unsolved", "why": "no seed"},
            "  unsolved: no correct kernel; no seed",
        ),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_lines(event, expected):
    assert line(event) == expected


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (times, None, "-"),
        (times, 1.234, "1.23x"),
        (times, 0.0341, "0.034x"),
        (times, 1234.5, "1234x"),
        (microseconds, None, "-"),
        (microseconds, 12.34, "12.3 us"),
        (microseconds, 4560.0, "4.56 ms"),
        (microseconds, 1.2e6, "1.2 s"),
        (count, 950, "950"),
        (count, 12345, "12.3k"),
        (count, 4_500_000, "4.5M"),
        (money, None, "?"),
        (money, 0.0, "$0.00"),
        (money, 0.0012, "$0.0012"),
        (money, 1.5, "$1.50"),
    ],
)
def test_figures(function, value, expected):
    assert function(value) == expected


TABLE = """\
operator     category                vs eager  vs fastest                  score     headroom  tokens   cost  best kernel
-----------  ------------  ------------------  --------------------------  --------  --------  ------  -----  -------------------------
alpha        pointy        2.00x [1.90, 2.10]  1.60x [1.40, 1.80] compile  measured     5.00x     450  $0.03  tasks/alpha/best.py
  seed  done       1 of 2 candidates correct (1 draft, 1 repair)
  tile  done       1 of 1 candidate correct                       gain 4.00x
  fuse  skipped    nothing: nothing to fuse
level1/beta  flat (named)  0.50x [0.40, 0.60]  0.40x [0.35, 0.45] compile  measured     5.00x     150      ?  tasks/level1/beta/best.py
  seed  done       1 of 1 candidate correct
gamma        flat                           -  -                           -                -       0  $0.00  none correct
  failed: WorkerError: worker died
delta        flat                           -  -                           -                -       0  $0.00  none yet
  waiting: for replies in box/out
2 of 4 operators have a correct kernel; 600 tokens, cost unknown
files: results/runs/x
"""  # noqa: E501 - a table as it is shown


def test_end_table():
    assert end_table(rows(sample_events()), "results/runs/x") == TABLE


@pytest.mark.parametrize(
    ("headroom", "kind", "cell"),
    [
        (0.85, "measured", "0.85x below floor"),
        (0.85, "estimated", "0.85x"),
        (0.95, "measured", "0.95x"),
        (None, "measured", "-"),
    ],
)
def test_a_measured_time_below_the_floor_is_marked(headroom, kind, cell):
    row = replace(rows(sample_events())[0], headroom=headroom, score_kind=kind)
    line = end_table([row]).splitlines()[2]
    assert f"  {cell}  " in line
    assert ("below floor" in line) == ("below floor" in cell)


@pytest.mark.parametrize(
    ("outcome", "gain", "shown"),
    [("done", 1.0, True), ("exited", 4.0, True), ("audited", 1.0, False), ("done", None, False)],
)
def test_an_audited_stage_has_no_gain(tmp_path, outcome, gain, shown):
    events = sample_events()
    for event in events:
        if event["kind"] == "stage_ended" and event["stage"] == "tile":
            event |= {"outcome": outcome, "stage_gain": gain}
    (tile,) = [line for line in end_table(rows(events)).splitlines() if line.startswith("  tile")]
    assert ("gain" in tile) == shown
    assert f"  {outcome} " in tile
    assert ("1 of 1 candidate correct, gain" in run_page(tmp_path, events)) == shown


def waiting_in_seeds(write: Writer) -> None:
    """Two seeds, one of them repaired, and a third whose judgement was cut short; nothing has become best."""
    draft(write, "t", "seed", "a", reason="wrong_result", role="seed")
    draft(write, "t", "seed", "b", reason=None, speedup=0.5, role="repair")
    draft(write, "t", "seed", "c", reason=None, speedup=0.4, role="seed")
    write("candidate", "t", "seed", candidate_id="d", role="seed")


def waiting_in_a_stage(write: Writer) -> None:
    waiting_in_seeds(write)
    write("timing", "t", "seed", candidate_id="b", who="candidate", score_kind="measured")
    promote(write, "t", "seed", "b")
    promote(write, "t", "seed", "c", promoted=False)
    write("stage_started", "t", "tile", audit=False)


@pytest.mark.parametrize(
    ("story", "operator", "stages", "solved"),
    [
        (
            waiting_in_seeds,
            ("-", "none yet"),
            ["seed  running    2 of 3 candidates correct (2 drafts, 1 repair)"],
            "0 of 1",
        ),
        (
            waiting_in_a_stage,
            ("0.50x [0.40, 0.60]", "measured", "tasks/t/best.py (best so far)"),
            ["seed  done       2 of 3 candidates correct (2 drafts, 1 repair)", "tile  running"],
            "1 of 1",
        ),
    ],
    ids=["seeds", "stage"],
)
def test_end_table_while_replies_are_awaited(story, operator, stages, solved):
    write = Writer()
    start(write, "t", "c")
    story(write)
    write("waiting", "t", where="box/out")
    _, _, shown_operator, *shown_stages, why, totals = end_table(rows(write.events)).splitlines()
    assert all(words in shown_operator for words in operator)
    assert [stage.strip() for stage in shown_stages] == stages
    assert why == "  waiting: for replies in box/out"
    assert totals.startswith(f"{solved} operators have a correct kernel")


def test_end_table_without_rows():
    assert end_table(()) == "no operators\n"


@pytest.mark.parametrize(("confirmed", "mark"), [(True, " (confirmed)"), (None, "")])
def test_a_confirmed_kernel_is_marked(confirmed, mark):
    events = sample_events()
    end = next(event for event in events if event["kind"] == "task_ended" and event["task_id"] == "alpha")
    end["confirmed"] = confirmed
    line_of = next(line for line in end_table(rows(events)).splitlines() if line.startswith("alpha"))
    assert line_of.endswith(f"tasks/alpha/best.py{mark}")
