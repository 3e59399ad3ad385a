-- Questions to results/results.duckdb, each under its title:
--     python -m engine.results sql "FROM leaderboard WHERE rank = 1"
-- Kinds of score are kept apart everywhere; keep score_kind in your own queries. docs/schema.md has every column.

-- The best kernel of each task
SELECT task_id, score_kind, device, speedup, speedup_fastest, headroom, precision_class, confirmed, run_id, best_id
FROM leaderboard WHERE rank = 1
ORDER BY score_kind, speedup DESC;

-- Runs side by side
SELECT r.run_id, r.model, r.device, s.score_kind, s.tasks, s.solved, round(s.geomean, 3) AS geomean, s.fast_1, s.fast_2
FROM summary s JOIN runs r USING (run_id)
ORDER BY s.score_kind, s.geomean DESC NULLS LAST;

-- What a sweep over a threshold changed; the thresholds of your own sweep are columns
SELECT * EXCLUDE (run_id) FROM sweep ORDER BY sweep_id, job;

-- The cheapest job of each sweep: of those that solve most tasks, within two per cent of the best geometric mean, the one
-- with the fewest tokens
WITH most AS (FROM sweep QUALIFY solved = max(solved) OVER (PARTITION BY sweep_id, score_kind)),
     near AS (FROM most QUALIFY geomean >= 0.98 * max(geomean) OVER (PARTITION BY sweep_id, score_kind))
SELECT sweep_id, job, overrides, score_kind, solved, geomean, tokens, usd
FROM near
QUALIFY row_number() OVER (PARTITION BY sweep_id, score_kind ORDER BY tokens, job) = 1
ORDER BY sweep_id, score_kind;

-- Share of tasks at least 1.2 times as fast as eager, at other factors, too
SELECT p, run_id, score_kind, above, tasks, round(fast_p, 3) AS fast_p
FROM (FROM fast_p(1.0) UNION ALL FROM fast_p(1.2) UNION ALL FROM fast_p(2.0))
ORDER BY run_id, score_kind, p;

-- Which stages are worth their tokens
SELECT *, round(tokens / nullif(improved, 0)) AS tokens_per_improvement
FROM stage_yield
ORDER BY score_kind, tokens_per_improvement DESC NULLS FIRST;

-- What a stage took, of a run: model, judge, clock and profiler; no stage: baselines and confirmations
SELECT run_id, stage, sum(calls) AS calls, sum(tokens) AS tokens, sum(usd) AS usd, round(sum(model_s), 1) AS model_s,
       round(sum(judge_s), 1) AS judge_s, round(sum(timing_s), 1) AS timing_s, round(sum(profile_s), 1) AS profile_s,
       round(sum(tune_s), 1) AS tune_s, round(sum(gpu_s), 1) AS gpu_s
FROM stage_cost GROUP BY run_id, stage
ORDER BY gpu_s DESC, tokens DESC;

-- Which of a run's judge, clock and profiler steps it paid for itself, by stage; the rest came from the memo
SELECT u.run_id, u.stage, u.step_kind, count(*) AS steps, round(sum(u.wall_s), 1) AS seconds, count(s.key) AS paid,
       round(coalesce(sum(s.wall_s), 0), 1) AS paid_s
FROM step_uses u LEFT JOIN steps s ON s.run_id = u.run_id AND s.kind = u.step_kind AND s.key = u.step
GROUP BY u.run_id, u.stage, u.step_kind
ORDER BY u.run_id, seconds DESC;

-- How often a skip rule is wrong, with the interval of the rate
SELECT category, stage, rule, score_kind, evidence, false_skips, skips, round(rate, 2) AS rate,
       round(rate_lo, 2) AS lo, round(rate_hi, 2) AS hi, round(median_gain, 2) AS median_gain
FROM false_skips
ORDER BY rate_lo DESC;

-- What skipping cost; a gain above 1: the skipped stage would have found a kernel that much faster
SELECT category, stage, rule, obeyed, audits, audited_gain_measured, audited_gain_estimated
FROM rule_audit WHERE kind = 'skip'
ORDER BY audited_gain_measured DESC NULLS LAST;

