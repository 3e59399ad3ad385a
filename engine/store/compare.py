"""Two groups of runs over the tasks that both have: paired, per task, category and in all."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.store.database import Connection
from engine.store.query import reader
from engine.store.selection import Selection, select
from engine.store.statistics import bootstrap_geomean, geometric_mean, known_sum
from engine.store.views import literal


@dataclass(frozen=True, slots=True)
class Score:
    """Best speed-up over eager of one side with its interval: over several runs the geometric mean."""

    speedup: float
    lo: float
    hi: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What one task, or a group of tasks, took as if nothing had been in the memo: the mean over a side's runs.
    `wall_s` is the time of model, judge, clock and profiler; `gpu_s` what of it held a GPU. `usd` is the mean
    over the runs whose calls all have a known price; None where there is none, of a group where any task has none."""

    tokens: float
    usd: float | None
    gpu_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Pair:
    """One task of both sides. `ratio`: B's best speed-up over A's; `outcome`: of B."""

    task_id: str
    category: str
    score_kind: str | None
    a: Score | None
    b: Score | None
    ratio: float | None
    outcome: str
    """win, tie or loss; `neither` where no side has a kernel."""
    cost_a: Spent
    cost_b: Spent


@dataclass(frozen=True, slots=True)
class Group:
    """Pairs of one category, or all, and one kind of score (None: solved by neither). `tasks`: shared; `both`: solved
    by both, over which `ratio` is the geometric mean with its bootstrap interval."""

    category: str
    score_kind: str | None
    tasks: int
    both: int
    ratio: float | None
    lo: float | None
    hi: float | None
    win: int
    tie: int
    loss: int
    cost_a: Spent
    cost_b: Spent


