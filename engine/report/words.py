"""Numbers as people read them, the same on a terminal and in the page; `-` or `?` where one is unknown."""

from __future__ import annotations

import datetime


def times(value: float | None) -> str:
    """A ratio: 1.82x, 0.034x, or - when unknown."""
    if value is None:
        return "-"
    return f"{value:.0f}x" if value >= 100 else f"{value:.2f}x" if value >= 0.1 else f"{value:.2g}x"


def microseconds(value: float | None) -> str:
    """A time in the unit that leaves three digits: 12.3 us, 4.56 ms, 1.2 s."""
    if value is None:
        return "-"
    if value < 1e3:
        return f"{value:.3g} us"
    return f"{value / 1e3:.3g} ms" if value < 1e6 else f"{value / 1e6:.3g} s"


def seconds(value: float | None) -> str:
    """A wall-clock time: 0.42 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if value is None:
        return "-"
    if value < 60:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def count(value: int) -> str:
    """Tokens: 950, 12.3k, 4.5M."""
    if value < 1000:
        return str(value)
    return f"{value / 1e3:.1f}k" if value < 1e6 else f"{value / 1e6:.1f}M"


def money(value: float | None) -> str:
    """USD; `?` where a price was unknown."""
    if value is None:
        return "?"
    return f"${value:.2f}" if value >= 0.01 or value == 0 else f"${value:.4f}"


def number(value: object) -> str:
    """Four digits of a number, other values as text: an operand of a rule, a metric, a fact."""
    if value is None:
        return "unknown"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value == int(value) and abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def moment(t: float) -> str:
    """Seconds since 1970 as UTC, to the minute."""
    return datetime.datetime.fromtimestamp(t, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
