"""Figures of the page beside the score curve: one operator's roofline, all speed-ups of a run, cost against gain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from engine.report import svg
from engine.report.rows import OperatorRow
from engine.report.svg import PAGE_WIDTH, Linear, Log

LEFT, RIGHT, TOP, BOTTOM = 52, 14, 22, 38
HEIGHT = 268
NAMED = 70
"""Operators of the overview have their names under them where each has this much room."""


@dataclass(frozen=True, slots=True)
class Reached:
    """One time of an operator on the roofline; `tflops` is its FLOPs over that time."""

    name: str
    tflops: float
    kind: str | None
    best: bool


@dataclass(frozen=True, slots=True)
class Roofline:
    """`intensity` in FLOP a byte; `floor` is what the least time would reach, None where it is unknown. `rates` in
    TFLOP/s and `bandwidth` in GB/s as the run's device record has them."""

    intensity: float
    reached: tuple[Reached, ...]
    floor: float | None
    rates: Mapping[str, float]
    bandwidth: float | None

    @property
    def known(self) -> list[float]:
        """Every rate in the figure that belongs to this operator."""
        return [point.tflops for point in self.reached] + ([self.floor] if self.floor else [])


def roofline(found: Roofline) -> str:
    """Rate over intensity (Williams 2009), under the slope of the bandwidth and the flat lines of the rates."""
    ridges = [rate * 1e3 / found.bandwidth for rate in found.rates.values()] if found.bandwidth else []
    x = Log(*svg.around([found.intensity / 2, found.intensity * 2, *ridges], 10), LEFT, PAGE_WIDTH - RIGHT)
    y = Log(*svg.around([*found.known, *found.rates.values()], 10), HEIGHT - BOTTOM, TOP)
    parts = [*_axes(x, y), *_roofs(found, x, y)]
    here = x.at(found.intensity)
    rates = [y.at(rate) for rate in found.known]
    parts.append(svg.line(here, max(rates), here, min(rates), "line"))
    if found.floor:
        told = f"<title>{escape(f'floor: {_number(found.floor)} TFLOP/s')}</title>"
        level = y.at(found.floor)
        bar = f'x1="{here - 14:.1f}" x2="{here + 14:.1f}" y1="{level:.1f}" y2="{level:.1f}"'
        parts.append(f'<line class="s-red" stroke-width="3" {bar}>{told}</line>')
        parts.append(svg.text(here + 18, level + 14, "floor", colour="red"))
    for point in found.reached:
        told = f"{point.name}: {_number(point.tflops)} TFLOP/s"
        level = y.at(point.tflops)
        colour, side, anchor = ("blue", 12, "start") if point.best else ("grey", -12, "end")
        parts.append(svg.marker(here, level, point.kind, told, filled=point.best, colour=colour))
        parts.append(svg.text(here + side, level + 4, point.name, colour=colour, anchor=anchor))
    label = f"Roofline at {_number(found.intensity)} FLOP a byte: " + ", ".join(
        f"{point.name} {_number(point.tflops)} TFLOP/s" for point in found.reached
    )
    return svg.figure(PAGE_WIDTH, HEIGHT, label, parts)


def _axes(x: Log, y: Log) -> list[str]:
    parts = []
    for value in x.ticks(10, most=6):
        parts.append(svg.line(x.at(value), TOP, x.at(value), HEIGHT - BOTTOM, "line", dash="2 4"))
        parts.append(svg.text(x.at(value), HEIGHT - BOTTOM + 16, _number(value), anchor="middle"))
    for value in y.ticks(10, most=6):
        parts.append(svg.line(LEFT, y.at(value), PAGE_WIDTH - RIGHT, y.at(value), "line", dash="2 4"))
        parts.append(svg.text(LEFT - 6, y.at(value) + 4, _number(value), anchor="end"))
    parts.append(svg.text(PAGE_WIDTH - RIGHT, HEIGHT - 4, "FLOP a byte", anchor="end"))
    parts.append(svg.text(4, 12, "TFLOP/s"))
    return parts


def _roofs(found: Roofline, x: Log, y: Log) -> list[str]:
    parts, last = [], math.inf
    bandwidth = found.bandwidth
    if bandwidth:
        # In TFLOP/s at an intensity: bandwidth in GB/s times FLOP a byte, over a thousand.
        top = max([*found.rates.values(), *found.known])
        left, right = max(x.low, y.low * 1e3 / bandwidth), min(x.high, top * 1e3 / bandwidth)
        ends = (x.at(left), y.at(left * bandwidth / 1e3), x.at(right), y.at(right * bandwidth / 1e3))
        parts.append(svg.line(*ends, "ink", width=1.6))
    for name, rate in sorted(found.rates.items(), key=lambda item: -item[1]):
        ridge = x.at(rate * 1e3 / bandwidth) if bandwidth else float(LEFT)
        parts.append(svg.line(ridge, y.at(rate), PAGE_WIDTH - RIGHT, y.at(rate), "ink", width=1.2))
        place = y.at(rate) - 4
        if abs(place - last) < 14:
            place = y.at(rate) + 13
        last = place
        parts.append(svg.text(PAGE_WIDTH - RIGHT, place, f"{name} {_number(rate)}", anchor="end"))
    return parts


