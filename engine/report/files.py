"""The files beside a journal that people open: summary.json, summary.csv, usage.csv and a score curve per operator."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.canonical import Json
from engine.files import write_whole
from engine.report.figure import score_curve
from engine.report.rows import OperatorRow, Score, rows
from engine.report.totals import by_kind, spent_usd

OPERATOR_COLUMNS = (
    "task_id",
    "name",
    "category",
    "outcome",
    "correct",
    "speedup",
    "lo",
    "hi",
    "fastest",
    "speedup_fastest",
    "score_kind",
    "headroom",
    "candidates",
    "calls",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "confirmed",
    "best_id",
    "best",
)

USAGE_COLUMNS = (
    "seq",
    "t",
    "task_id",
    "stage",
    "role",
    "attempt",
    "sample",
    "model",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_usd",
    "latency_s",
)


def summary(events: Iterable[Json]) -> Json:
    """One run in a JSON tree: totals, geometric means and medians by score kind (kinds never mix), fast_p, one object
    per operator. `wall_s` runs from the first event to the last, pauses between resumed commands included."""
    seen = list(events)
    operators = rows(seen)
    kinds = by_kind(operators)
    return {
        "run_id": seen[0]["run_id"] if seen else None,
        "tasks": len(operators),
        "solved": sum(row.solved for row in operators),
        "failed": sum(row.outcome == "failed" for row in operators),
        "geomean_speedup": {kind.kind: kind.geomean for kind in kinds if kind.geomean is not None},
        "median_speedup": {kind.kind: kind.median for kind in kinds if kind.median is not None},
        "fast_p": {kind.kind: kind.fast for kind in kinds},
        "calls": sum(row.calls for row in operators),
        "input_tokens": sum(row.input_tokens for row in operators),
        "output_tokens": sum(row.output_tokens for row in operators),
        "usd": spent_usd(operators),
        "wall_s": round(seen[-1]["t"] - seen[0]["t"], 3) if seen else 0.0,
        "operators": [_operator(row) for row in operators],
    }


def write_reports(run_dir: Path, events: Sequence[Json]) -> None:
    """Write summary.json, summary.csv, usage.csv and figures/<task>.svg under `run_dir`, each replaced as a whole."""
    tree = summary(events)
    write_whole(run_dir / "summary.json", json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
    write_whole(run_dir / "summary.csv", _csv(OPERATOR_COLUMNS, tree["operators"]))
    write_whole(run_dir / "usage.csv", _csv(USAGE_COLUMNS, [e for e in events if e["kind"] == "llm_call"]))
    for row in rows(events):
        write_whole(run_dir / "figures" / f"{row.task_id.replace('/', '__')}.svg", score_curve(row))


def _operator(row: OperatorRow) -> Json:
    eager, fastest = row.vs_eager, row.vs_fastest
    return {
        "task_id": row.task_id,
        "name": row.name,
        "category": row.category,
        "outcome": row.outcome,
        "why": row.why,
        "correct": row.solved,
        **_eager_columns(eager),
        "fastest": fastest.over if fastest else None,
        "speedup_fastest": fastest.value if fastest else None,
        "score_kind": row.score_kind,
        "headroom": row.headroom,
        "candidates": len(row.points),
        "calls": row.calls,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cost_usd": row.cost_usd,
        "confirmed": row.confirmed,
        "best_id": row.best_id,
        "best": row.best_path,
        "stages": [
            {"stage": s.name, "outcome": s.outcome, "why": s.why, "rule": s.rule, "gain": s.gain, "correct": s.correct}
            for s in row.stages
        ],
    }


def _eager_columns(score: Score | None) -> Json:
    if score is None:
        return {"speedup": None, "lo": None, "hi": None}
    return {"speedup": score.value, "lo": score.lo, "hi": score.hi}


def _csv(columns: Sequence[str], records: Iterable[Json]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()
