"""Which runs a word on the command line means."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.errors import MissingError
from engine.ids import starting
from engine.store.database import Connection

HINT = (
    "give a run id, a sweep, the start of one of these, SWEEP:JOB, a label, or NAME=VALUE with an override, a "
    "threshold, model, provider, backend, device or version"
)
_COLUMNS = ("model", "provider", "backend", "device", "version", "category")


@dataclass(frozen=True, slots=True)
class Selection:
    """`word` as it was given; `run_ids` in order of their start, at least one."""

    word: str
    run_ids: tuple[str, ...]


def select(connection: Connection, word: str) -> Selection:
    """The runs that `word` names; MissingError when there is none, or the start of an id fits several."""
    for find in (_by_id, _by_sweep, _by_label, _by_setting):
        found = find(connection, word)
        if found:
            return Selection(word, tuple(found))
    known = [name for (name,) in connection.execute("SELECT run_id FROM runs ORDER BY started DESC LIMIT 5").fetchall()]
    latest = f"; the latest runs are {', '.join(known)}" if known else "; there is no run"
    raise MissingError(f"no run is called '{word}'{latest}", hint=HINT)


def _ids(connection: Connection, where: str, *values: object) -> list[str]:
    sql = f"SELECT run_id FROM runs WHERE {where} ORDER BY started, run_id"
    return [run_id for (run_id,) in connection.execute(sql, list(values)).fetchall()]


def _by_id(connection: Connection, word: str) -> list[str]:
    found = starting(word, _ids(connection, "starts_with(run_id, ?)", word), "runs")
    return [found] if found is not None else []


def _by_sweep(connection: Connection, word: str) -> list[str]:
    known = [sweep for (sweep,) in connection.execute("SELECT DISTINCT sweep_id FROM sweep_jobs").fetchall()]
    start, _, job = word.rpartition(":")
    of_job = starting(start, known, "sweeps") if job.isdigit() else None
    if of_job is not None:
        jobs = "SELECT run_id FROM sweep_jobs WHERE sweep_id = ? AND job = ?"
        return _ids(connection, f"run_id IN ({jobs})", of_job, int(job))
    sweep = starting(word, known, "sweeps")
    return _ids(connection, "run_id IN (SELECT run_id FROM sweep_jobs WHERE sweep_id = ?)", sweep) if sweep else []


def _by_label(connection: Connection, word: str) -> list[str]:
    return _ids(connection, "run_id IN (SELECT run_id FROM labels WHERE label = ?)", word)


def _by_setting(connection: Connection, word: str) -> list[str]:
    name, given, value = word.partition("=")
    if not given:
        return []
    if name in _COLUMNS:
        return _ids(connection, f"{name} = ?", value)
    overridden = "run_id IN (SELECT run_id FROM sweep_jobs WHERE list_contains(CAST(overrides AS VARCHAR[]), ?))"
    found = _ids(connection, overridden, word)
    if not found and re.fullmatch(r"thresholds\.\w+", name):
        path = f"$.{name.partition('.')[2]}"
        found = _ids(connection, "TRY_CAST(thresholds ->> ? AS DOUBLE) = TRY_CAST(? AS DOUBLE)", path, value)
    return found
