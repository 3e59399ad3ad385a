"""What a journal says, for people: rows of the end table, summary and usage files, the score curve. Pure derivations:
delete any of them and `python -m engine.report <run_id>` writes it again."""

from engine.report.files import summary, write_reports
from engine.report.rows import CandidatePoint, OperatorRow, Score, StageRow, rows

__all__ = ["CandidatePoint", "OperatorRow", "Score", "StageRow", "rows", "summary", "write_reports"]
