"""Which profiles are kept in the memo, and what a profile's address has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine.llm.budget import Budget
from engine.llm.caller import Caller
from engine.memo import Memo
from engine.paid import Paid
from engine.records import Judged, MetricValue, Operator
from tests.flow.test_runner import FACTS
from tests.support.compose import compose
from tests.support.fake_backend import FakeBackend
from tests.support.judge import bundled_tasks

NO_JOURNAL = SimpleNamespace(due=None)

OPERATOR = Operator(bundled_tasks()["softmax"], FACTS)
METRICS = ("dram_pct", "registers")


def value(metric, source, note="", number=1.0):
    return MetricValue(metric, number if source else None, "", source, 1.0 if source else 0.0, note)


class Profiled(FakeBackend):
    def __init__(self, *values):
        super().__init__()
        self.values, self.asked = values, 0

    def profile(self, operator, candidate, metrics):
        self.asked += 1
        return self.values


def paid(tmp_path, device, backend="cuda"):
    settings, _ = compose(f"backend={backend}")
    memo = Memo(tmp_path, "run")
    return Paid(
        settings,
        backend=device,
        caller=Caller(None, settings.llm.retry, Budget(settings.search.budget)),
        memo=memo,
        journal=SimpleNamespace(due=None),
        folder=None,
        free_replies=True,
    )


COUNTED, STATIC = value("dram_pct", "ncu"), value("registers", "static")


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        pytest.param((COUNTED, STATIC), True, id="counted"),
        pytest.param((value("dram_pct", "ncu", "cupti: no executor can start now"), STATIC), True, id="by-the-next"),
        pytest.param((value("dram_pct", "cupti"), value("registers", "static", "ncu: absent")), False, id="one-absent"),
        pytest.param(
            (value("dram_pct", "algebra", "cupti: no permission; ncu: absent"), STATIC), False, id="substitute"
        ),
        pytest.param((value("dram_pct", "", "ncu: no permission"), STATIC), False, id="none"),
        pytest.param((value("dram_pct", "", "ncu: no counter x"), value("registers", "ncu")), True, id="it-counts"),
        pytest.param((value("dram_pct", "algebra", "a bound"), STATIC), True, id="not-asked"),
        pytest.param((value("dram_pct", "", "x"), value("registers", "", "x")), False, id="nothing"),
    ],
)
def test_a_profile_is_kept_where_its_counting_profilers_counted(tmp_path, values, kept):
    device = Profiled(*values)
    made = paid(tmp_path, device)
    first, second = (made.profile(OPERATOR, Judged("source", None), METRICS) for _ in range(2))
    assert first == second == values
    assert device.asked == (1 if kept else 2)


def test_without_counting_profilers_a_profile_is_kept(tmp_path):
    device = Profiled(value("dram_pct", "algebra", "ncu: absent"), STATIC)
    made = paid(tmp_path, device, "cpu")
    for _ in range(2):
        made.profile(OPERATOR, None, METRICS)
    assert device.asked == 1


def test_the_measured_time_is_in_the_address(tmp_path):
    device = Profiled(COUNTED, STATIC)
    made = paid(tmp_path, device)
    for time_us in (None, 3.0, 4.0, 3.0):
        made.profile(OPERATOR, Judged("source", None, time_us), METRICS)
    assert device.asked == 3
