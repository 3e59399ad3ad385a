"""A slow candidate does not choose its checks: all suites are run, or nothing is said."""

from __future__ import annotations

import types

import pytest

from engine.judging.judge import Stop
from engine.judging.references import FULL
from engine.judging.runs import SLOW_CALL_S, VariantRun
from engine.records import Reason, Status


def run(variant, *, left_s, variants=("small", FULL)):
    references = types.SimpleNamespace(variants=lambda task: variants)
    remarks = []
    return types.SimpleNamespace(
        variant=variant,
        task=None,
        judge=types.SimpleNamespace(references=references),
        allowance=types.SimpleNamespace(left_s=left_s),
        found=types.SimpleNamespace(remark=remarks.append, remarks=remarks),
        _plan=lambda: [None] * 5,
    )


@pytest.mark.parametrize(
    ("variant", "seconds", "left_s", "further"),
    [
        pytest.param("small", SLOW_CALL_S, 0.1, True, id="quick"),
        pytest.param("small", 10.0, 60.0, True, id="time-is-left"),
        pytest.param(FULL, 10.0, 60.0, False, id="full-size-after-smaller"),
    ],
)
def test_further_suites(variant, seconds, left_s, further):
    own = run(variant, left_s=left_s)
    assert VariantRun._goes_on(own, seconds) is further
    assert bool(own.found.remarks) is not further


@pytest.mark.parametrize("own", [run("small", left_s=40.0), run(FULL, left_s=40.0, variants=(FULL,))])
def test_without_time_for_them_nothing_is_said(own):
    with pytest.raises(Stop) as stopped:
        VariantRun._goes_on(own, 10.0)
    assert (stopped.value.failure.status, stopped.value.failure.reason) == (Status.UNDECIDED, Reason.UNSUPPORTED)
