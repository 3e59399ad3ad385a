"""A replayed rule as text: the decisions that change, and what they save and lose in all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from engine.codec import encode
from engine.results import text
from engine.store import Answer, Replay
from engine.store.whatif import Total

_DECISIONS = (
    *("run_id", "task_id", "category", "stage", "kind", "recorded", "now", "effect"),
    *("stages", "tokens", "usd", "seconds", "gpu_s", "gain_lost", "score_kind"),
)
_TOTALS = (
    *("score_kind", "plans", "evaluations", "unknown", "skips", "ends", "open"),
    *("tokens", "of", "usd", "seconds", "gpu_s", "worse", "gain_lost"),
)


def _decisions(replay: Replay) -> Answer:
    rows = []
    for made in replay.decisions:
        kept = made.saved
        priced = (kept.stages, kept.tokens, kept.usd, kept.seconds, kept.gpu_s) if kept else (None,) * 5
        where = (made.run_id, made.task_id, made.category, made.stage, made.kind, made.recorded, made.now, made.effect)
        rows.append((*where, *priced, made.gain_lost, made.score_kind))
    return Answer(_DECISIONS, tuple(rows))


def _total(total: Total) -> tuple[object, ...]:
    counts = (total.plans, total.evaluations, total.unknown, total.skips, total.ends, total.open)
    kept = (total.saved.tokens, total.spent.tokens, total.saved.usd, total.saved.seconds, total.saved.gpu_s)
    return (total.score_kind, *counts, *kept, total.worse, total.gain_lost)


def _as_table(replay: Replay) -> str:
    head = f"rule {replay.rule} as: {replay.expression}\n\n"
    totals = Answer(_TOTALS, tuple(_total(total) for total in replay.totals))
    last = "saved: tokens (of what stages took), usd, seconds, gpu_s; gain_lost: geometric mean over plans, 1 is none\n"
    changed = text.table(_decisions(replay)) if replay.decisions else "nothing would be decided otherwise\n"
    return f"{head}{changed}\n{text.table(totals)}{last}"


def _as_json(replay: Replay) -> str:
    return json.dumps(encode(replay), indent=1) + "\n"


def _as_csv(replay: Replay) -> str:
    return text.as_csv(_decisions(replay))


SHOW: Mapping[str, Callable[[Replay], str]] = {"table": _as_table, "json": _as_json, "csv": _as_csv}
