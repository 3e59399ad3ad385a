"""Views and macros of the database. Kinds of score (measured, unverified, estimated) never rank or average together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.store import views_cost, views_runs, views_stages

VIEWS = {
    "runs": views_runs.RUNS,
    "tasks": views_runs.TASKS,
    "leaderboard": views_runs.LEADERBOARD,
    "summary": views_runs.SUMMARY,
    "cost": views_cost.COST,
    "stage_cost": views_cost.STAGE_COST,
    "llm_usage": views_cost.LLM_USAGE,
    "stage_yield": views_stages.STAGE_YIELD,
    "false_skips": views_stages.FALSE_SKIPS,
    "rule_audit": views_stages.RULE_AUDIT,
    "failures": views_stages.FAILURES,
    "headroom": views_stages.HEADROOM,
    "history": views_stages.HISTORY,
}
"""In an order in which each finds the ones it reads."""

_Z = 1.959963984540054
# Wilson's score interval of a share k / n at 95 %: E. B. Wilson, JASA 22 (1927) 209. With an exponent a number is a
# DOUBLE in DuckDB, of which k = 0 gives 0 exactly; the upper end is that of the other share, for k = n exactly 1.
_WILSON = f"((k + {_Z**2 / 2}e0) - {_Z}e0 * sqrt(k * (n - k) / n::DOUBLE + {_Z**2 / 4}e0)) / (n + {_Z**2}e0)"

MACROS = {
    "wilson_lower(k, n)": f"CASE WHEN n > 0 THEN greatest(0.0, {_WILSON}) END",
    "wilson_upper(k, n)": "1 - wilson_lower(n - k, n)",
}
"""Functions for SQL, by head. They come before the views, which use them."""

TABLE_MACROS = {"fast_p(p)": views_runs.FAST_P}
"""Functions that answer a table. They come after the views, which they use."""


def forms() -> list[str]:
    """The text of everything that `fixed` and `varying` make, for the version of the database."""
    return [*fixed(), *varying((), ())]


def fixed() -> list[str]:
    """Statements that make all views and macros whose columns are always the same."""
    scalars = [f"CREATE OR REPLACE MACRO {head} AS {body}" for head, body in MACROS.items()]
    made = [f"CREATE OR REPLACE VIEW {name} AS {sql}" for name, sql in VIEWS.items()]
    tables = [f"CREATE OR REPLACE MACRO {head} AS TABLE {body}" for head, body in TABLE_MACROS.items()]
    return [*scalars, *made, *tables]


VARYING = ("sweep", "metric_wide")
"""Views with a column for each threshold or metric."""


def varying(thresholds: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """Statements that make the views of `VARYING`."""
    bodies = zip(VARYING, (sweep(thresholds), metric_wide(metrics)), strict=True)
    return [f"CREATE OR REPLACE VIEW {name} AS {body}" for name, body in bodies]


SWEEP_COLUMNS = (
    "sweep_id",
    "job",
    "overrides",
    "tasks",
    "solved",
    "geomean",
    "score_kind",
    "tokens",
    "usd",
    "unpriced",
    "gpu_s",
    "judge_s",
    "wall_s",
    "stages_run",
    "stages_skipped",
    "exits",
    "outcome",
    "why",
    "found",
    "run_id",
)


def identifier(name: str) -> str:
    """A quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def json_path(name: str) -> str:
    """The JSON path of one key, as an SQL literal."""
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return literal(f'$."{escaped}"')


