"""Judges candidates one after another on one back-end, and times those that are correct."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.backends import open_backend
from engine.backends.seam import Backend
from engine.codec import DecodeError
from engine.errors import EngineError, WorkerError
from engine.judge.inputs import Candidate, Subject
from engine.judge.judgement import Judgement, Policy, Setting, broken, confirmed, judgement
from engine.project import project_root
from engine.records import Judged, Measurement, Operator, Status, Task
from engine.settings import Settings


def judgements(
    settings: Settings, subject: Subject, candidates: Sequence[Candidate], *, timing: bool, confirm: bool
) -> Iterator[Judgement]:
    """One judgement a candidate, in order, from a back-end that is opened at the first and closed after the last.

    A process of ours that breaks costs one candidate its verdict, not the others. Raises MissingError when the
    back-end's device or a required layer of the sandbox is absent.
    """
    operator = subject.operator
    scratch = Path(tempfile.mkdtemp(prefix="kernel-judge-"))
    kept = False
    try:
        with open_backend(settings.backend, settings, project_root(), scratch) as backend:
            policy = _policy(settings, operator.task)
            setting = Setting(operator.task.task_id, operator.facts, policy, backend.device, subject.remarks)
            for candidate in candidates:
                made = _judged(backend, setting, operator, candidate, timing=timing, confirm=confirm)
                kept = kept or made.error is not None
                yield made
    finally:
        # The error's hint names a log in it.
        if not kept:
            shutil.rmtree(scratch, ignore_errors=True)


def _judged(
    backend: Backend, setting: Setting, operator: Operator, candidate: Candidate, *, timing: bool, confirm: bool
) -> Judgement:
    try:
        verdict = backend.judge(operator, candidate.source)
    except (WorkerError, DecodeError) as error:
        return broken(setting, candidate.path, _told(error))
    if verdict.status is not Status.CORRECT:
        return judgement(setting, candidate.path, verdict, None, "")
    mine = Judged(candidate.source, verdict.trace)
    measured: Measurement | None = None
    note = ""
    try:
        measured = backend.measure(operator, mine, None) if timing else None
    except (WorkerError, DecodeError) as error:
        note = _told(error)
    made = judgement(setting, candidate.path, verdict, measured, note)
    return _confirmed(backend, made, operator, mine) if confirm else made


def _confirmed(backend: Backend, made: Judgement, operator: Operator, winner: Judged) -> Judgement:
    try:
        return confirmed(made, backend.confirm(operator, winner))
    except (WorkerError, DecodeError) as error:
        note = "judged correct, and the judge itself failed when it was to confirm that"
        return dataclasses.replace(made, status=Status.UNDECIDED, message=note, error=_told(error))


def _told(error: EngineError) -> str:
    return "; ".join(filter(None, (str(error), error.hint)))


def _policy(settings: Settings, task: Task) -> Policy:
    return Policy(
        precision=task.contract.precision or settings.judge.precision,
        host_ops=task.contract.host_ops or settings.judge.host_ops,
        variants=tuple(task.contract.variants),
        contract=task.contract_origin,
    )
