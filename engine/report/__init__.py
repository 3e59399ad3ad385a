"""What a journal says, for people: rows of the end table, summary and usage files, the score curve, the HTML report of
a run or sweep. Pure derivations: delete any of them and `python -m engine.report` writes it again."""

from engine.report.files import summary, write_reports
from engine.report.page import write_report
from engine.report.rows import CandidatePoint, OperatorRow, Score, StageRow, rows
from engine.report.sweep import write_sweep

__all__ = [
    "CandidatePoint",
    "OperatorRow",
    "Score",
    "StageRow",
    "rows",
    "summary",
    "write_report",
    "write_reports",
    "write_sweep",
]
