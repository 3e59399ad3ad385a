"""Views of the database. Kinds of score (measured, unverified, estimated) never rank or average together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

RUNS = """
SELECT s.run_id, s.seq, s.t AS started, e.t AS ended, s.config_hash, s.version, s.backend,
       v.device ->> 'name' AS device, s.category, s.provider, s.model, s.thresholds,
       coalesce(e.outcome, 'unfinished') AS outcome, e.wall_s
FROM (SELECT * FROM run_starts QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY seq DESC) = 1) s
LEFT JOIN (SELECT run_id, arg_max(outcome, seq) AS outcome, max(t) AS t, sum(wall_s) AS wall_s
           FROM run_ends GROUP BY run_id) e USING (run_id)
LEFT JOIN (SELECT run_id, arg_max(device, seq) AS device FROM environment GROUP BY run_id) v USING (run_id)
"""

TASKS = """
SELECT s.run_id, s.seq, s.task_id, s.name, s.category, s.named, s.classified, s.task_hash, s.contract_origin, s.facts,
       s.contract, coalesce(e.outcome, 'unfinished') AS outcome, e.why, e.best_id, e.speedup, e.speedup_lo,
       e.speedup_hi, e.speedup_fastest, e.fastest, e.headroom, e.score_kind, e.confirmed
FROM (SELECT * FROM task_starts QUALIFY row_number() OVER (PARTITION BY run_id, task_id ORDER BY seq DESC) = 1) s
LEFT JOIN (SELECT * FROM task_ends QUALIFY row_number() OVER (PARTITION BY run_id, task_id ORDER BY seq DESC) = 1) e
       USING (run_id, task_id)
"""

LEADERBOARD = """
SELECT rank() OVER (PARTITION BY t.task_id, t.task_hash, r.device, t.score_kind ORDER BY t.speedup DESC) AS rank,
       t.task_id, t.score_kind, r.device, t.speedup, t.speedup_lo, t.speedup_hi, t.speedup_fastest, t.fastest,
       t.headroom, t.confirmed, v.precision_class, t.category, r.model, t.best_id, t.run_id, t.task_hash
FROM tasks t JOIN runs r USING (run_id)
LEFT JOIN (SELECT run_id, task_id, candidate_id, arg_max(precision_class, seq) AS precision_class
           FROM verdicts GROUP BY ALL) v
       ON v.run_id = t.run_id AND v.task_id = t.task_id AND v.candidate_id = t.best_id
WHERE t.best_id IS NOT NULL AND t.speedup IS NOT NULL
ORDER BY t.task_id, r.device, t.score_kind, rank
"""

SUMMARY = """
WITH kinds AS (
    SELECT run_id, score_kind, count(*) AS solved, exp(avg(ln(speedup)) FILTER (speedup > 0)) AS geomean,
           count(*) FILTER (speedup > 0) AS above_0, count(*) FILTER (speedup > 1) AS above_1,
           count(*) FILTER (speedup > 1.5) AS above_1_5, count(*) FILTER (speedup > 2) AS above_2
    FROM tasks WHERE best_id IS NOT NULL GROUP BY ALL)
SELECT a.run_id, k.score_kind, a.tasks, coalesce(k.solved, 0) AS solved, k.geomean,
       coalesce(k.above_0, 0) / a.tasks AS fast_0, coalesce(k.above_1, 0) / a.tasks AS fast_1,
       coalesce(k.above_1_5, 0) / a.tasks AS fast_1_5, coalesce(k.above_2, 0) / a.tasks AS fast_2
FROM (SELECT run_id, count(*) AS tasks FROM tasks GROUP BY run_id) a LEFT JOIN kinds k USING (run_id)
ORDER BY a.run_id, k.score_kind
"""

COST = """
SELECT run_id, task_id, role, count(*) AS calls, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
       sum(input_tokens + output_tokens) AS tokens, sum(cost_usd) AS usd,
       count(*) FILTER (cost_usd IS NULL) AS unpriced, sum(latency_s) AS latency_s
FROM llm_calls GROUP BY run_id, task_id, role ORDER BY run_id, task_id, role
"""

STAGE_YIELD = """
WITH judged AS (
    SELECT run_id, task_id, candidate_id, arg_max(status, seq) AS status FROM verdicts GROUP BY ALL),
promoted AS (
    SELECT DISTINCT run_id, task_id, stage, candidate_id FROM promotions WHERE promoted),
tried AS (
    SELECT c.run_id, c.task_id, c.stage, count(*) AS attempts, count(*) FILTER (j.status = 'correct') AS correct,
           count(DISTINCT p.candidate_id) AS improved
    FROM candidates c LEFT JOIN judged j USING (run_id, task_id, candidate_id)
    LEFT JOIN promoted p USING (run_id, task_id, stage, candidate_id) GROUP BY ALL),
asked AS (
    SELECT run_id, task_id, stage, sum(input_tokens + output_tokens) AS tokens FROM llm_calls GROUP BY ALL),
ended AS (
    SELECT * FROM stages QUALIFY row_number() OVER (PARTITION BY run_id, task_id, stage ORDER BY seq DESC) = 1),
keys AS (
    SELECT run_id, task_id, stage FROM tried UNION SELECT run_id, task_id, stage FROM asked
    UNION SELECT run_id, task_id, stage FROM ended)
