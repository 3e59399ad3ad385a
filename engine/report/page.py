"""The report of a run as one HTML file: no network, no other file, nothing that a model wrote can run in it.

jinja2 escapes every value; figures are made by us and are escaped where they are made. A Content-Security-Policy admits
the one script and the one style sheet by their hashes, so that even a mistake here would run nothing."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from engine.canonical import Json
from engine.files import write_whole
from engine.report import plots, words
from engine.report.detail import Operator, best_time, interval, operators
from engine.report.events import with_every_field
from engine.report.figure import page_curve
from engine.report.rows import OperatorRow
from engine.report.texts import PLAIN_LIMIT, Texts
from engine.report.totals import KindTotals, by_kind, spent_usd

TEMPLATES = Path(__file__).resolve().parent / "templates"
NAME = "report.html"


@dataclass(frozen=True, slots=True)
class Section:
    """One operator as the template needs it. `packed`: its texts in base64; None where they stand in the page."""

    anchor: str
    operator: Operator
    best_us: float | None
    curve: Markup
    roofline: Markup | None
    texts: Texts
    packed: str | None


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run asked for, replies from the memo or a recording included. `usd` None: a call had no known price.
    `gpu_s`: seconds for which verdicts and confirmations held a GPU; `wall_s` from first event to last."""

    calls: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    candidates: int
    gpu_s: float
    wall_s: float

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def write_report(folder: Path, events: Sequence[Json]) -> Path:
    """Write report.html of the run in `folder` from its journal and its text files; the path."""
    path = folder / NAME
    write_whole(path, run_page(folder, events))
    return path


def run_page(folder: Path, events: Sequence[Json]) -> str:
    """The page; an unfinished journal gives what there is."""
    events = with_every_field(events)
    found = operators(events)
    systems: dict[str, int] = {}
    texts = [Texts(folder, operator, systems) for operator in found]
    packs = sum(text.size for text in texts) > PLAIN_LIMIT
    sections = [
        _section(f"t{number}", operator, text, packs=packs)
        for number, (operator, text) in enumerate(zip(found, texts, strict=True), start=1)
    ]
    operator_rows = [operator.row for operator in found]
    totals = by_kind(operator_rows)
    links = {section.operator.row.task_id: section.anchor for section in sections}
    return render(
        "run.html.j2",
        title=f"Run {events[0]['run_id']}" if events else "An empty run",
        run=last(events, "run_started"),
        environment=last(events, "environment"),
        ended=end_of(events),
        jobs=[event for event in events if event["kind"] == "sweep_job"],
        events=events,
        sections=sections,
        solved=sum(row.solved for row in operator_rows),
        totals=totals,
        overviews=_overviews(operator_rows, totals, links),
        spent=spent(events, operator_rows),
        systems=list(systems),
        label=last(events, "label"),
    )


def _section(anchor: str, operator: Operator, texts: Texts, *, packs: bool) -> Section:
    best = operator.best
    return Section(
        anchor=anchor,
        operator=operator,
        best_us=best_time(operator.row, best.timing if best else None, operator.floor_us),
        curve=Markup(page_curve(operator.row)),
        roofline=Markup(plots.roofline(operator.roofline)) if operator.roofline else None,
        texts=texts,
        packed=texts.packed() if packs else None,
    )


def _overviews(
    rows: Sequence[OperatorRow], totals: Iterable[KindTotals], links: dict[str, str]
) -> list[tuple[KindTotals, Markup]]:
    """Of kinds with more than one operator: a single one says no more than its number."""
    return [(total, Markup(plots.overview(rows, total.kind, links))) for total in totals if total.solved > 1]


def spent(events: Sequence[Json], rows: Sequence[OperatorRow]) -> Spent:
    names = ("task_id", "candidate_id", "wall_s", "gpu_s")
    # A source that was drafted in two stages was judged once: both events have the seconds of the one step.
    judged = {tuple(event[name] for name in names) for event in events if event["kind"] == "verdict"}
    confirmed = [event["gpu_s"] for event in events if event["kind"] == "confirmation"]
    return Spent(
        calls=sum(row.calls for row in rows),
        input_tokens=sum(row.input_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        usd=spent_usd(rows),
        candidates=sum(len(row.points) for row in rows),
        gpu_s=math.fsum(seconds or 0.0 for seconds in [*confirmed, *(seconds for *_, seconds in judged)]),
        wall_s=events[-1]["t"] - events[0]["t"] if events else 0.0,
    )


def last(events: Sequence[Json], kind: str) -> Json | None:
    return next((event for event in reversed(events) if event["kind"] == kind), None)


def end_of(events: Sequence[Json]) -> Json | None:
    """The run's end; None where there is none, or where a task was started after it, as one that was edited is."""
    mark = next((event for event in reversed(events) if event["kind"] in ("task_started", "run_ended")), None)
    return mark if mark is not None and mark["kind"] == "run_ended" else None


def render(template: str, **values: object) -> str:
    """One page: the template with the style sheet and the script inside, admitted by their hashes."""
    style, script = _inline("page.css"), _inline("page.js")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    return _environment().get_template(template).render(style=style, script=script, policy=policy, **values) + "\n"


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "times": words.times,
        "us": words.microseconds,
        "seconds": words.seconds,
        "count": words.count,
        "money": words.money,
        "number": words.number,
        "percent": words.percent,
        "moment": words.moment,
        "interval": interval,
    }
    return environment


@functools.cache
def _inline(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
