"""The vocabulary as tables: what gives a metric on this machine, and the page that documents them."""

from __future__ import annotations

import pytest

from engine.metrics import listing
from engine.metrics.__main__ import main
from engine.settings import Metric, Spelling
from tests.golden.make_metrics_table import PAGE, page
from tests.support.compose import compose


@pytest.fixture(scope="module")
def cpu():
    return compose("backend=cpu")[0]


def test_the_page_lists_the_vocabulary():
    assert PAGE.read_text(encoding="utf-8") == page(), "if meant: python -m tests.golden.make_metrics_table"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        pytest.param("registers", "static", id="exact"),
        pytest.param("occupancy_pct", "static (0.5)", id="substitute"),
        pytest.param("launches", "trace", id="launch-record"),
        pytest.param("dram_pct", "not available", id="substitute-of-a-measured-time"),
        pytest.param("l2_hit_pct", "not available", id="counter-only"),
    ],
)
def test_what_a_machine_without_a_device_gives(cpu, name, source):
    assert listing.source_here(cpu.metrics[name], cpu, {}) == source


def test_an_absent_tool_gives_nothing(cpu):
    assert listing.source_here(cpu.metrics["registers"], cpu, {"static": "gone"}) == "not available"


@pytest.mark.parametrize(
    ("spelling", "text"),
    [
        (Spelling("a"), "a"),
        (Spelling("a", scale=0.001), "a × 0.001"),
        (Spelling(plus=("a", "b")), "a + b"),
        (Spelling(over=("a", "b"), scale=100, confidence=0.3, note="n"), "a / b × 100 [0.3]"),
        (Spelling(least=("a", "b")), "min(a, b)"),
    ],
)
def test_formulas(spelling, text):
    assert listing.formula(spelling) == text


def test_tools_that_say_the_same_share_a_line():
    metric = Metric("u", "min", "m", None, None, "sum", {"ncu": Spelling("a"), "cupti": Spelling("a")})
    assert "| ncu, cupti: `a` |" in listing.markdown({"m": metric})


def test_the_list_shows_every_metric_and_the_ladder(cpu, capsys):
    assert main(["list", "backend=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(listing.COLUMNS)
    assert [line.split()[0] for line in lines[2 : 2 + len(cpu.metrics)]] == list(cpu.metrics)
    assert lines[-1] == "ladder of back-end cpu: static, trace, algebra"


def test_tools_that_are_not_here_are_named(capsys):
    assert main(["list", "backend=cuda", "backends.cuda.profilers.ncu.path=no-such-program"]) == 0
    assert "not on this machine: ncu (no-such-program is not an executable on PATH)" in capsys.readouterr().out
