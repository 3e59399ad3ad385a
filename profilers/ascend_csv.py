"""Cells and rows of the CSV files that Ascend's tools write: columns by name, missing tokens, times in nanoseconds."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

MISSING = frozenset({"", "N/A", "NA", "n/a", "na", "NULL", "None"})
"""Cells that say that there is no value; never zero."""

_MIX_SUFFIX = re.compile(r"_mix_ai[cv]$")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_TIME_US = re.compile(r"(\d+)(?:\.(\d+))?")


def rows(text: str, header: str) -> tuple[Mapping[str, str], ...]:
    """The rows below the line whose cells include `header` (alternatives divided by `|`), by column name.

    Cells and names lose blanks, tabs (they follow time stamps) and a byte order mark; the nameless column that a
    trailing comma makes is dropped, and so are lines of another length, which are not of this table.
    """
    wanted = set(header.split("|"))
    names: list[str] | None = None
    found: list[Mapping[str, str]] = []
    for cells in csv.reader(io.StringIO(text.lstrip("\ufeff"))):
        plain = [cell.strip() for cell in cells]
        if wanted & set(plain):
            names = plain
        elif names is not None and len(plain) == len(names):
            found.append({name: cell for name, cell in zip(names, plain, strict=True) if name})
    return tuple(found)


def cell(row: Mapping[str, str], names: Sequence[str]) -> str:
    """The first of these columns that the row has a value in; empty without one."""
    return next((row[name] for name in names if name in row and row[name] not in MISSING), "")


def number(text: str) -> float | None:
    """A finite decimal number; None for missing tokens and words."""
    plain = text.strip().replace(",", "")
    return float(plain) if _NUMBER.fullmatch(plain) else None


def whole(text: str) -> int | None:
    """A whole number; None for missing tokens, words and fractions."""
    value = number(text)
    return int(value) if value is not None and value == int(value) else None


def nanoseconds(text: str) -> int | None:
    """A time in microseconds as whole nanoseconds. Time stamps have 16 digits before the point: a double would lose
    the fraction."""
    parts = _TIME_US.fullmatch(text.strip())
    if parts is None:
        return None
    fraction = (parts.group(2) or "")[:3].ljust(3, "0")
    return int(parts.group(1)) * 1000 + int(fraction)


def shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """Extents of each tensor in a cell such as `"32,32;32,32"`, whose own quotes stay in it after CSV's are gone."""
    plain = text.strip().strip('"')
    if plain in MISSING:
        return ()
    tensors = [part.split(",") for part in plain.split(";")]
    return tuple(tuple(int(extent) for extent in extents if extent.strip().isdecimal()) for extents in tensors)


def own_name(name: str) -> str:
    """The function's name: mixed operators carry `_mix_aic` or `_mix_aiv` behind it."""
    return _MIX_SUFFIX.sub("", name)
