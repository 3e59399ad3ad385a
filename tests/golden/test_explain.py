"""What `engine.stageplan explain` says of two operators, word for word."""

from __future__ import annotations

import pytest

from tests.golden.make_explain import CASES, FOLDER, explained


@pytest.mark.parametrize("name", CASES)
def test_the_plan_in_words(name):
    assert explained(name) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_each_text_has_its_case():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(CASES)