@dataclass(frozen=True, slots=True)
class Comparison:
    """`only_a`, `only_b`: tasks that the other side has not; `unfinished`: that have not ended in any run of a side;
    `changed`: whose source or contract differs; `kinds_differ`: whose scores are of different kinds. None of these is
    in `pairs`."""

    a: Selection
    b: Selection
    pairs: tuple[Pair, ...]
    groups: tuple[Group, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    unfinished: tuple[str, ...]
    changed: tuple[str, ...]
    kinds_differ: tuple[str, ...]
    remarks: tuple[str, ...]


_TASKS = """
WITH spent AS (
    SELECT run_id, task_id, sum(tokens) AS tokens, coalesce(sum(usd), 0) AS usd, sum(unpriced) AS unpriced,
           sum(gpu_s) AS gpu_s, sum(seconds) AS wall_s FROM stage_cost GROUP BY run_id, task_id)
SELECT t.task_id, any_value(t.category), array_agg(DISTINCT t.task_hash ORDER BY t.task_hash), t.score_kind,
       exp(avg(ln(t.speedup))), exp(avg(ln(coalesce(t.speedup_lo, t.speedup)))),
       exp(avg(ln(coalesce(t.speedup_hi, t.speedup)))), count(*) AS runs, coalesce(sum(s.tokens), 0)::DOUBLE,
       coalesce(sum(s.usd) FILTER (s.unpriced = 0), 0), coalesce(sum(s.gpu_s), 0), coalesce(sum(s.wall_s), 0),
       count(*) FILTER (coalesce(s.unpriced, 0) = 0) AS priced
FROM (SELECT run_id, task_id, category, task_hash,
             CASE WHEN best_id IS NOT NULL AND speedup > 0 THEN score_kind END AS score_kind,
             CASE WHEN best_id IS NOT NULL AND speedup > 0 THEN speedup END AS speedup, speedup_lo, speedup_hi
      FROM tasks WHERE run_id IN ({runs}) AND outcome <> 'unfinished') t
LEFT JOIN spent s USING (run_id, task_id)
GROUP BY t.task_id, t.score_kind ORDER BY t.task_id, t.score_kind NULLS LAST
"""

_UNFINISHED = """
SELECT task_id FROM tasks WHERE run_id IN ({runs})
GROUP BY task_id HAVING bool_and(outcome = 'unfinished') ORDER BY task_id
"""


@dataclass(frozen=True, slots=True)
class _Side:
    category: str
    hashes: frozenset[str]
    scores: dict[str, Score]
    """By kind of score."""
    cost: Spent


def compare(results: Path, a: str, b: str) -> Comparison:
    """Compare the runs that `a` and `b` name (see `selection.select`) over the tasks that both have. Raises
    MissingError for a word that names no run."""
    with reader(results) as connection:
        left, right = select(connection, a), select(connection, b)
        first, second = _sides(connection, left), _sides(connection, right)
        going = _unfinished(connection, left), _unfinished(connection, right)
        remarks = _remarks(connection, left, right)
    here, there = ({*ended, *unended} for ended, unended in zip((first, second), going, strict=True))
    shared = [task for task in first if task in second]
    changed = [task for task in shared if first[task].hashes != second[task].hashes]
    differ = [task for task in shared if task not in changed and _differ(first[task], second[task])]
    left_out = {*changed, *differ}
    pairs = [pair for task in shared if task not in left_out for pair in _pairs(task, first[task], second[task])]
    return Comparison(
        left,
        right,
        tuple(pairs),
        tuple(_groups(pairs)),
        tuple(sorted(here - there)),
        tuple(sorted(there - here)),
        tuple(sorted(here & there & {*going[0], *going[1]})),
        tuple(changed),
        tuple(differ),
        remarks,
    )


def _sides(connection: Connection, chosen: Selection) -> dict[str, _Side]:
    """Of the tasks that have ended in a run of the side, by id."""
    rows = connection.execute(_TASKS.format(runs=_listed(chosen))).fetchall()
    sides: dict[str, _Side] = {}
    for task, of_task in itertools.groupby(rows, key=lambda row: row[0]):
        mine = list(of_task)
        count = sum(row[7] for row in mine)
        priced = sum(row[12] for row in mine)
        totals = [sum(row[column] for row in mine) / count for column in (8, 10, 11)]
        usd = sum(row[9] for row in mine) / priced if priced else None
        cost = Spent(totals[0], usd, totals[1], totals[2])
        scores = {row[3]: Score(*row[4:7]) for row in mine if row[3] is not None}
        sides[task] = _Side(mine[0][1], frozenset(mark for row in mine for mark in row[2]), scores, cost)
    return sides


def _unfinished(connection: Connection, chosen: Selection) -> list[str]:
    return [task for (task,) in connection.execute(_UNFINISHED.format(runs=_listed(chosen))).fetchall()]


def _listed(chosen: Selection) -> str:
    return ", ".join(literal(run_id) for run_id in chosen.run_ids)


def _differ(a: _Side, b: _Side) -> bool:
    return bool(a.scores and b.scores and not a.scores.keys() & b.scores.keys())


def _pairs(task: str, a: _Side, b: _Side) -> Iterable[Pair]:
    kinds: Iterable[str | None] = sorted(a.scores.keys() & b.scores.keys()) or sorted(a.scores.keys() | b.scores.keys())
    for kind in kinds or (None,):
        mine = a.scores.get(kind) if kind else None
        other = b.scores.get(kind) if kind else None
        ratio = other.speedup / mine.speedup if mine and other else None
        yield Pair(task, a.category, kind, mine, other, ratio, _outcome(mine, other), a.cost, b.cost)


def _outcome(a: Score | None, b: Score | None) -> str:
    """Overlapping intervals are a tie; a side without a kernel loses to one with."""
    if a is None or b is None:
        return "neither" if a is b else "win" if a is None else "loss"
    if a.lo <= b.hi and b.lo <= a.hi:
        return "tie"
    return "win" if b.speedup > a.speedup else "loss"


def _groups(pairs: list[Pair]) -> Iterable[Group]:
    categories = ["", *dict.fromkeys(sorted(pair.category for pair in pairs))]
    kinds = sorted({pair.score_kind for pair in pairs}, key=lambda kind: (kind is None, kind))
    for category in categories:
        for kind in kinds:
            chosen = [pair for pair in pairs if pair.score_kind == kind and category in ("", pair.category)]
            if chosen:
                yield _group(category or "all", kind, chosen)


def _group(category: str, kind: str | None, pairs: list[Pair]) -> Group:
    ratios = [pair.ratio for pair in pairs if pair.ratio is not None]
    lo, hi = bootstrap_geomean(ratios) or (None, None)
    outcomes = [pair.outcome for pair in pairs]
    return Group(
        category,
        kind,
        len(pairs),
        len(ratios),
        geometric_mean(ratios),
        lo,
        hi,
        outcomes.count("win"),
        outcomes.count("tie"),
        outcomes.count("loss"),
        _sum(pair.cost_a for pair in pairs),
        _sum(pair.cost_b for pair in pairs),
    )


def _sum(costs: Iterable[Spent]) -> Spent:
    found = list(costs)
    tokens, gpu_s, wall_s = (sum(getattr(cost, name) for cost in found) for name in ("tokens", "gpu_s", "wall_s"))
    return Spent(tokens, known_sum(cost.usd for cost in found), gpu_s, wall_s)


def _remarks(connection: Connection, a: Selection, b: Selection) -> tuple[str, ...]:
    found = []
    for chosen in (a, b):
        if len(chosen.run_ids) > 1:
            found.append(f"'{chosen.word}' is {len(chosen.run_ids)} runs; per task their geometric mean and mean cost")
        found += _going(connection, chosen)
    both = set(a.run_ids) & set(b.run_ids)
    if both:
        found.append(f"{len(both)} {'run is' if len(both) == 1 else 'runs are'} on both sides")
    devices = [_devices(connection, chosen) for chosen in (a, b)]
    if devices[0] != devices[1]:
        found.append(f"devices differ: {', '.join(devices[0])} against {', '.join(devices[1])}")
    return tuple(found)


def _going(connection: Connection, chosen: Selection) -> list[str]:
    """That runs of a side have not ended, if so."""
    sql = f"SELECT run_id FROM runs WHERE run_id IN ({_listed(chosen)}) AND outcome = 'unfinished'"
    found = connection.execute(sql).fetchall()
    count = len(chosen.run_ids)
    what = f"'{chosen.word}'" if count == 1 else f"of the runs of '{chosen.word}' {len(found)}"
    return [f"{what} {'has' if len(found) == 1 else 'have'} not ended"] if found else []


def _devices(connection: Connection, chosen: Selection) -> list[str]:
    columns = "DISTINCT coalesce(device, 'unknown') AS device"
    sql = f"SELECT {columns} FROM runs WHERE run_id IN ({_listed(chosen)}) ORDER BY device"
    return [device for (device,) in connection.execute(sql).fetchall()]
