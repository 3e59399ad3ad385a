"""ncu's CSV: wide (`--page raw`), a column per counter units in the second row, or long, a row per value."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.errors import ProfilerError
from profilers.seam import KernelSample

DURATION = "gpu__time_duration.sum"

_PREFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_NOUNS = ("byte", "hz", "inst", "sector", "request", "cycle", "warp", "thread", "block")
_AMOUNTS = {f"{prefix}{noun}": scale for prefix, scale in _PREFIXES.items() for noun in _NOUNS}
_NANOSECONDS = {
    **dict.fromkeys(("ns", "nsecond"), 1.0),
    **dict.fromkeys(("us", "usecond"), 1e3),
    **dict.fromkeys(("ms", "msecond"), 1e6),
    **dict.fromkeys(("s", "second", "sec"), 1e9),
}
"""A duration's base unit is the nanosecond, a rate's the second: byte/second."""

_IDENTITY = frozenset(
    [
        "ID",
        "Process ID",
        "Process Name",
        "Host Name",
        "Kernel Name",
        "Context",
        "Stream",
        "Block Size",
        "Grid Size",
        "Device",
        "CC",
    ]
)
_NAMED = frozenset(["ID", "Process ID", "Kernel Name"])
_LONG = frozenset(["Metric Name", "Metric Unit", "Metric Value"])
_PLAIN = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_GROUPED = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?")
_FOREIGN = re.compile(r"[-+]?\d[\d.,'\u2019 \u00a0\u202f]*\d")
_GRID = re.compile(r"\((\d+), (\d+), (\d+)\)")


def parse(text: str, wanted: Sequence[str] | None = None) -> tuple[KernelSample, ...]:
    """The launches in ncu's CSV, among whatever else was printed, in the order of the table.

    `wanted`: counters to keep beside the duration; None keeps all. The tool adds some 260 columns unasked and leaves
    out, without a word, what the chip does not have. ProfilerError for numbers of another locale."""
    kept = None if wanted is None else frozenset((*wanted, DURATION))
    samples: dict[tuple[str, str], _Launch] = {}
    for row in _rows(text, kept):
        key = (row.cells["Process ID"], row.cells["ID"])
        launch = samples.setdefault(key, _Launch(row.cells["Kernel Name"], _grid(row.cells), {}))
        launch.counters.update(row.values)
    return tuple(launch.sample() for launch in samples.values())


def number(cell: str) -> float | None:
    """A cell's value: plain or with thousands separators (1,234.5); None for `n/a`, words, blanks, inf and nan, which
    all mean that there is no value. ValueError for what is a number only in another locale (1.234,5; 0,5; 1 234)."""
    plain = cell.strip()
    if _PLAIN.fullmatch(plain) or _GROUPED.fullmatch(plain):
        value = float(plain.replace(",", ""))
        return value if math.isfinite(value) else None
    if _FOREIGN.fullmatch(plain):
        raise ValueError(plain)
    return None


def unit_factor(unit: str) -> float:
    """Factor from a printed unit to its base unit: ns, byte, hz, or either over a second or a block. What is not
    listed here (%, register/thread) is a base unit already."""
    amount, _, per = unit.partition("/")
    if amount in _NANOSECONDS:
        return _NANOSECONDS[amount]
    factor = _AMOUNTS.get(amount) or 1.0
    return factor * 1e9 / _NANOSECONDS[per] if per in _NANOSECONDS else factor


@dataclass(slots=True)
class _Launch:
    kernel: str
    grid: tuple[int, int, int] | None
    counters: dict[str, float]

    def sample(self) -> KernelSample:
        duration = self.counters[DURATION] / 1e3 if DURATION in self.counters else None
        return KernelSample(self.kernel, duration, self.counters, grid=self.grid)


@dataclass(frozen=True, slots=True)
class _Row:
    cells: Mapping[str, str]
    values: Mapping[str, float]


def _grid(cells: Mapping[str, str]) -> tuple[int, int, int] | None:
    match = _GRID.fullmatch(cells["Grid Size"]) if "Grid Size" in cells else None
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def _rows(text: str, kept: frozenset[str] | None) -> Iterator[_Row]:
    """Data rows with their numbers in base units; a header starts a table and a row without ID gives its units."""
    header: list[str] = []
    units: Mapping[str, str] = {}
    for line in text.splitlines():
        if not line.startswith('"'):
            continue
        # Line by line: a quote that a program leaves open would swallow the rest of the table.
        try:
            cells = next(csv.reader([line]))
        except csv.Error:
            continue
        if cells[0] == "ID" and (set(cells) >= _LONG or "Metric Name" not in cells) and set(cells) >= _NAMED:
            header, units = cells, dict.fromkeys(cells, "")
        elif len(cells) == len(header) and cells[0] == "":
            units = dict(zip(header, cells, strict=True))
        elif len(cells) == len(header) and cells[0].isdecimal():
            row = dict(zip(header, cells, strict=True))
            yield _Row(row, _numbers(_long(row) if "Metric Name" in row else _wide(row, units), kept))


def _long(row: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    """Rows of a rule, which `--page details` adds, name no counter."""
    return [(row["Metric Name"], row["Metric Value"], row["Metric Unit"])] if row["Metric Name"] else []


def _wide(row: Mapping[str, str], units: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    return ((name, cell, units[name]) for name, cell in row.items() if name not in _IDENTITY)


def _numbers(cells: Iterable[tuple[str, str, str]], kept: frozenset[str] | None) -> Mapping[str, float]:
    found = {}
    for name, cell, unit in cells:
        if kept is not None and name not in kept:
            continue
        try:
            value = number(cell)
        except ValueError:
            # Counters have a roll-up after a dot; a column without one may be any text, such as a list of cores.
            if kept is None and "." not in name:
                continue
            hint = "set LC_ALL=C in the environment of the run"
            raise ProfilerError(f"ncu printed {name} as {cell!r}: expected 1,234.5", hint=hint) from None
        if value is not None:
            found[name] = value * unit_factor(unit)
    return found
