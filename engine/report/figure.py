"""The score curve of one operator: every candidate in order, what became best, and the stages as bands. Plain SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

from engine.report.rows import CandidatePoint, OperatorRow

WIDTH, LEFT, RIGHT, TOP, PLOT, LANE = 760, 64, 24, 64, 240, 44
"""Pixels. LANE is the strip under the plot that holds candidates without a time."""
BLUE, RED, GREY, INK = "#1f5fa8", "#c0392b", "#8a8f98", "#22262c"
BANDS = ("#f4f6f9", "#e9edf3")


@dataclass(frozen=True, slots=True)
class _Axes:
    """Candidate number and speed-up to pixels; speed-ups on a logarithmic scale, so 0.5x and 2x are equally far."""

    count: int
    low: float
    high: float

    def x(self, index: float) -> float:
        return LEFT + (index + 0.5) * (WIDTH - LEFT - RIGHT) / max(self.count, 1)

    def y(self, speedup: float) -> float:
        share = (math.log2(speedup) - self.low) / (self.high - self.low)
        return TOP + PLOT * (1 - share)


def score_curve(row: OperatorRow) -> str:
    """An SVG document. An operator without candidates gives the frame alone."""
    axes = _axes(row.points)
    height = TOP + PLOT + LANE + 34
    title = f"{row.name} · {row.category}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 22, title, size=15, weight="600"),
        _text(LEFT, 40, _caption(row), colour=GREY),
        *_bands(row.points, axes),
        *_grid(axes),
        *_best_line(row.points, axes),
        *(_marker(index, point, axes) for index, point in enumerate(row.points)),
        _text(LEFT, height - 10, "candidates in order; grey strip: not correct, or not timed", colour=GREY),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes(points: Sequence[CandidatePoint]) -> _Axes:
    values = [1.0, *(point.speedup for point in points if point.speedup is not None and point.speedup > 0)]
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    return _Axes(len(points), low - (low == high), high + (low == high))


def _caption(row: OperatorRow) -> str:
    if row.vs_eager is None:
        return f"speed-up over eager; no correct kernel ({row.outcome})"
    interval = f" [{row.vs_eager.lo:.2f}, {row.vs_eager.hi:.2f}]" if row.vs_eager.lo and row.vs_eager.hi else ""
    return f"speed-up over eager ({row.score_kind}); best {row.vs_eager.value:.2f}x{interval}"


def _bands(points: Sequence[CandidatePoint], axes: _Axes) -> list[str]:
    parts: list[str] = []
    half = (axes.x(1) - axes.x(0)) / 2
    for number, (stage, group) in enumerate(groupby(enumerate(points), key=lambda pair: pair[1].stage)):
        indexes = [index for index, _ in group]
        left, right = axes.x(indexes[0]) - half, axes.x(indexes[-1]) + half
        label = stage if len(stage) * 6 < right - left else stage[: max(int((right - left) / 6) - 1, 1)] + "…"
        parts.append(_box(left, TOP, right - left, PLOT + LANE, BANDS[number % 2]))
        parts.append(
            f'<text x="{(left + right) / 2:.1f}" y="{TOP - 6}" text-anchor="middle" font-size="11" fill="{GREY}">'
            f"<title>{escape(stage)}</title>{escape(label)}</text>"
        )
    parts.append(_box(LEFT, TOP + PLOT, WIDTH - LEFT - RIGHT, LANE, GREY, opacity=0.18))
    return parts


def _grid(axes: _Axes) -> list[str]:
    parts: list[str] = []
    step = max(1, math.ceil((axes.high - axes.low) / 8))
    for power in range(int(axes.low), int(axes.high) + 1, step):
        y = axes.y(2.0**power)
        dash = "" if power == 0 else ' stroke-dasharray="2 4"'
        colour = INK if power == 0 else "#c4c9d1"
        ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
        parts.append(f'<line {ends} stroke="{colour}" stroke-width="1"{dash}/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="{GREY}">{2.0**power:g}x</text>')
    return parts


def _best_line(points: Sequence[CandidatePoint], axes: _Axes) -> list[str]:
    """A step from each promoted candidate to the next."""
    promoted = [(axes.x(i), axes.y(p.speedup)) for i, p in enumerate(points) if p.promoted and p.speedup]
    if not promoted:
        return []
    steps = [f"M{promoted[0][0]:.1f} {promoted[0][1]:.1f}", *(f"H{x:.1f} V{y:.1f}" for x, y in promoted[1:])]
    path = " ".join([*steps, f"H{WIDTH - RIGHT}"])
    return [f'<path d="{path}" fill="none" stroke="{BLUE}" stroke-width="2.5" stroke-linejoin="round"/>']


def _marker(index: int, point: CandidatePoint, axes: _Axes) -> str:
    x = axes.x(index)
    told = escape(f"{index + 1}. {point.stage}: {point.reason or point.status}")
    if point.speedup is not None and point.speedup > 0:
        fill = BLUE if point.promoted else "#ffffff"
        tip = f"<title>{told}, {point.speedup:.2f}x</title>"
        y = axes.y(point.speedup)
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{BLUE}" stroke-width="2">{tip}</circle>'
    y = TOP + PLOT + LANE / 2
    if point.status == "correct":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="none" stroke="{BLUE}"><title>{told}</title></circle>'
    cross = f"M{x - 4:.1f} {y - 4:.1f} l8 8 m0 -8 l-8 8"
    return f'<path d="{cross}" stroke="{RED}" stroke-width="2" fill="none"><title>{told}</title></path>'


def _text(x: float, y: float, words: str, *, size: int = 12, colour: str = INK, weight: str = "400") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{colour}">{escape(words)}</text>'


def _box(x: float, y: float, width: float, height: float, colour: str, *, opacity: float = 1.0) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" fill="{colour}" fill-opacity="{opacity}"/>'
