"""A replayed rule as text: the decisions that change, and what they save and lose in all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from engine.codec import encode
from engine.results import text
from engine.store import Answer, Replay
from engine.store.plans import Saved, Total

_DECISIONS = (
    *("run_id", "task_id", "category", "stage", "kind", "recorded", "now", "effect"),
    *("stages", "tokens", "usd", "seconds", "gpu_s", "gain_lost", "score_kind"),
)
_TOTALS = (
    *("score_kind", "plans", "evaluations", "unknown", "skips", "ends", "refused", "open"),
    *("tokens", "of", "usd", "seconds", "gpu_s", "worse", "gain_lost", "unjudged"),
)


def _decisions(replay: Replay, unpriced: str | None = None) -> Answer:
    """`unpriced`: what stands for dollars of which a price is not known."""
    rows = []
    for made in replay.decisions:
        kept = made.saved
        priced = (kept.stages, kept.tokens, _usd(kept, unpriced), kept.seconds, kept.gpu_s) if kept else (None,) * 5
        where = (made.run_id, made.task_id, made.category, made.stage, made.kind, made.recorded, made.now, made.effect)
        rows.append((*where, *priced, made.gain_lost, made.score_kind, made.candidate_id))
    if not any(made.candidate_id for made in replay.decisions):
        return Answer(_DECISIONS, tuple(row[:-1] for row in rows))
    return Answer((*_DECISIONS, "candidate_id"), tuple(rows))


def _total(total: Total) -> tuple[object, ...]:
    counts = (total.plans, total.evaluations, total.unknown, total.skips, total.ends, total.refused, total.open)
    usd = _usd(total.saved, text.UNKNOWN)
    kept = (total.saved.tokens, total.spent.tokens, usd, total.saved.seconds, total.saved.gpu_s)
    return (total.score_kind, *counts, *kept, total.worse, total.gain_lost, total.unjudged)


def _usd(saved: Saved, unpriced: str | None) -> float | str | None:
    return unpriced if saved.usd is None else saved.usd


def _as_table(replay: Replay) -> str:
    head = f"rule {replay.rule} as: {replay.expression}\n\n"
    totals = Answer(_TOTALS, tuple(_total(total) for total in replay.totals))
    last = "saved: tokens (of what stages took), usd, seconds, gpu_s; gain_lost: geometric mean over plans, 1 is none\n"
    if any(total.unjudged for total in replay.totals):
        last += "unjudged: plans that lose what nobody knows, for no draft of the stages left out was judged\n"
    if replay.repeats:
        last += f"{replay.repeats} plans of other runs tell the same again and are left out\n"
    if any(total.saved.usd is None for total in replay.totals):
        last += f"{text.UNKNOWN}: a call has no known price\n"
    changed = (
        text.table(_decisions(replay, text.UNKNOWN)) if replay.decisions else "nothing would be decided otherwise\n"
    )
    return f"{head}{changed}\n{text.table(totals)}{last}"


def _as_json(replay: Replay) -> str:
    return json.dumps(encode(replay), indent=1) + "\n"


def _as_csv(replay: Replay) -> str:
    return text.as_csv(_decisions(replay))


SHOW: Mapping[str, Callable[[Replay], str]] = {"table": _as_table, "json": _as_json, "csv": _as_csv}
