"""A comparison of two groups of runs as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from engine.codec import encode
from engine.results import text
from engine.store import Answer, Comparison
from engine.store.compare import Spent

_GROUPS = ("category", "score_kind", "tasks", "both", "ratio", "lo", "hi", "win", "tie", "loss")
_COSTS = ("tokens_a", "tokens_b", "tokens_diff", "usd_diff", "gpu_s_diff", "wall_s_diff")
_PAIRS = ("task_id", "category", "score_kind", "a", "b", "ratio", "outcome")


def as_json(compared: Comparison) -> str:
    return json.dumps(encode(compared), indent=1) + "\n"


def as_text(compared: Comparison) -> str:
    """Tasks, then groups; differences are B minus A."""
    pairs = tuple(
        (
            pair.task_id,
            pair.category,
            pair.score_kind,
            pair.a.speedup if pair.a else None,
            pair.b.speedup if pair.b else None,
            pair.ratio,
            pair.outcome,
            *_costs(pair.cost_a, pair.cost_b),
        )
        for pair in compared.pairs
    )
    groups = tuple(
        (
            *(group.category, group.score_kind, group.tasks, group.both, group.ratio, group.lo, group.hi),
            *(group.win, group.tie, group.loss),
            *_costs(group.cost_a, group.cost_b),
        )
        for group in compared.groups
    )
    parts = [
        f"A: {_named(compared.a.word, compared.a.run_ids)}\nB: {_named(compared.b.word, compared.b.run_ids)}\n",
        text.table(Answer((*_PAIRS, *_COSTS), pairs)),
        text.table(Answer((*_GROUPS, *_COSTS), groups)),
        "ratio: B's best speed-up over A's, geometric mean with a 95 % bootstrap interval over tasks; "
        "win, tie, loss: of B, overlapping intervals tie; differences are B minus A\n",
    ]
    told = [
        *_listed("only in A", compared.only_a),
        *_listed("only in B", compared.only_b),
        *_listed("left out, not ended", compared.unfinished),
        *_listed("left out, the task itself differs", compared.changed),
        *_listed("left out, kinds of score differ", compared.kinds_differ),
        *compared.remarks,
    ]
    return "\n".join(parts) + "".join(f"{text.plain(line)}\n" for line in told)


def _costs(a: Spent, b: Spent) -> tuple[float | None, ...]:
    usd = None if a.usd is None or b.usd is None else b.usd - a.usd
    return (a.tokens, b.tokens, b.tokens - a.tokens, usd, b.gpu_s - a.gpu_s, b.wall_s - a.wall_s)


def _named(word: str, run_ids: Sequence[str]) -> str:
    shown = ", ".join(run_ids[:3]) + (", ..." if len(run_ids) > 3 else "")
    return word if tuple(run_ids) == (word,) else f"{word} ({shown})"


def _listed(what: str, tasks: Sequence[str]) -> list[str]:
    return [f"{what}: {', '.join(tasks)}"] if tasks else []
