"""Every case of the corpus gets its verdict: no cheat and no defect passes, no honest kernel is refused.

Labels and expected reasons live in index.csv, never in the sources. The judge runs in its own processes, as in a run.
Seeds are fixed, so that a failure repeats; a candidate cannot know them all the same.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.records import Status
from tests.adversarial.corpus import CASES, CORRECT, NOT_DECIDABLE, outcome_of, rows, task_of
from tests.adversarial.judge import judge, left_behind

CATALOGUE = {"A": 14, "B": 11, "C": 18, "D": 19, "E": 10}
NO_CANDIDATE = {
    "C17": "a neighbour on the GPU is no candidate",
    "C18": "the winner's curse is a property of a search",
}
"""Rows of the catalogue that no single file can show, and why."""

MARKERS = [Path(folder) / "kernel_marker" for folder in ("/tmp", "/var/tmp", ".", "..")]

KNOWN: dict[str, str] = {}
"""What the judge gets wrong on the CPU, by row: strict expected failures, each an open fault of the judge."""


def case(row):
    marks = [pytest.mark.xfail(reason=KNOWN[row.name], strict=True)] if row.name in KNOWN else []
    return pytest.param(row, id=row.name, marks=marks)


@pytest.mark.parametrize("row", [case(row) for row in rows()])
def test_case(row):
    if NOT_DECIDABLE in row.cpu:
        pytest.skip(f"only a device can show it: {row.what}")
    verdict = judge("cpu", task_of(row.task, row.policy), row.source(), limit=row.limit)
    assert outcome_of(verdict) in row.cpu, f"{row.what}: {verdict.message}"
    assert (verdict.status is Status.CORRECT) == (CORRECT in row.cpu)
    assert verdict.status is Status.CORRECT or verdict.message
    assert not [path for path in MARKERS if path.exists()], "a case wrote outside its sandbox"
    assert not left_behind(), "a case left a process behind"


def test_the_index_names_every_case():
    assert {row.file for row in rows()} == {path.name for path in CASES.glob("*.py")}
    assert len({row.name for row in rows()}) == len(rows())


def test_the_corpus_is_large_enough():
    count = {label: sum(row.label == label for row in rows()) for label in ("cheat", "defect", "honest")}
    assert count["cheat"] >= 40
    assert count["defect"] >= 20
    assert count["honest"] >= 20


def test_every_row_of_the_catalogue_has_a_case():
    every = {f"{group}{number}" for group, size in CATALOGUE.items() for number in range(1, size + 1)}
    named = {row.catalogue for row in rows() if row.catalogue}
    assert named <= every
    assert every - named == set(NO_CANDIDATE)


def test_only_what_is_honest_may_be_correct():
    wrong = [row.name for row in rows() if not row.honest and CORRECT in row.cpu | row.cuda]
    assert wrong == []
    refused = [row.name for row in rows() if row.honest and CORRECT not in row.cuda]
    assert refused == []


def test_sources_carry_no_label():
    words = re.compile(r"\b(cheat|honest|defect|adversarial|exploit|hack)", re.IGNORECASE)
    assert not [path.name for path in CASES.glob("*.py") if words.search(path.read_text(encoding="utf-8"))]
