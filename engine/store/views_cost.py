"""Views of what was spent. A reply, verdict or confirmation that came from the memo counts as if it were made anew;
`steps` has what was paid."""

from __future__ import annotations

COST = """
SELECT run_id, task_id, role, count(*) AS calls, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
       sum(input_tokens + output_tokens) AS tokens, sum(cost_usd) AS usd,
       count(*) FILTER (cost_usd IS NULL) AS unpriced, sum(latency_s) AS latency_s
FROM llm_calls GROUP BY run_id, task_id, role ORDER BY run_id, task_id, role
"""

STAGE_COST = """
SELECT run_id, task_id, stage, sum(calls)::BIGINT AS calls, sum(tokens)::BIGINT AS tokens, sum(usd) AS usd,
       sum(unpriced)::BIGINT AS unpriced, coalesce(sum(model_s), 0) AS model_s,
       coalesce(sum(judge_s), 0) AS judge_s, coalesce(sum(gpu_s), 0) AS gpu_s
FROM (
    SELECT run_id, task_id, stage, 1 AS calls, input_tokens + output_tokens AS tokens, cost_usd AS usd,
           (cost_usd IS NULL)::INTEGER AS unpriced, latency_s AS model_s, NULL::DOUBLE AS judge_s,
           NULL::DOUBLE AS gpu_s FROM llm_calls
    UNION ALL SELECT run_id, task_id, stage, 0, 0, NULL, 0, NULL, wall_s, gpu_s FROM verdicts
    UNION ALL SELECT run_id, task_id, stage, 0, 0, NULL, 0, NULL, wall_s, gpu_s FROM confirmations)
GROUP BY run_id, task_id, stage ORDER BY run_id, task_id, stage
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
           count(*) FILTER (kind = 'llm_failed') AS failed FROM llm_problems GROUP BY ALL)
SELECT run_id, coalesce(c.provider, r.provider) AS provider, coalesce(c.model, r.model) AS model, role,
       coalesce(c.calls, 0) AS calls, c.* EXCLUDE (run_id, provider, model, role, calls),
       -- A problem names no model: where several models of a run have the role it stands beside the first.
       CASE WHEN row_number() OVER first = 1 THEN coalesce(t.unusable, 0) ELSE 0 END AS unusable,
       CASE WHEN row_number() OVER first = 1 THEN coalesce(t.failed, 0) ELSE 0 END AS failed
FROM called c FULL JOIN trouble t USING (run_id, role) JOIN runs r USING (run_id)
WINDOW first AS (PARTITION BY run_id, role ORDER BY c.calls DESC, c.model)
ORDER BY run_id, model, role
"""
