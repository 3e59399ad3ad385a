"""Training records: every judged change of a kernel, good and bad, as one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.canonical import Json
from engine.store.database import Connection
from engine.store.present import measured, present
from engine.store.query import reader
from engine.store.views_stages import judged

VERSION = 1
FILE = "training.jsonl"


@dataclass(frozen=True, slots=True)
class Written:
    """`left_out`: candidates whose source is not below results/runs any more; `repeated`: found in several runs."""

    path: Path
    records: int
    left_out: int
    repeated: int


def export_training(results: Path, folder: Path) -> Written:
    """One record for each change that was judged: the latest run's where several runs of a device made the same one.
    Candidates that failed are there, too. docs/sql.md describes the fields."""
    seen: set[tuple[object, ...]] = set()
    written = left_out = repeated = 0
    folder.mkdir(parents=True, exist_ok=True)
    path, beside = folder / FILE, folder / f".{FILE}"
    with reader(results) as connection, beside.open("w", encoding="utf-8") as file:
        metrics = _metrics(connection)
        for row in _rows(connection):
            mark = tuple(row[name] for name in ("task_hash", "device", "stage", "role", "parent_id", "candidate_id"))
            if mark in seen:
                repeated += 1
                continue
            record = _record(results, row, metrics)
            if record is None:
                left_out += 1
            else:
                seen.add(mark)
                file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
                written += 1
    beside.replace(path)
    return Written(path, written, left_out, repeated)


_ROWS = f"""
WITH {judged()},
own AS (
    SELECT run_id, task_id, candidate_id, arg_min(value, seq) AS value, arg_min(lo, seq) AS lo, arg_min(hi, seq) AS hi
    FROM {measured("ratios")} WHERE "over" = 'eager' GROUP BY ALL),
timed AS (
    SELECT run_id, task_id, candidate_id, arg_min(score_kind, seq) AS score_kind,
           arg_min(median_us, seq) AS median_us, min(seq) AS seq
    FROM {measured("timings")} WHERE who = 'candidate' GROUP BY ALL),
paired AS (
    SELECT run_id, task_id, stage, candidate_id, arg_max(value, seq) AS value, arg_max(lo, seq) AS lo,
           arg_max(hi, seq) AS hi FROM {measured("ratios")} WHERE "over" = 'incumbent' GROUP BY ALL),
decided AS (
    SELECT run_id, task_id, stage, candidate_id, arg_max(promoted, seq) AS promoted, arg_max(why, seq) AS why,
           arg_max(incumbent_id, seq) AS incumbent_id FROM promotions GROUP BY ALL)
SELECT c.run_id, c.task_id, k.task_hash, k.name, k.category, k.facts, k.contract, k.licence,
       -- A run may have gone on on another device; there what it has of both was judged and timed anew.
       (SELECT arg_max(n.device ->> 'name', n.seq) FROM environment n
        WHERE n.run_id = c.run_id AND n.seq <= greatest(v.seq, m.seq)) AS device, u.backend,
       c.stage, c.role, c.attempt, c.sample, c.audit, c.proposer, c.candidate_id, c.parent_id, c.source_hash, j.status,
       j.reason, j.message, v.mode, v.precision_class, CASE WHEN NOT j.refused THEN v.error_ratio END AS error_ratio,
       m.score_kind, m.median_us, o.value, o.lo, o.hi,
       b.value AS parent_value, b.lo AS parent_lo, b.hi AS parent_hi, n.score_kind AS parent_kind,
       d.incumbent_id, p.value AS paired, p.lo AS paired_lo, p.hi AS paired_hi,
       d.promoted AND NOT j.refused AS promoted, d.why
-- What was drafted for an earlier text of an edited task has no reference any more.
FROM {present("candidates")} c
JOIN tasks k ON k.run_id = c.run_id AND k.task_id = c.task_id
JOIN runs u ON u.run_id = c.run_id
JOIN judged j ON j.run_id = c.run_id AND j.task_id = c.task_id AND j.candidate_id = c.candidate_id
JOIN (SELECT * FROM verdicts
      QUALIFY row_number() OVER (PARTITION BY run_id, task_id, stage, candidate_id ORDER BY seq DESC) = 1) v
     ON v.run_id = c.run_id AND v.task_id = c.task_id AND v.stage = c.stage AND v.candidate_id = c.candidate_id