def overview(rows: Sequence[OperatorRow], kind: str, links: Mapping[str, str]) -> str:
    """Every operator's best speed-up of one kind with its interval, slowest first; each leads to its section."""
    timed = sorted(
        ((row, row.vs_eager) for row in rows if row.score_kind == kind and row.vs_eager and row.vs_eager.value > 0),
        key=lambda pair: pair[1].value,
    )
    width, height = PAGE_WIDTH * 2, 276
    values = [v for _, s in timed for v in (s.value, s.lo, s.hi) if v is not None and v > 0]
    y = Log(*svg.around([1.0, *values], 2), height - 28, 6)
    parts = []
    for value in y.ticks(2):
        colour, dash, level = ("grey", "", y.at(value)) if value == 1 else ("line", "2 4", y.at(value))
        parts.append(svg.line(LEFT, level, width - RIGHT, level, colour, dash=dash))
        parts.append(svg.text(LEFT - 6, level + 4, f"{_number(value)}x", anchor="end"))
    step = (width - LEFT - RIGHT) / max(len(timed), 1)
    for index, (row, score) in enumerate(timed):
        x = LEFT + (index + 0.5) * step
        told, interval = f"{row.name}: {score.value:.2f}x", ""
        if score.lo is not None and score.hi is not None:
            told += f" [{score.lo:.2f}, {score.hi:.2f}]"
            interval = svg.whisker(x, y.at(score.hi), y.at(score.lo))
        drawn = interval + svg.marker(x, y.at(score.value), kind, told, filled=score.value > 1)
        if step > NAMED:
            drawn += svg.text(x, height - 10, _cut(row.name, int(step / 7)), anchor="middle")
        # The table beside it leads to the same places; a hundred more stops would bury the keyboard.
        parts.append(f'<a href={quoteattr("#" + links[row.task_id])} tabindex="-1">{drawn}</a>')
    return svg.figure(width, height, f"Best speed-up over eager of {len(timed)} operators ({kind})", parts)


@dataclass(frozen=True, slots=True)
class Job:
    """One job of a sweep in the plot: shares against the job that spent most, negative where it gained or cost more."""

    name: str
    saved: float
    lost: float
    reference: bool


def trade(jobs: Sequence[Job], measure: str) -> str:
    """Saved cost over lost gain: up and left is better. The line joins the jobs that no other beats on both."""
    right, bottom = PAGE_WIDTH - RIGHT, HEIGHT - BOTTOM
    across = Linear.around([job.lost for job in jobs], LEFT, right)
    up = Linear.around([job.saved for job in jobs], bottom, TOP)

    def at(job: Job) -> tuple[float, float]:
        return across.at(job.lost), up.at(job.saved)

    parts = []
    for share in across.ticks():
        x, zero = across.at(share), share == 0
        parts.append(svg.line(x, TOP, x, bottom, "grey" if zero else "line", dash="" if zero else "2 4"))
        parts.append(svg.text(x, bottom + 16, f"{100 * share:.3g}", anchor="middle"))
    for share in up.ticks():
        y, zero = up.at(share), share == 0
        parts.append(svg.line(LEFT, y, right, y, "grey" if zero else "line", dash="" if zero else "2 4"))
        parts.append(svg.text(LEFT - 6, y + 4, f"{100 * share:.3g}", anchor="end"))
    best = [at(job) for job in _front(jobs)]
    if len(best) > 1:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in best)
        parts.append(f'<path class="s-blue" fill="none" stroke-width="1.5" d="{path}"/>')
    parts.extend(_jobs(jobs, at))
    parts.append(svg.text(4, 12, f"{measure} saved, %"))
    parts.append(svg.text(right, HEIGHT - 4, "gain lost, %", anchor="end"))
    return svg.figure(PAGE_WIDTH, HEIGHT, f"{measure} saved against gain lost, {len(jobs)} jobs", parts)


def _jobs(jobs: Sequence[Job], at: Callable[[Job], tuple[float, float]]) -> list[str]:
    """Jobs that fall on one place share a marker: a threshold between two scores changes nothing."""
    places: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        x, y = at(job)
        places.setdefault((round(x), round(y)), []).append(job)
    parts = []
    for (x, y), here in places.items():
        names, one = ", ".join(job.name for job in here), here[0]
        told = f"job {names}: {100 * one.saved:.1f} % saved, {100 * one.lost:.1f} % lost"
        parts.append(svg.marker(x, y, None, told, filled=any(job.reference for job in here)))
        name = one.name if len(here) == 1 else f"{one.name} +{len(here) - 1}"
        anchor = "end" if x > PAGE_WIDTH / 2 else "start"
        parts.append(svg.text(x + (-9 if anchor == "end" else 9), y - 6, name, anchor=anchor))
    return parts


def _front(jobs: Sequence[Job]) -> list[Job]:
    """Jobs that no other beats on both, in order of what they lose."""
    front: list[Job] = []
    for job in sorted(jobs, key=lambda job: (job.lost, -job.saved)):
        if not front or job.saved > front[-1].saved:
            front.append(job)
    return front


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _number(value: float) -> str:
    """Three digits, without an exponent between a thousandth and a million."""
    return f"{value:,.0f}" if 1000 <= value < 1e6 else f"{value:.3g}"
