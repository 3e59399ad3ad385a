"""Rewrites the table of docs/metrics.md from conf/metric: python -m tests.golden.make_metrics_table."""

from __future__ import annotations

from pathlib import Path

from engine.metrics.listing import markdown
from tests.support.compose import compose

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
START, END = "<!-- metrics -->\n", "<!-- end -->"


def page() -> str:
    """The page with the table that the vocabulary makes."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    return f"{before}{START}{markdown(compose('backend=cpu')[0].metrics)}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
