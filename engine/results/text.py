"""Answers of the database as text: aligned columns, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping

from engine.store import Answer

UNKNOWN = "?"
"""A number that nobody knows, in a table; it stands with the numbers to the right."""
# A terminal obeys CSI and OSC sequences and single control characters.
_CONTROL = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x1f\x7f-\x9f]")


def plain(value: str) -> str:
    """One line without what a terminal would obey."""
    return _CONTROL.sub("", " ".join(value.split()))


def table(answer: Answer) -> str:
    """Aligned columns; NULL is empty, numbers are to the right, line breaks inside a value become spaces, control
    sequences are left out."""
    if not answer.columns:
        return "done\n"
    cells = [[_cell(value) for value in row] for row in answer.rows]
    numeric = [
        all(isinstance(row[i], (int, float)) or row[i] in (None, UNKNOWN) for row in answer.rows) and bool(answer.rows)
        for i in range(len(answer.columns))
    ]
    head = [plain(column) for column in answer.columns]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    lines = [_line(head, widths, numeric), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths, numeric) for row in cells]
    count = "1 row" if len(cells) == 1 else f"{len(cells)} rows"
    return "\n".join(lines) + f"\n({count})\n"


def as_json(answer: Answer) -> str:
    """A list of objects; values that JSON does not know are texts."""
    return (
        json.dumps([dict(zip(answer.columns, row, strict=True)) for row in answer.rows], default=str, indent=1) + "\n"
    )


def as_csv(answer: Answer) -> str:
    """RFC 4180 with a header; NULL is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(answer.columns)
    writer.writerows(answer.rows)
    return out.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    return plain(str(value))


def _line(row: list[str], widths: list[int], numeric: list[bool]) -> str:
    cells = (
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(row, widths, numeric, strict=True)
    )
    return "  ".join(cells).rstrip()


SHOW: Mapping[str, Callable[[Answer], str]] = {"table": table, "json": as_json, "csv": as_csv}
"""An answer in each form that the command line offers."""
