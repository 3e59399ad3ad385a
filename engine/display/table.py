"""The end table as plain text: the same on a terminal, in a pipe and in a README."""

from __future__ import annotations

from collections.abc import Sequence

from engine.display.lines import count, money, times
from engine.report import OperatorRow, Score, StageRow

HEADER = ("operator", "category", "vs eager", "vs fastest", "score", "headroom", "tokens", "cost", "best kernel")
RIGHT = frozenset({"vs eager", "headroom", "tokens", "cost"})
WHY_WIDTH = 110


def end_table(rows: Sequence[OperatorRow], folder: str = "") -> str:
    """A table with one line per operator and, under it, one per stage with why it was skipped, how it ended, or what
    it gained. `folder`: the run's, to which paths are relative. Ends with a line break; without rows it says so."""
    if not rows:
        return "no operators\n"
    cells = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    out = [_line(HEADER, widths), "  ".join("-" * width for width in widths)]
    stage_width = max((len(stage.name) for row in rows for stage in row.stages), default=0)
    for row, line in zip(rows, cells[1:], strict=True):
        out.append(_line(line, widths))
        out.extend(_stage(stage, stage_width) for stage in row.stages)
        if row.outcome not in ("done", "exited"):
            out.append(f"  {row.outcome}" + (f": {_cut(row.why)}" if row.why else ""))
    out.append(_totals(rows))
    return "\n".join([*out, f"files: {folder}"] if folder else out) + "\n"


def _cells(row: OperatorRow) -> tuple[str, ...]:
    fastest = f"{_score(row.vs_fastest)} {row.vs_fastest.over}" if row.vs_fastest else "-"
    return (
        row.name,
        row.category + (" (named)" if row.named else ""),
        _score(row.vs_eager),
        fastest,
        row.score_kind or "-",
        times(row.headroom),
        count(row.tokens),
        money(row.cost_usd),
        row.best_path or "none correct",
    )


def _score(score: Score | None) -> str:
    if score is None:
        return "-"
    if score.lo is None or score.hi is None or score.lo == score.hi:
        return times(score.value)
    return f"{times(score.value)} [{score.lo:.2f}, {score.hi:.2f}]"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.rjust(width) if name in RIGHT else cell.ljust(width)
        for name, cell, width in zip(HEADER, cells, widths, strict=True)
    )
    return "  ".join(padded).rstrip()


def _stage(stage: StageRow, width: int) -> str:
    parts = [f"  {stage.name.ljust(width)}  {stage.outcome.ljust(9)}"]
    if stage.candidates:
        parts.append(f"{stage.correct}/{stage.candidates} correct")
    if stage.gain is not None:
        parts.append(f"gain {times(stage.gain)}")
    if stage.rule or stage.why:
        parts.append(_cut(": ".join(part for part in (stage.rule, stage.why) if part)))
    return "  ".join(parts).rstrip()


def _totals(rows: Sequence[OperatorRow]) -> str:
    solved = sum(row.solved for row in rows)
    tokens = sum(row.tokens for row in rows)
    known = [row.cost_usd for row in rows if row.cost_usd is not None]
    usd = money(sum(known)) if len(known) == len(rows) else "cost unknown"
    return f"{solved} of {len(rows)} operators have a correct kernel; {count(tokens)} tokens, {usd}"


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= WHY_WIDTH else flat[: WHY_WIDTH - 1] + "…"