SELECT t.category, k.stage, coalesce(e.score_kind, t.score_kind) AS score_kind, count(*) AS plans,
       count(*) FILTER (e.outcome = 'skipped') AS skipped, coalesce(sum(a.attempts), 0)::BIGINT AS attempts,
       coalesce(sum(a.correct), 0)::BIGINT AS correct, coalesce(sum(a.improved), 0)::BIGINT AS improved,
       median(e.stage_gain) FILTER (e.outcome IS DISTINCT FROM 'audited') AS median_gain,
       coalesce(sum(q.tokens), 0)::BIGINT AS tokens
FROM keys k JOIN tasks t USING (run_id, task_id) LEFT JOIN tried a USING (run_id, task_id, stage)
LEFT JOIN asked q USING (run_id, task_id, stage) LEFT JOIN ended e USING (run_id, task_id, stage)
GROUP BY ALL ORDER BY t.category, k.stage, score_kind
"""

RULE_AUDIT = """
WITH own AS (
    SELECT run_id, task_id, candidate_id, arg_min(value, seq) AS speedup
    FROM ratios WHERE "over" = 'eager' GROUP BY ALL),
audits AS (
    SELECT s.run_id, s.task_id, s.stage, s.rule, s.score_kind, max(o.speedup) / s.speedup AS gain
    FROM stages s JOIN candidates c USING (run_id, task_id, stage) LEFT JOIN own o USING (run_id, task_id, candidate_id)
    WHERE s.outcome = 'audited' AND c.audit
    GROUP BY s.run_id, s.task_id, s.stage, s.rule, s.score_kind, s.speedup),
audited AS (
    SELECT t.category, a.stage, a.rule, count(*) AS audits,
           median(a.gain) FILTER (a.score_kind = 'measured') AS measured,
           median(a.gain) FILTER (a.score_kind = 'unverified') AS unverified,
           median(a.gain) FILTER (a.score_kind = 'estimated') AS estimated
    FROM audits a JOIN tasks t USING (run_id, task_id) GROUP BY ALL)
SELECT t.category, r.stage, r.kind, r.rule, count(*) AS evaluations, count(*) FILTER (r.outcome = 'true') AS "true",
       count(*) FILTER (r.outcome = 'false') AS "false", count(*) FILTER (r.outcome = 'unknown') AS "unknown",
       count(*) FILTER (r.fired) AS fired, count(*) FILTER (r.obeyed) AS obeyed,
       coalesce(any_value(a.audits), 0) AS audits, any_value(a.measured) AS audited_gain_measured,
       any_value(a.unverified) AS audited_gain_unverified, any_value(a.estimated) AS audited_gain_estimated
FROM rules r JOIN tasks t USING (run_id, task_id)
LEFT JOIN audited a ON a.category = t.category AND a.stage = r.stage AND a.rule = r.rule AND r.kind = 'skip'
GROUP BY t.category, r.stage, r.kind, r.rule ORDER BY t.category, r.stage, r.kind, r.rule
"""

HEADROOM = """
SELECT run_id, task_id, stage, candidate_id, score_kind, median_us, floor_us, median_us / floor_us AS headroom,
       below_floor
FROM timings WHERE who = 'candidate' AND floor_us > 0
QUALIFY row_number() OVER (PARTITION BY run_id, task_id, stage, candidate_id, score_kind ORDER BY seq DESC) = 1
ORDER BY run_id, task_id, headroom
"""

STATIC = {
    "runs": RUNS,
    "tasks": TASKS,
    "leaderboard": LEADERBOARD,
    "summary": SUMMARY,
    "cost": COST,
    "stage_yield": STAGE_YIELD,
    "rule_audit": RULE_AUDIT,
    "headroom": HEADROOM,
}
"""In an order in which each finds the ones it reads."""

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
    "gpu_s",
    "wall_s",
    "stages_run",
    "stages_skipped",
    "exits",
    "outcome",
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
        f"{identifier(f'threshold_{name}' if name in SWEEP_COLUMNS else name)},\n       "
        for name in thresholds
    )
    return f"""
WITH jobs AS (SELECT DISTINCT sweep_id, job, run_id, overrides FROM sweep_jobs),
asked AS (SELECT run_id, sum(input_tokens + output_tokens)::BIGINT AS tokens, sum(cost_usd) AS usd
          FROM llm_calls GROUP BY run_id),
-- Reading recordings and tracing references take no device.
held AS (SELECT run_id, sum(wall_s) AS gpu_s FROM steps WHERE kind NOT IN ('reply', 'facts') GROUP BY run_id),
went AS (SELECT run_id, count(*) FILTER (outcome <> 'skipped') AS stages_run,
                count(*) FILTER (outcome = 'skipped') AS stages_skipped, count(*) FILTER (outcome = 'exited') AS exits
         FROM (SELECT * FROM stages
               QUALIFY row_number() OVER (PARTITION BY run_id, task_id, stage ORDER BY seq DESC) = 1)
         GROUP BY run_id)
SELECT j.sweep_id, j.job, array_to_string(CAST(j.overrides AS VARCHAR[]), ' ') AS overrides,
       {columns}s.tasks, s.solved, s.geomean, s.score_kind, coalesce(a.tokens, 0) AS tokens, a.usd,
       CASE WHEN r.backend = 'cpu' THEN 0 ELSE coalesce(h.gpu_s, 0) END AS gpu_s, r.wall_s,
       coalesce(w.stages_run, 0) AS stages_run, coalesce(w.stages_skipped, 0) AS stages_skipped,
       coalesce(w.exits, 0) AS exits, r.outcome, j.run_id
FROM jobs j JOIN runs r USING (run_id) LEFT JOIN summary s USING (run_id) LEFT JOIN asked a USING (run_id)
LEFT JOIN held h USING (run_id) LEFT JOIN went w USING (run_id)
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
