"""The vocabulary as a table: for people at a terminal, with what this machine can give, and for docs/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping

from engine.backends.answers import given
from engine.settings import Metric, Settings, Spelling
from engine.store import Answer
from profilers.cupti_host import find_libraries
from profilers.ncu import Ncu

COLUMNS = ("metric", "unit", "better", "aggregate", "here", "spellings")


def unavailable(settings: Settings) -> Mapping[str, str]:
    """The rungs of this run's ladder that cannot work on this machine, each with the reason. Runs no tool."""
    found = {}
    for name, profiler in settings.backends[settings.backend].profilers.items():
        reason = None
        if name == "ncu":
            reason = Ncu(profiler.path, profiler.timeout_s, profiler.max_launches).available()
        elif name == "cupti" and not find_libraries():
            reason = "libcupti is neither in a Python package nor in /usr/local/cuda*"
        if reason is not None:
            found[name] = reason
    return found


def source_here(metric: Metric, settings: Settings, absent: Mapping[str, str]) -> str:
    """The rung that gives the metric on this machine, with its confidence where it is a substitute."""
    backend = settings.backends[settings.backend]
    for name in backend.profilers:
        if name not in metric.spellings or name in absent:
            continue
        spelling = metric.spellings[name]
        if given(backend, spelling):
            return name if spelling.confidence == 1 else f"{name} ({spelling.confidence:g})"
    return "not available"


def listing(settings: Settings) -> Answer:
    """One row a metric; `here` is the rung that gives it on this machine."""
    absent = unavailable(settings)
    rows = [
        (name, metric.unit, metric.better, metric.aggregate, source_here(metric, settings, absent), _spellings(metric))
        for name, metric in settings.metrics.items()
    ]
    return Answer(COLUMNS, tuple(rows))


def _spellings(metric: Metric) -> str:
    return "; ".join(f"{tools}: {said}" for said, tools in _by_text(metric).items())


def _by_text(metric: Metric) -> dict[str, str]:
    """What is said -> the tools that say it, as several share a counter."""
    found: dict[str, str] = {}
    for tool, spelling in metric.spellings.items():
        said = formula(spelling)
        found[said] = f"{found[said]}, {tool}" if said in found else tool
    return found


def formula(spelling: Spelling) -> str:
    """The arithmetic of a spelling in one line, with its confidence where that is below 1."""
    if spelling.over:
        said = " / ".join(spelling.over)
    elif spelling.least:
        said = f"min({', '.join(spelling.least)})"
    else:
        said = " + ".join(spelling.counters)
    scaled = said if spelling.scale == 1 else f"{said} × {spelling.scale:g}"
    return scaled if spelling.confidence == 1 else f"{scaled} [{spelling.confidence:g}]"


def markdown(metrics: Mapping[str, Metric]) -> str:
    """The table of docs/metrics.md: meaning, sense and spellings of each metric; equal on every machine."""
    lines = ["| metric | unit | better | meaning | over launches | spelled |", "| --- | --- | --- | --- | --- | --- |"]
    for name, metric in metrics.items():
        tools = "<br>".join(f"{tools}: `{said}`" for said, tools in _by_text(metric).items())
        cells = (f"`{name}`", metric.unit, metric.better, metric.meaning, metric.aggregate, tools)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
