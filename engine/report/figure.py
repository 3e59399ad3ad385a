"""The score curve of one operator: every candidate in order with its interval, what became best, stages as bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

from engine.report import svg
from engine.report.rows import CandidatePoint, OperatorRow
from engine.report.svg import Log

LEFT, RIGHT, PLOT, LANE = 52, 12, 210, 34
"""Pixels. LANE is the strip under the plot that holds candidates without a time."""
FILE_WIDTH = 760


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where candidates and speed-ups lie; `top` is the upper edge of the plot."""

    count: int
    width: float
    top: float
    scale: Log

    def x(self, index: float) -> float:
        return LEFT + (index + 0.5) * self.step

    @property
    def step(self) -> float:
        return (self.width - LEFT - RIGHT) / max(self.count, 1)

    @property
    def bottom(self) -> float:
        return self.top + PLOT


def score_curve(row: OperatorRow) -> str:
    """An SVG document with its own title. An operator without candidates gives the frame alone."""
    frame = _frame(row.points, FILE_WIDTH, top=64)
    title = f"{row.name} · {row.category}"
    words = [
        f"<title>{escape(title)}</title>",
        svg.text(LEFT, 22, title, colour="ink", size=15),
        svg.text(LEFT, 40, caption(row)),
        svg.text(LEFT, frame.bottom + LANE + 22, "candidates in order; strip below: not correct, or not timed"),
    ]
    element = svg.figure(FILE_WIDTH, frame.bottom + LANE + 34, title, [*words, *_drawn(row, frame)])
    return svg.document(element)


def page_curve(row: OperatorRow) -> str:
    """The same drawing as an element of the page, which says the rest in words."""
    frame = _frame(row.points, svg.PAGE_WIDTH, top=22)
    label = f"Score curve of {row.name}: {caption(row)}"
    return svg.figure(svg.PAGE_WIDTH, frame.bottom + LANE + 2, label, _drawn(row, frame))


def caption(row: OperatorRow) -> str:
    """What the curve shows and where it ended, in words."""
    if row.vs_eager is None:
        return f"speed-up over eager; no correct kernel ({row.outcome})"
    interval = f" [{row.vs_eager.lo:.2f}, {row.vs_eager.hi:.2f}]" if row.vs_eager.lo and row.vs_eager.hi else ""
    return f"speed-up over eager ({row.score_kind}); best {row.vs_eager.value:.2f}x{interval}"


def _frame(points: Sequence[CandidatePoint], width: float, *, top: float) -> _Frame:
    known = [value for point in points for value in (point.speedup, point.lo, point.hi) if value is not None]
    low, high = svg.around([1.0, *(value for value in known if value > 0)], 2)
    return _Frame(len(points), width, top, Log(low, high, top + PLOT, top))


def _drawn(row: OperatorRow, frame: _Frame) -> list[str]:
    return [
        *_bands(row.points, frame),
        *_grid(frame),
        *_best_line(row.points, frame),
        *(_candidate(index, point, frame) for index, point in enumerate(row.points)),
    ]


def _bands(points: Sequence[CandidatePoint], frame: _Frame) -> list[str]:
    parts: list[str] = []
    for number, (stage, group) in enumerate(groupby(enumerate(points), key=lambda pair: pair[1].stage)):
        indexes = [index for index, _ in group]
        left, width = frame.x(indexes[0]) - frame.step / 2, len(indexes) * frame.step
        label = stage if len(stage) * 7 < width else stage[: max(int(width / 7) - 1, 1)] + "…"
        parts.append(svg.box(left, frame.top, width, PLOT + LANE, "shade" if number % 2 else "band"))
        middle, above = left + width / 2, frame.top - 6
        parts.append(
            f'<text class="f-grey" x="{middle:.1f}" y="{above:.1f}" text-anchor="middle">'
            f"<title>{escape(stage)}</title>{escape(label)}</text>"
        )
    parts.append(svg.line(LEFT, frame.bottom, frame.width - RIGHT, frame.bottom, "line"))
    return parts


def _grid(frame: _Frame) -> list[str]:
    parts: list[str] = []
    for value in frame.scale.ticks(2):
        y, one = frame.scale.at(value), value == 1
        ends = (LEFT, y, frame.width - RIGHT, y)
        parts.append(svg.line(*ends, "grey" if one else "line", dash="" if one else "2 4"))
        parts.append(svg.text(LEFT - 6, y + 4, f"{value:g}x" if value > 0.1 else f"{value:.2g}x", anchor="end"))
    return parts


def _best_line(points: Sequence[CandidatePoint], frame: _Frame) -> list[str]:
    """A step from each promoted candidate to the next."""
    promoted = [(frame.x(i), frame.scale.at(p.speedup)) for i, p in enumerate(points) if p.promoted and p.speedup]
    if not promoted:
        return []
    steps = [f"M{promoted[0][0]:.1f} {promoted[0][1]:.1f}", *(f"H{x:.1f}V{y:.1f}" for x, y in promoted[1:])]
    path = " ".join([*steps, f"H{frame.width - RIGHT}"])
    return [f'<path class="s-blue" d="{path}" fill="none" stroke-width="2.5" stroke-linejoin="round"/>']


def _candidate(index: int, point: CandidatePoint, frame: _Frame) -> str:
    x = frame.x(index)
    told = f"{index + 1}. {point.stage}: {point.reason or point.status}"
    if point.speedup is not None and point.speedup > 0:
        interval = ""
        if point.lo is not None and point.hi is not None:
            interval = svg.whisker(x, frame.scale.at(point.hi), frame.scale.at(point.lo))
        told += f", {point.speedup:.2f}x {point.score_kind or ''}".rstrip()
        return interval + svg.marker(x, frame.scale.at(point.speedup), point.score_kind, told, filled=point.promoted)
    y = frame.bottom + LANE / 2
    if point.status == "correct":
        return svg.marker(x, y, point.score_kind, told, filled=False)
    cross = f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"
    return f'<path class="s-red" d="{cross}" stroke-width="2" fill="none"><title>{escape(told)}</title></path>'
