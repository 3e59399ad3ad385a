"""What belongs to each kind's address, exactly, and what a change of a version, a template or a threshold invalidates.

A name added here or taken away invalidates every stored step of its kind: docs/steps.md must say so, too.
"""

from __future__ import annotations

import functools
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.llm.caller import Budget, Caller
from engine.memo import Memo
from engine.paid import Paid
from engine.records import Device, Judged, Operator
from engine.settings import JudgeSettings
from tests.flow.test_runner import FACTS
from tests.support.compose import compose
from tests.support.fake_backend import FakeBackend
from tests.support.judge import bundled_tasks

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = Operator(bundled_tasks()["softmax"], FACTS)
SOURCE, OTHER = Judged("# fake: us=5 registers=3\n", None, 5.0), Judged("# fake: us=9\n", None, 9.0)

SUBJECT = {"task", "source", "device"}
TIMED = SUBJECT | {"facts", "precision", "protocol", "floor"}
VERDICT = SUBJECT | {"judge", "target", "compile"}
CONFIRM = VERDICT | {"variants"}
KEYS = {
    "verdict": VERDICT,
    "baseline": TIMED,
    "timing": TIMED,
    "promotion": TIMED | {"incumbent"},
    "profile": TIMED | {"time_us", "metrics", "profilers", "tools"},
}
CONFIRMED = {"cpu": CONFIRM, "cuda": CONFIRM | TIMED | {"repeats", "sanitizer", "sanitizer_s"}}
MEASURED = {"baseline", "timing", "promotion", "confirm"}


class Noting(Memo):
    """Keeps the inputs of every step that is asked for."""

    def __init__(self, root, run_id="run"):
        super().__init__(root, run_id)
        self.asked = {}

    def step(self, kind, inputs, work):
        self.asked[kind] = inputs
        return super().step(kind, inputs, work)


@functools.cache
def composed(backend):
    settings, _ = compose(f"backend={backend}")
    return settings


def asked(folder, settings):
    """The inputs of one step of every kind that the judge's side has."""
    memo = Noting(folder)
    caller = Caller(None, settings.llm.retry, Budget(settings.search.budget))
    journal = SimpleNamespace(due=None)
    paid = Paid(
        settings, backend=FakeBackend(), caller=caller, memo=memo, journal=journal, folder=None, free_replies=True
    )
    paid.verdict(OPERATOR, SOURCE.source)
    paid.timing(OPERATOR, None)
    paid.timing(OPERATOR, SOURCE)
    paid.promotion(OPERATOR, SOURCE, OTHER)
    paid.profile(OPERATOR, SOURCE, ("registers",))
    paid.confirm(OPERATOR, SOURCE)
    return memo.asked


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_an_address_has_exactly_these_names(tmp_path, backend):
    found = asked(tmp_path, composed(backend))
    assert {kind: set(inputs) for kind, inputs in found.items()} == {**KEYS, "confirm": CONFIRMED[backend]}
    for inputs in found.values():
        assert set(inputs["device"]) == {field.name for field in fields(Device)} - {"ceilings"}
    judge = {field.name for field in fields(JudgeSettings)}
    assert set(found["verdict"]["judge"]) == judge - {"confirm"}


def test_what_cannot_change_a_verdict_is_not_told_apart(tmp_path):
    settings = composed("cpu")
    judge = replace(settings.judge, allow_unverified=False, sandbox="required")
    thresholds = {name: value + 1 for name, value in settings.thresholds.items()}
    changed = replace(settings, judge=judge, thresholds=thresholds, search=replace(settings.search, seeds=4))
    assert asked(tmp_path, changed) == asked(tmp_path, settings)


@pytest.mark.parametrize(
    ("backend", "fresh", "salted"),
    [
        pytest.param("cuda", ("timing",), MEASURED, id="timing"),
        pytest.param("cpu", ("timing",), {"baseline", "timing", "promotion"}, id="estimates"),
        pytest.param("cuda", ("profile",), {"profile"}, id="profile"),
        pytest.param(
            "cuda", ("timing", "profile"), {"baseline", "timing", "promotion", "confirm", "profile"}, id="both"
        ),
    ],
)
def test_a_fresh_run_adds_its_own_name_to_what_it_measures_itself(tmp_path, backend, fresh, salted):
    settings = composed(backend)
    found = asked(tmp_path, replace(settings, search=replace(settings.search, fresh=fresh)))
    assert {kind for kind, inputs in found.items() if "fresh" in inputs} == salted
    assert {inputs["fresh"] for inputs in found.values() if "fresh" in inputs} == {"run"}


@pytest.mark.parametrize(("passing", "made"), [(False, 1), (True, 2)])
def test_a_note_is_remembered_and_what_may_differ_the_next_time_is_not(tmp_path, passing, made):
    calls = []

    class Noted(FakeBackend):
        def measure(self, operator, candidate, incumbent):
            calls.append(candidate)
            return replace(super().measure(operator, candidate, incumbent), note="eager_graph", passing=passing)

    settings = composed("cuda")
    caller, journal = Caller(None, settings.llm.retry, Budget(settings.search.budget)), SimpleNamespace(due=None)
    paid = Paid(
        settings, backend=Noted(), caller=caller, memo=Memo(tmp_path, "run"), journal=journal, folder=None,
        free_replies=True,
    )  # fmt: skip
    assert [paid.timing(OPERATOR, SOURCE).note for _ in range(2)] == ["eager_graph"] * 2
    assert len(calls) == made


def test_the_page_names_every_name_of_every_kind():
    page = (ROOT / "docs" / "steps.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*)\|", page, re.MULTILINE))
    told = {kind: set(re.findall(r"`(\w+)`", names)) for kind, names in rows.items()}
    kinds = {**KEYS, "confirm": CONFIRMED["cuda"]}
    kinds |= {"reply": {"model", "messages", "params", "sample"}, "facts": {"task", "facts", "torch"}}
    assert told == kinds
