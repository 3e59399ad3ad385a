"""Views of runs and tasks: what was asked, what came out, and who is best. Kinds of score never rank or average
together."""

from __future__ import annotations

RUNS = """
SELECT s.run_id, s.seq, s.t AS started, e.t AS ended, s.config_hash, s.version, s.backend,
       v.device ->> 'name' AS device, s.category, s.provider, s.model, s.thresholds,
       coalesce(e.outcome, 'unfinished') AS outcome, w.wall_s
FROM (SELECT * FROM run_starts QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY seq DESC) = 1) s
LEFT JOIN (SELECT run_id, max(seq) AS seq FROM task_starts GROUP BY run_id) b USING (run_id)
LEFT JOIN (SELECT * FROM run_ends QUALIFY row_number() OVER (PARTITION BY run_id ORDER BY seq DESC) = 1) e
       -- An end before the last start of a task is that of what the task was before it was edited.
       ON e.run_id = s.run_id AND e.seq > coalesce(b.seq, -1)
LEFT JOIN (SELECT run_id, sum(wall_s) AS wall_s FROM run_ends GROUP BY run_id) w ON w.run_id = s.run_id
LEFT JOIN (SELECT run_id, arg_max(device, seq) AS device FROM environment GROUP BY run_id) v ON v.run_id = s.run_id
"""

TASKS = """
SELECT s.run_id, s.seq, s.task_id, s.name, s.category, s.named, s.classified, s.task_hash, s.contract_origin,
       s.licence, s.facts, s.contract, coalesce(e.outcome, 'unfinished') AS outcome, e.why, e.best_id, e.speedup,
       e.speedup_lo, e.speedup_hi, e.speedup_fastest, e.fastest, e.headroom, e.score_kind, e.confirmed
FROM (SELECT * FROM task_starts QUALIFY row_number() OVER (PARTITION BY run_id, task_id ORDER BY seq DESC) = 1) s
LEFT JOIN (SELECT * FROM task_ends QUALIFY row_number() OVER (PARTITION BY run_id, task_id ORDER BY seq DESC) = 1) e
       -- An end before the last start is that of another text of the task.
       ON e.run_id = s.run_id AND e.task_id = s.task_id AND e.seq > s.seq
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

FAST_P = """
SELECT a.run_id, k.score_kind, p AS p, a.tasks, coalesce(k.above, 0) AS above, coalesce(k.above, 0) / a.tasks AS fast_p
FROM (SELECT run_id, count(*) AS tasks FROM tasks GROUP BY run_id) a
LEFT JOIN (SELECT run_id, score_kind, count(*) FILTER (speedup > p) AS above
           FROM tasks WHERE best_id IS NOT NULL GROUP BY ALL) k USING (run_id)
ORDER BY a.run_id, k.score_kind
"""
