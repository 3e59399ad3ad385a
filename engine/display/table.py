"""The end table as plain text: the same on a terminal, in a pipe and in a README."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from engine.backends.floors import BELOW
from engine.display.lines import count, money, times
from engine.records import ScoreKind
from engine.report import OperatorRow, Score, StageRow
from engine.report.rows import RUNNING
from engine.task_run import ALL_ENDED

HEADER = ("operator", "category", "vs eager", "vs fastest", "score", "headroom", "tokens", "cost", "best kernel")
RIGHT = frozenset({"vs eager", "headroom", "tokens", "cost"})
WHY_WIDTH, WHY_LINES = 110, 3
WHOLE = ("done", "exited")
"""Outcomes that a line for each stage explains."""


def end_table(rows: Sequence[OperatorRow], folder: str = "") -> str:
    """A table with one line per operator and, under it, one per stage with why it was skipped, how it ended, or what
    it gained. `folder`: the run's, to which paths are relative. Ends with a line break; without rows it says so."""
    if not rows:
        return "no operators\n"
    cells = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADER))]
    out = [_line(HEADER, widths), "  ".join("-" * width for width in widths)]
    stages = [stage for row in rows for stage in row.stages]
    name_width = max((len(stage.name) for stage in stages), default=0)
    candidates_width = max((len(_candidates(stage)) for stage in stages), default=0)
    for row, line in zip(rows, cells[1:], strict=True):
        out.append(_line(line, widths))
        out.extend(_stage(stage, name_width, candidates_width, ended=row.ended) for stage in row.stages)
        told = _untold(row)
        if told or row.outcome not in WHOLE:
            out.append(_filled(f"  {row.outcome}: ", told) if told else f"  {row.outcome}")
    out.append(_totals(rows))
    return "\n".join([*out, f"files: {folder}"] if folder else out) + "\n"


def _cells(row: OperatorRow) -> tuple[str, ...]:
    fastest = f"{_score(row.vs_fastest)} {row.vs_fastest.over}" if row.vs_fastest else "-"
    return (
        row.name,
        row.category + (" (named)" if row.named else ""),
        _score(row.vs_eager),
        fastest,
        row.score_kind or ("not timed" if row.solved else "-"),
        _headroom(row),
        count(row.tokens),
        money(row.cost_usd),
        _best(row),
    )


def _untold(row: OperatorRow) -> str:
    """Why the operator ended as it did, without what its stages say already."""
    if row.outcome not in WHOLE:
        return row.why
    exited = (f"{stage.name}: {stage.why}" for stage in row.stages if stage.outcome == row.outcome)
    known = next((text for text in (ALL_ENDED, *exited) if row.why.startswith(text)), row.why)
    return row.why.removeprefix(known).removeprefix("; ")


def _headroom(row: OperatorRow) -> str:
    """A measured time that far under the floor is marked: one of the two is wrong, or there is something to learn."""
    flagged = row.headroom is not None and row.headroom < BELOW and row.score_kind != ScoreKind.ESTIMATED
    return f"{times(row.headroom)} below floor" if flagged else times(row.headroom)


def _best(row: OperatorRow) -> str:
    if row.best_path is None:
        return "none correct" if row.ended else "none yet"
    if not row.ended:
        return f"{row.best_path} (best so far)"
    return f"{row.best_path} (confirmed)" if row.confirmed else row.best_path


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


def _candidates(stage: StageRow) -> str:
    """`2 of 3 candidates correct (2 drafts, 1 repair)`; what they were is left out where no draft was repaired."""
    if not stage.candidates:
        return ""
    told = f"{stage.correct} of {_number(stage.candidates, 'candidate')} correct"
    drafts = stage.candidates - stage.repairs
    return f"{told} ({_number(drafts, 'draft')}, {_number(stage.repairs, 'repair')})" if stage.repairs else told


def _number(value: int, noun: str) -> str:
    return f"{value} {noun}" if value == 1 else f"{value} {noun}s"


def _stage(stage: StageRow, name_width: int, candidates_width: int, *, ended: bool) -> str:
    # A stage that an error or an interrupt left has no end of its own.
    outcome = "stopped" if ended and stage.outcome == RUNNING else stage.outcome
    parts = [f"  {stage.name.ljust(name_width)}  {outcome.ljust(9)}"]
    if stage.candidates:
        parts.append(_candidates(stage).ljust(candidates_width))
    # What an audit finds never becomes the best: its stage gains nothing, whatever it found.
    if stage.gain is not None and stage.outcome != "audited":
        parts.append(f"gain {times(stage.gain)}")
    head = "  ".join(parts)
    why = ": ".join(part for part in (stage.rule, stage.why) if part)
    if not why:
        return head.rstrip()
    return _filled(f"{head}  ", why)


def _totals(rows: Sequence[OperatorRow]) -> str:
    solved = sum(row.solved for row in rows)
    tokens = sum(row.tokens for row in rows)
    known = [row.cost_usd for row in rows if row.cost_usd is not None]
    usd = money(sum(known)) if len(known) == len(rows) else "cost unknown"
    return f"{solved} of {len(rows)} operators have a correct kernel; {count(tokens)} tokens, {usd}"


def _filled(head: str, text: str) -> str:
    """The text behind its head, in up to WHY_LINES lines of WHY_WIDTH."""
    return textwrap.fill(
        " ".join(text.split()),
        len(head) + WHY_WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        max_lines=WHY_LINES,
        placeholder="…",
    )