LEFT JOIN own o ON o.run_id = c.run_id AND o.task_id = c.task_id AND o.candidate_id = c.candidate_id
LEFT JOIN timed m ON m.run_id = c.run_id AND m.task_id = c.task_id AND m.candidate_id = c.candidate_id
LEFT JOIN own b ON b.run_id = c.run_id AND b.task_id = c.task_id AND b.candidate_id = c.parent_id
LEFT JOIN timed n ON n.run_id = c.run_id AND n.task_id = c.task_id AND n.candidate_id = c.parent_id
LEFT JOIN paired p ON p.run_id = c.run_id AND p.task_id = c.task_id AND p.stage = c.stage
                  AND p.candidate_id = c.candidate_id
LEFT JOIN decided d ON d.run_id = c.run_id AND d.task_id = c.task_id AND d.stage = c.stage
                   AND d.candidate_id = c.candidate_id
ORDER BY u.started DESC, c.run_id, c.seq
"""


def _rows(connection: Connection) -> Iterator[dict[str, Json]]:
    cursor = connection.execute(_ROWS)
    columns = [str(column[0]) for column in cursor.description]
    while batch := cursor.fetchmany(1000):
        for row in batch:
            yield dict(zip(columns, row, strict=True))


Metrics = dict[tuple[str, str, str, str | None], list[Json]]
"""Profiled values by run, task, stage and kernel; None: the reference."""


def _metrics(connection: Connection) -> Metrics:
    found: Metrics = {}
    sql = (
        "SELECT run_id, task_id, stage, candidate_id, metric, value, unit, source, confidence FROM metrics "
        "WHERE value IS NOT NULL AND contradiction = '' ORDER BY run_id, seq"
    )
    for run_id, task_id, stage, kernel, *values in connection.execute(sql).fetchall():
        named = dict(zip(("metric", "value", "unit", "source", "confidence"), values, strict=True))
        found.setdefault((run_id, task_id, stage, kernel), []).append(named)
    return found


def _record(results: Path, row: dict[str, Json], metrics: Metrics) -> Json | None:
    """None where the candidate's source is gone."""
    folder = results / "runs" / row["run_id"] / "tasks" / row["task_id"]
    source = _text(folder / "candidates" / f"{row['candidate_id']}.py")
    if source is None:
        return None
    parent_id = row["parent_id"]
    at = (row["run_id"], row["task_id"], row["stage"])
    parent = None
    if parent_id is not None:
        values = metrics.get((*at, parent_id)) or []
        parent = {"id": parent_id, "source": _text(folder / "candidates" / f"{parent_id}.py"), "metrics": values}
    task = {name: row[name] for name in ("task_id", "name", "task_hash", "category", "licence")}
    trees = {name: json.loads(row[name]) for name in ("facts", "contract") if row[name] is not None}
    slot = {name: row[name] for name in ("stage", "role", "attempt", "sample", "audit", "proposer")}
    verdict = ("status", "reason", "message", "mode", "precision_class", "error_ratio")
    return {
        "v": VERSION,
        "run_id": row["run_id"],
        "device": row["device"],
        "backend": row["backend"],
        "task": {**task, **trees, "source": _text(folder / "reference.py")},
        **slot,
        "reference_metrics": metrics.get((*at, None)) or [],
        "parent": parent,
        "child": {"id": row["candidate_id"], "source": source, "source_hash": row["source_hash"]},
        "verdict": {name: row[name] for name in verdict},
        "score_kind": row["score_kind"],
        "median_us": row["median_us"],
        "speedup": _interval(row["value"], row["lo"], row["hi"]),
        "change": _change(row),
        "over_best": _over_best(row),
        "promoted": bool(row["promoted"]),
        "why": row["why"],
    }


def _change(row: dict[str, Json]) -> Json | None:
    """Parent's time over the child's: paired where the two were timed together; else from their speed-ups over eager,
    timed apart, with the widest interval these allow; None where either has no time, or of another kind."""
    if row["paired"] is not None and row["incumbent_id"] == row["parent_id"]:
        return {"how": "paired", **_interval(row["paired"], row["paired_lo"], row["paired_hi"])}
    if row["value"] is None or row["parent_value"] is None or row["parent_kind"] != row["score_kind"]:
        return None
    ends = row["lo"] / row["parent_hi"], row["hi"] / row["parent_lo"]
    return {"how": "apart", **_interval(row["value"] / row["parent_value"], *ends)}


def _over_best(row: dict[str, Json]) -> Json | None:
    """The time of the best until then over the child's, timed together; None where that was not done."""
    if row["paired"] is None or row["incumbent_id"] is None:
        return None
    return {"id": row["incumbent_id"], **_interval(row["paired"], row["paired_lo"], row["paired_hi"])}


def _interval(value: float | None, lo: float | None, hi: float | None) -> Json:
    return None if value is None else {"value": value, "lo": lo, "hi": hi}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
