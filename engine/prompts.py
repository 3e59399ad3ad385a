"""Prompts from jinja2 templates: one system message that stays equal over a run, one user message from stable to new.

Wording, fallbacks and dialects live in the templates; this module gives them data and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import jinja2.meta

from engine.errors import ConfigError, Fault
from engine.records import Device, Message, MetricValue, Operator, Trace
from engine.settings import Category, Metric, Stage
from engine.vocabulary import is_substitute

NOT_AVAILABLE = "not available"

_SYSTEM = "system.j2"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A key metric of the stage: of the parent, of the best kernel before it, of the baseline. None: unknown."""

    name: str
    unit: str
    meaning: str
    better: str
    parent: float | None
    previous: float | None
    baseline: float | None
    source: str
    remark: str = ""
    """Why the parent's value is not used, or what it stands for where it is a substitute."""


@dataclass(frozen=True, slots=True)
class ScoreView:
    """Scores and times of the best kernel so far; None: unknown. `fastest` names the fastest baseline."""

    speedup: float | None
    speedup_fastest: float | None
    fastest: str | None
    headroom: float | None
    score_kind: str | None
    best_us: float | None
    eager_us: float | None
    floor_us: float | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A draft of this task that was tried: what came of it, and its speed-up where it was timed."""

    stage: str
    role: str
    outcome: str
    message: str
    speedup: float | None


@dataclass(frozen=True, slots=True)
class PromptContext:
    """Everything a template may name. `stage` and its settings are None for seeds."""

    operator: Operator
    category: str
    category_settings: Category
    stage: str | None
    stage_settings: Stage | None
    device: Device
    dialect: str
    precision: str
    host_ops: str
    parent_source: str | None
    broken_source: str | None
    error: str | None
    """Already trimmed, see `trim_error`."""
    analysis: Mapping[str, str] | None
    strategy: Mapping[str, str] | None
    metrics: tuple[MetricRow, ...]
    scores: ScoreView | None
    history: tuple[Attempt, ...]
    sample: int
    samples: int
    trace: Trace | None
    """Of the parent."""


_NAMES = frozenset(field.name for field in dataclasses.fields(PromptContext))


class Prompts:
    """The templates of one folder. A broken template raises ConfigError that names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = _environment(folder)

    def templates(self) -> frozenset[str]:
        """Paths below the folder, with suffix: `dialect/x.j2`, `guidance/<category>/<stage>.j2`."""
        return frozenset(self._environment.list_templates(extensions=["j2"]))

    def faults(self) -> list[Fault]:
        """Templates that do not parse or that name what no context has; nothing is rendered."""
        found = []
        for name in sorted(self.templates()):
            text = (self.folder / name).read_text(encoding="utf-8")
            try:
                unknown = _undeclared(self._environment, text) - _NAMES
            except jinja2.TemplateSyntaxError as error:
                found.append(
                    Fault(f"{name}:{error.lineno}", f"template does not parse: {error.message}", str(self.folder))
                )
                continue
            problem = f"names {', '.join(sorted(unknown))}; known: {', '.join(sorted(_NAMES))}"
            found.extend([Fault(name, problem, str(self.folder))] if unknown else [])
        return found

    def render(self, role: str, context: PromptContext) -> tuple[Message, ...]:
        """The messages for one call; `<role>.j2` is the user message. ConfigError when a template is absent or broken.

        The system message depends on device, dialect, precision and host-op policy only, and the user message begins
        with the reference, so that calls of one task share a prefix and providers can cache it.
        """
        names = {field.name: getattr(context, field.name) for field in dataclasses.fields(context)}
        return (Message("system", self._text(_SYSTEM, names)), Message("user", self._text(f"{role}.j2", names)))

    def _text(self, name: str, names: Mapping[str, object]) -> str:
        try:
            text = self._environment.get_template(name).render(names)
        except jinja2.TemplateNotFound as error:
            missing = f"template {error.message} is missing from {self.folder}"
            raise ConfigError([Fault(f"prompts/{name}", missing)], hint="add the template or fix its name") from error
        except jinja2.TemplateError as error:
            broken = f"cannot be rendered: {error.message}"
            raise ConfigError([Fault(f"prompts/{name}", broken, str(self.folder))]) from error
        return _tidy(text)


@functools.lru_cache(maxsize=8)
def _environment(folder: Path) -> jinja2.Environment:
    """Shared by the jobs of a sweep; jinja reads a template again once its file has changed."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": show_number, "fenced": fenced}
    return environment


@functools.lru_cache(maxsize=512)
def _undeclared(environment: jinja2.Environment, text: str) -> frozenset[str]:
    return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(text)))


def metric_row(
    metric: Metric, parent: MetricValue, previous: MetricValue | None, baseline: MetricValue | None
) -> MetricRow | None:
    """The row of one metric from values that are `vocabulary.trusted`; None where it has none and need not have.

    A substitute stands beside values of its own source only, and a measured value beside measured ones: a difference
    between the two would say nothing of the kernels.
    """
    if parent.value is None and metric.on_missing == "note":
        return None

    def beside(other: MetricValue | None) -> float | None:
        if other is None or parent.value is None:
            return other.value if other else None
        same = other.source == parent.source
        return other.value if same or not (is_substitute(metric, parent) or is_substitute(metric, other)) else None

    remark = ""
    if parent.value is None and parent.source:
        remark = parent.note.split("; ")[0]
    elif is_substitute(metric, parent):
        remark = f"a substitute, confidence {parent.confidence:.2g}: {metric.spellings[parent.source].note}"
    return MetricRow(
        name=parent.metric,
        unit=metric.unit,
        meaning=metric.meaning,
        better=metric.better,
        parent=parent.value,
        previous=beside(previous),
        baseline=beside(baseline),
        source=parent.source,
        remark=remark,
    )


def show_number(value: float | None, digits: int = 4) -> str:
    """`digits` significant digits with thousands separators and no exponent below 1e15; 'not available' for None."""
    if value is None:
        return NOT_AVAILABLE
    if float(value).is_integer() or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def fenced(text: str, language: str = "") -> str:
    """`text` as a fenced block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def _tidy(text: str) -> str:
    """`text` with one blank line where absent sections left several; fenced blocks stay as they are."""
    lines: list[str] = []
    fence = ""
    for line in text.strip().splitlines():
        mark = re.match(r"`{3,}", line)
        if fence:
            fence = "" if line == fence else fence
        elif mark:
            fence = mark.group()
        if fence or line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines) + "\n"


def trim_error(text: str, limit: int) -> str:
    """At most `limit` characters: a third from the head, where the cause is named, the rest from the tail, where a
    traceback ends; the cut says how much is gone. Whole lines are kept where they fit."""
    text = text.strip()
    if len(text) <= limit:
        return text
    marker = f"\n[… {len(text)} characters in all, middle left out …]\n"
    room = limit - len(marker)
    if room < len(marker):
        return text[len(text) - limit :]
    head, tail = text[: room // 3], text[len(text) - (room - room // 3) :]
    if "\n" in head[len(head) // 2 :]:
        head = head[: head.rindex("\n")]
    if "\n" in tail[: len(tail) // 2]:
        tail = tail[tail.index("\n") + 1 :]
    return head + marker + tail
