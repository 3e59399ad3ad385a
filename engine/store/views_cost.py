"""Views of what was spent. A reply or step that came from the memo counts as if it were made anew; `steps` has what was
paid."""

from __future__ import annotations

from engine.store.present import present, taken

COST = """
SELECT run_id, task_id, role, count(*) AS calls, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
       sum(input_tokens + output_tokens) AS tokens, sum(cost_usd) AS usd,
       count(*) FILTER (cost_usd IS NULL) AS unpriced, sum(latency_s) AS latency_s
FROM llm_calls GROUP BY run_id, task_id, role ORDER BY run_id, task_id, role
"""

# Seconds of verdicts and confirmations are in their own events, which older journals have as well. A source that was
# drafted in two stages was judged once: both events have the seconds of the one step.
STAGE_COST = f"""
WITH judged AS (
    SELECT run_id, task_id, arg_min(stage, seq) AS stage, wall_s AS judge_s, gpu_s AS judge_gpu_s
    FROM {present("verdicts")} GROUP BY run_id, task_id, candidate_id, wall_s, gpu_s),
parts AS (
    SELECT run_id, task_id, stage, 1 AS calls, input_tokens + output_tokens AS tokens, cost_usd AS usd,
           (cost_usd IS NULL)::INTEGER AS unpriced, latency_s AS model_s FROM {taken("llm_calls")}
    UNION ALL BY NAME FROM judged
    UNION ALL BY NAME
    SELECT run_id, task_id, stage, wall_s AS judge_s, gpu_s AS judge_gpu_s FROM {present("confirmations")}
    UNION ALL BY NAME
    SELECT run_id, task_id, stage,
           CASE WHEN step_kind IN ('baseline', 'timing', 'promotion') THEN wall_s END AS timing_s,
           CASE WHEN step_kind = 'profile' THEN wall_s END AS profile_s,
           CASE WHEN step_kind = 'tune' THEN wall_s END AS tune_s FROM {present("step_uses")}),
summed AS (
    SELECT run_id, task_id, stage, coalesce(sum(calls), 0)::BIGINT AS calls, coalesce(sum(tokens), 0)::BIGINT AS tokens,
           sum(usd) AS usd, coalesce(sum(unpriced), 0)::BIGINT AS unpriced, coalesce(sum(model_s), 0) AS model_s,
           coalesce(sum(judge_s), 0) AS judge_s, coalesce(sum(timing_s), 0) AS timing_s,
           coalesce(sum(profile_s), 0) AS profile_s, coalesce(sum(tune_s), 0) AS tune_s,
           coalesce(sum(judge_gpu_s), 0) AS judge_gpu_s
    FROM parts GROUP BY run_id, task_id, stage),
noted AS (SELECT run_id, task_id, true AS steps FROM step_uses GROUP BY run_id, task_id),
held AS (SELECT run_id, arg_max(backend, seq) AS backend FROM run_starts GROUP BY run_id)
SELECT run_id, task_id, stage, calls, tokens, usd, unpriced, model_s, judge_s,
       CASE WHEN steps THEN timing_s END AS timing_s, CASE WHEN steps THEN profile_s END AS profile_s,
       CASE WHEN steps THEN tune_s END AS tune_s, model_s + judge_s + s.timing_s + s.profile_s + s.tune_s AS seconds,
       judge_gpu_s, judge_gpu_s + CASE WHEN backend = 'cpu' THEN 0 ELSE s.timing_s + s.profile_s + s.tune_s END AS gpu_s
FROM summed s LEFT JOIN noted USING (run_id, task_id) LEFT JOIN held USING (run_id)
ORDER BY run_id, task_id, stage
"""

LLM_USAGE = """
WITH called AS (
    SELECT run_id, provider, model, role, count(*) AS calls, sum(attempts - 1)::BIGINT AS retries,
           count(*) FILTER (finish = 'length') AS cut_off, sum(input_tokens)::BIGINT AS input_tokens,
           sum(output_tokens)::BIGINT AS output_tokens, sum(cached_tokens)::BIGINT AS cached_tokens,
           sum(reasoning_tokens)::BIGINT AS reasoning_tokens, sum(cost_usd) AS usd,
           count(*) FILTER (cost_usd IS NULL) AS unpriced, median(latency_s) AS median_latency_s,
           max(latency_s) AS max_latency_s
    FROM llm_calls GROUP BY ALL),
trouble AS (
    SELECT run_id, role, count(*) FILTER (kind = 'reply_unusable') AS unusable,
           count(*) FILTER (kind = 'llm_failed') AS failed
    FROM llm_problems WHERE kind IN ('reply_unusable', 'llm_failed') GROUP BY ALL)
SELECT run_id, coalesce(c.provider, r.provider) AS provider, coalesce(c.model, r.model) AS model, role,
       coalesce(c.calls, 0) AS calls, c.* EXCLUDE (run_id, provider, model, role, calls),
       -- A problem names no model: where several models of a run have the role it stands beside the first.
       CASE WHEN row_number() OVER first = 1 THEN coalesce(t.unusable, 0) ELSE 0 END AS unusable,
       CASE WHEN row_number() OVER first = 1 THEN coalesce(t.failed, 0) ELSE 0 END AS failed
FROM called c FULL JOIN trouble t USING (run_id, role) JOIN runs r USING (run_id)
WINDOW first AS (PARTITION BY run_id, role ORDER BY c.calls DESC, c.model)
ORDER BY run_id, model, role
"""
