"""The corpus on a CUDA device: the same labels, judged at full size as well. A slice of the mutants too."""

from __future__ import annotations

import pytest

from engine.records import Mode, Status
from tests.adversarial.corpus import CORRECT, NOT_DECIDABLE, TIMED, outcome_of, rows, task_of
from tests.adversarial.judge import judge
from tests.adversarial.mutants import Fate, all_mutants, judge_all, sample

pytestmark = pytest.mark.gpu

MUTANTS = 120


@pytest.mark.parametrize("row", rows(), ids=[row.name for row in rows()])
def test_case(row):
    if NOT_DECIDABLE in row.cuda:
        pytest.skip(f"not decided on a device: {row.what}")
    verdict = judge("cuda", task_of(row.task, row.policy), row.source(), limit=row.limit)
    if row.label == "cheat" and verdict.mode is Mode.FALLBACK and verdict.status is Status.CORRECT:
        # Without a plan its time stays unverified and never ranks: not accepted.
        return
    if TIMED in row.cuda and verdict.status is Status.CORRECT:
        pytest.skip(f"passes the checks, so its time has to be the true one: {row.what}")
    assert outcome_of(verdict) in row.cuda, f"{row.what}: {verdict.message}"
    assert (verdict.status is Status.CORRECT) == (CORRECT in row.cuda)


def test_no_mutant_of_a_sample_survives():
    fates = list(judge_all(sample(all_mutants("cuda"), MUTANTS), "cuda", 1))
    assert [judged.name for judged in fates if judged.fate is Fate.SURVIVED] == []
    assert sum(judged.fate is Fate.KILLED for judged in fates) > MUTANTS / 2
