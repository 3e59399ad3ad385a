"""The metrics of one kernel: as runs recorded them, or profiled now."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engine import store
from engine.backends import open_backend
from engine.canonical import digest_text
from engine.errors import ConfigError, Fault, MissingError
from engine.judge.configuration import load_settings
from engine.judge.inputs import Demands, load_subject
from engine.project import project_root, resolve
from engine.records import Judged, MetricValue, Operator, ScoreKind, Status
from engine.settings import Settings
from engine.store import Answer

COLUMNS = ("metric", "value", "unit", "source", "confidence", "note")

_RECORDED = """
SELECT task_id, stage, coalesce(candidate_id, 'reference') AS candidate, metric, value, unit, source, confidence, note
FROM (
  SELECT *, row_number() OVER (PARTITION BY task_id, stage, candidate_id, metric ORDER BY run_id, seq DESC) AS nth
  FROM metrics WHERE {where}
) WHERE nth = 1 ORDER BY task_id, candidate, stage, seq
"""


def recorded(results: Path, kernel: str) -> Answer:
    """What the database has of a candidate, by its id or by the text of a file; the last value of each task and stage.
    MissingError when nothing is recorded."""
    path = Path(kernel).expanduser()
    if path.is_file():
        where = f"source_hash = '{digest_text(path.read_text(encoding='utf-8'))}'"
        chosen = f"candidate_id IN (SELECT candidate_id FROM candidates WHERE {where})"
    elif re.fullmatch(r"[0-9a-f]{6,64}", kernel):
        chosen = f"candidate_id LIKE '{kernel}%'"
    else:
        raise MissingError(
            f"no file {kernel}, and that is no candidate id", hint="give a .py file or 6 or more hex digits"
        )
    answer = store.query(results, _RECORDED.format(where=chosen))
    if not answer.rows:
        hint = "a metric is recorded when a stage profiles the kernel; --profile REFERENCE profiles it now"
        raise MissingError(f"no recorded metric of {kernel} in {results}", hint=hint)
    return answer


def profiled(kernel: str, reference: str, backend: str, names: tuple[str, ...]) -> tuple[MetricValue, ...]:
    """The named metrics, or all, of a kernel file that the judge of this machine finds correct against `reference`."""
    path = Path(kernel).expanduser()
    if not path.is_file():
        raise MissingError(f"no file {kernel}", hint="--profile takes a kernel's file, not a candidate id")
    settings = load_settings(backend, None)
    unknown = [name for name in names if name not in settings.metrics]
    if unknown:
        raise ConfigError([Fault("--metrics", f"no metric {name}") for name in unknown])
    subject = load_subject(reference, None, Demands(), resolve(settings.paths.tasks))
    scratch = Path(tempfile.mkdtemp(prefix="kernel-metrics-"))
    try:
        return _profiled(settings, subject.operator, path.read_text(encoding="utf-8"), names, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _profiled(
    settings: Settings, operator: Operator, source: str, names: tuple[str, ...], scratch: Path
) -> tuple[MetricValue, ...]:
    with open_backend(settings.backend, settings, project_root(), scratch) as backend:
        verdict = backend.judge(operator, source)
        if verdict.status is not Status.CORRECT:
            raise MissingError(
                f"nothing to profile: the judge says {verdict.status} ({verdict.reason}): {verdict.message}"
            )
        timed = backend.measure(operator, Judged(source, verdict.trace), None).timing("candidate")
        known = timed is not None and timed.score_kind is not ScoreKind.ESTIMATED
        time_us = timed.median_us if timed is not None and known else None
        return backend.profile(operator, Judged(source, verdict.trace, time_us), names or tuple(settings.metrics))


def as_answer(values: Sequence[MetricValue]) -> Answer:
    """Profiled values as a table."""
    rows = ((v.metric, v.value, v.unit, v.source, v.confidence, v.contradiction or v.note) for v in values)
    return Answer(COLUMNS, tuple(rows))
