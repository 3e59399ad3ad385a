"""What all figures share: named colours as classes, a logarithmic scale, and elements whose words are escaped.

A figure is one `<svg>` element. In the page the classes take the page's colours, light or dark; `document` gives a
figure that stands alone the light ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

COLOURS = {
    "ink": "#22262c",
    "grey": "#5b6472",
    "line": "#c4c9d1",
    "blue": "#1f5fa8",
    "red": "#b3261e",
    "card": "#ffffff",
    "band": "#f4f6f9",
    "shade": "#e4e8ee",
}
STYLE = "".join(f".f-{name}{{fill:{code}}}.s-{name}{{stroke:{code}}}" for name, code in COLOURS.items())
PAGE_WIDTH = 480
"""Units of a figure inside the page: at phone width its words are still three quarters of their size."""
MARK = 4.5
"""Half the size of a marker."""


@dataclass(frozen=True, slots=True)
class Log:
    """Positive values to pixels, from `low` at `start` to `high` at `end`, so that 0.5x and 2x are equally far from 1x.
    Values outside are put on the edge."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        share = math.log(inside / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, base: float, most: int = 8) -> list[float]:
        """Powers of `base` inside, at most about `most` of them, 1 among them where it is inside."""
        first = math.ceil(math.log(self.low, base) - 1e-9)
        last = math.floor(math.log(self.high, base) + 1e-9)
        step = max(1, math.ceil((last - first + 1) / most))
        return [base**power for power in range(first, last + 1) if power % step == 0]


@dataclass(frozen=True, slots=True)
class Linear:
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float) -> Linear:
        """Holds zero and every value, a little more, and is never empty."""
        known = [0.0, *values]
        low, high = min(known), max(known)
        margin = 0.08 * max(high - low, 0.01)
        return cls(low - margin, high + 1.5 * margin, start, end)

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Three to seven multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        return [index * step for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def around(values: Iterable[float], base: float) -> tuple[float, float]:
    """The powers of `base` just outside of positive `values`, and a little more, so that no mark lies on the edge."""
    known = list(values)
    low = math.floor(math.log(min(known), base) + 1e-9)
    high = math.ceil(math.log(max(known), base) - 1e-9)
    margin = 0.06 * (high - low + 1)
    return base ** (low - (low == high) - margin), base ** (high + (low == high) + margin)


def figure(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """The element; `label` is what a screen reader says of it."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img"'
    return f"{head} aria-label={quoteattr(label)}>{''.join(parts)}</svg>"


def document(element: str) -> str:
    """The element as a file of its own: with colours, a white ground and a size of its own."""
    box = element.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()
    size = f' width="{box[0]}" height="{box[1]}" font-family="system-ui, sans-serif" font-size="13">'
    ground = f'<style>{STYLE}</style><rect class="f-card" width="{box[0]}" height="{box[1]}"/>'
    return element.replace(">", size + ground, 1) + "\n"


def text(
    x: float, y: float, words: str, *, colour: str = "grey", anchor: str = "start", size: float | None = None
) -> str:
    sized = f' font-size="{size:g}"' if size else ""
    placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="f-{colour}" x="{x:.1f}" y="{y:.1f}"{placed}{sized}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect class="f-{colour}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dash: str = "") -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line class="s-{colour}" {ends} stroke-width="{width:g}"{dashed}/>'


def marker(x: float, y: float, kind: str | None, told: str, *, filled: bool, colour: str = "blue") -> str:
    """A circle; a diamond for an unverified time, a square for an estimate: kinds are told apart without colour."""
    drawn = f'class="f-{colour if filled else "card"} s-{colour}" stroke-width="1.8"'
    tip = f"<title>{escape(told)}</title>"
    if kind == "unverified":
        r = MARK + 1
        return f'<path {drawn} d="M{x:.1f} {y - r:.1f}l{r} {r}l{-r} {r}l{-r} {-r}z">{tip}</path>'
    if kind == "estimated":
        r = MARK - 0.5
        place = f'x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}"'
        return f"<rect {drawn} {place}>{tip}</rect>"
    return f'<circle {drawn} cx="{x:.1f}" cy="{y:.1f}" r="{MARK}">{tip}</circle>'


def whisker(x: float, top: float, bottom: float, colour: str = "blue") -> str:
    """An interval, with caps; one that is thinner than a marker would show nothing and is left out."""
    if abs(bottom - top) < 2 * MARK:
        return ""
    stroke = f"M{x - 3:.1f} {top:.1f}h6m-3 0V{bottom:.1f}m-3 0h6"
    return f'<path class="s-{colour}" fill="none" stroke-width="1.4" d="{stroke}"/>'