def sweep(thresholds: Sequence[str]) -> str:
    """One row per job of a sweep and kind of score, with a column for each threshold; a threshold that shares its name
    with another column is called threshold_<name>."""
    columns = "".join(
        f"TRY_CAST(r.thresholds ->> {json_path(name)} AS DOUBLE) AS "
        f"{identifier(f'threshold_{name}' if name.lower() in SWEEP_COLUMNS else name)},\n       "
        for name in thresholds
    )
    return f"""
WITH jobs AS (SELECT sweep_id, job, run_id, any_value(overrides) AS overrides, min(seq) AS seq
              FROM sweep_jobs GROUP BY sweep_id, job, run_id),
-- A run that had ended before its job began, and did not go on for an edited task, cost that job nothing.
ends AS (SELECT e.run_id, min(e.seq) AS seq, any_value(b.seq) AS begun
         FROM run_ends e LEFT JOIN (SELECT run_id, max(seq) AS seq FROM task_starts GROUP BY run_id) b USING (run_id)
         WHERE e.outcome IN ('done', 'budget') GROUP BY e.run_id),
found AS (SELECT j.sweep_id, j.job, j.run_id,
                 coalesce(e.seq < j.seq AND coalesce(e.begun < j.seq, true), false) AS found
          FROM jobs j LEFT JOIN ends e USING (run_id)),
lost AS (SELECT run_id, arg_max(concat_ws(': ', error, message), seq) AS why
         FROM interruptions WHERE kind IN ('job_failed', 'task_failed') GROUP BY run_id),
short AS (SELECT run_id, arg_min(why, seq) AS why FROM task_ends WHERE outcome = 'budget' GROUP BY run_id),
asked AS (SELECT run_id, sum(input_tokens + output_tokens)::BIGINT AS tokens, sum(cost_usd) AS usd,
                 count(*) FILTER (cost_usd IS NULL) AS unpriced FROM llm_calls GROUP BY run_id),
-- No profile tells how long it held a GPU. Of other steps an older ledger does not, and then the sum is not known.
held AS (SELECT run_id, sum(wall_s) AS judge_s,
                CASE WHEN bool_and(gpu_s IS NOT NULL OR kind = 'profile') THEN coalesce(sum(gpu_s), 0) END AS gpu_s
         FROM steps WHERE kind NOT IN ('reply', 'facts') GROUP BY run_id),
went AS (SELECT run_id, count(*) FILTER (outcome <> 'skipped') AS stages_run,
                count(*) FILTER (outcome = 'skipped') AS stages_skipped, count(*) FILTER (outcome = 'exited') AS exits
         FROM ({views_stages.LAST_ENDS})
         GROUP BY run_id)
SELECT j.sweep_id, j.job, array_to_string(CAST(j.overrides AS VARCHAR[]), ' ') AS overrides,
       {columns}s.tasks, s.solved, s.geomean, s.score_kind, coalesce(a.tokens, 0) AS tokens, a.usd,
       coalesce(a.unpriced, 0) AS unpriced,
       CASE WHEN r.backend = 'cpu' OR f.found OR h.run_id IS NULL THEN 0 ELSE h.gpu_s END AS gpu_s,
       CASE WHEN f.found THEN 0 ELSE coalesce(h.judge_s, 0) END AS judge_s,
       CASE WHEN f.found THEN 0 ELSE r.wall_s END AS wall_s,
       coalesce(w.stages_run, 0) AS stages_run, coalesce(w.stages_skipped, 0) AS stages_skipped,
       coalesce(w.exits, 0) AS exits,
       CASE WHEN coalesce(r.outcome, 'unfinished') <> 'unfinished' THEN r.outcome
            WHEN l.why IS NULL THEN 'unfinished' ELSE 'failed' END AS outcome,
       CASE r.outcome WHEN 'done' THEN NULL WHEN 'budget' THEN b.why ELSE l.why END AS why,
       f.found, j.run_id
FROM jobs j JOIN found f USING (sweep_id, job, run_id) LEFT JOIN runs r USING (run_id)
LEFT JOIN summary s USING (run_id) LEFT JOIN asked a USING (run_id)
LEFT JOIN held h USING (run_id) LEFT JOIN went w USING (run_id)
LEFT JOIN lost l USING (run_id) LEFT JOIN short b USING (run_id)
ORDER BY j.sweep_id, j.job, s.score_kind
"""


def metric_wide(metrics: Iterable[str]) -> str:
    """One row per profiled candidate (NULL: the eager reference) and stage, one column per metric: the last value."""
    columns = "".join(
        f",\n       arg_max(value, seq) FILTER (metric = {literal(name)}) AS {identifier(name)}" for name in metrics
    )
    return f"""
SELECT run_id, task_id, stage, candidate_id{columns}
FROM metrics GROUP BY run_id, task_id, stage, candidate_id ORDER BY run_id, min(seq)
"""