-- Rules that never decide anything
SELECT category, stage, kind, rule, evaluations, "unknown"
FROM rule_audit WHERE fired = 0
ORDER BY evaluations DESC;

-- Operands that rules lack
SELECT r.rule, m.operand, count(*) AS evaluations
FROM rules r, unnest(CAST(r.missing AS VARCHAR[])) AS m (operand)
GROUP BY ALL ORDER BY evaluations DESC;

-- Why candidates fail
SELECT role, kind, reason, sum(n) AS failures, any_value(example) AS example
FROM failures GROUP BY role, kind, reason
ORDER BY failures DESC;

-- Whether repairs help: verdicts by the number of the attempt
SELECT attempt, count(*) AS candidates, count(*) FILTER (status = 'correct') AS correct,
       round(correct / candidates, 2) AS share
FROM history GROUP BY attempt ORDER BY attempt;

-- Where the money went; replies from the memo count in usd as if they were asked again, paid_usd is what was paid
SELECT c.run_id, sum(c.calls) AS calls, sum(c.tokens) AS tokens, sum(c.usd) AS usd, any_value(p.paid) AS paid_usd
FROM cost c LEFT JOIN (SELECT run_id, sum(cost_usd) AS paid FROM steps GROUP BY run_id) p USING (run_id)
GROUP BY c.run_id
ORDER BY usd DESC NULLS LAST;

-- What the memo saved each run: seconds of the judge, clock and profiler steps that it needed, and of those it paid for
WITH needed AS (SELECT DISTINCT run_id, step_kind, step, wall_s FROM step_uses),
made AS (SELECT DISTINCT run_id, kind, key FROM steps)
SELECT n.run_id, count(*) AS steps, round(sum(n.wall_s), 1) AS seconds, count(m.key) AS paid,
       round(coalesce(sum(n.wall_s) FILTER (m.key IS NOT NULL), 0), 1) AS paid_s,
       round(coalesce(sum(n.wall_s) FILTER (m.key IS NULL), 0), 1) AS saved_s
FROM needed n LEFT JOIN made m ON m.run_id = n.run_id AND m.kind = n.step_kind AND m.key = n.step
GROUP BY n.run_id ORDER BY n.run_id;

-- How models answer: tokens, latency, unusable replies
SELECT model, role, sum(u.calls) AS calls, sum(u.output_tokens) AS output_tokens, sum(u.usd) AS usd,
       round(max(u.max_latency_s), 1) AS longest_s, sum(u.unusable) AS unusable, sum(u.failed) AS failed
FROM llm_usage u
GROUP BY model, role ORDER BY calls DESC;

-- Candidates of one task in order, with the best so far
SELECT run_id, seq, stage, role, candidate_id, audit, status, reason, speedup, speedup_lo, speedup_hi, best_so_far
FROM history WHERE task_id = (SELECT min(task_id) FROM tasks)
ORDER BY run_id, seq;

-- Tasks that no run has solved
SELECT task_id, any_value(category) AS category, count(*) AS runs, sum(calls) AS calls
FROM tasks LEFT JOIN (SELECT run_id, task_id, sum(calls) AS calls FROM cost GROUP BY ALL) USING (run_id, task_id)
GROUP BY task_id HAVING count(best_id) = 0
ORDER BY calls DESC;

-- Profiles beside the speed-up they belong to
SELECT t.category, m.* EXCLUDE (run_id), l.speedup, l.score_kind
FROM metric_wide m
JOIN tasks t USING (run_id, task_id)
LEFT JOIN leaderboard l ON l.run_id = m.run_id AND l.task_id = m.task_id AND l.best_id = m.candidate_id
ORDER BY t.category, m.task_id, m.stage;

-- How far kernels are from the floor, and what lies below it
SELECT task_id, stage, score_kind, candidate_id, median_us, floor_us, round(headroom, 3) AS headroom, below_floor
FROM headroom WHERE score_kind <> 'estimated'
ORDER BY headroom;

-- Profiled values that other evidence contradicts
SELECT run_id, task_id, stage, candidate_id, metric, value, unit, source, contradiction
FROM metrics WHERE contradiction <> ''
ORDER BY run_id, seq;
