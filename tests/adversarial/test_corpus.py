"""Every case of the corpus gets its verdict: no cheat and no defect passes, no honest kernel is refused.

Labels and expected reasons live in index.csv, never in the sources; `on_cpu` is `missed` for what only a device's speed
lets the judge find. The judge runs in its own processes, as in a run.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from engine.records import Status
from tests.support.judge import judged

HERE = Path(__file__).resolve().parent
INDEX = list(csv.DictReader((HERE / "index.csv").read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("row", INDEX, ids=[f"{row['file'][:-3]}-{row['reason'] or 'correct'}" for row in INDEX])
def test_case(row):
    verdict = judged(row["task"], (HERE / "cases" / row["file"]).read_text(encoding="utf-8"))
    passes = row["label"] == "honest" or row["on_cpu"] == "missed"
    assert (verdict.reason or "") == ("" if passes else row["reason"]), verdict.message
    assert (verdict.status is Status.CORRECT) == passes
    if not passes:
        assert verdict.message


def test_the_index_names_every_case():
    assert {row["file"] for row in INDEX} == {path.name for path in (HERE / "cases").glob("*.py")}
    assert sum(row["label"] == "honest" for row in INDEX) >= 8
    assert sum(row["label"] != "honest" for row in INDEX) >= 16


def test_sources_carry_no_label():
    for path in (HERE / "cases").glob("*.py"):
        text = path.read_text(encoding="utf-8").lower()
        assert not [word for word in ("cheat", "honest", "defect", "adversarial") if word in text], path.name
