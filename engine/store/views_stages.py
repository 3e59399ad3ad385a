"""Views of stages, rules and candidates: what each tried, found and cost."""

from __future__ import annotations

from engine.store.present import measured, present, taken

# Of a task that was edited since, earlier ends tell of another reference.
LAST_ENDS = """
SELECT e.* FROM stages e JOIN (SELECT run_id, task_id, max(seq) AS begun FROM task_starts GROUP BY ALL) s
     ON s.run_id = e.run_id AND s.task_id = e.task_id AND s.begun < e.seq
QUALIFY row_number() OVER (PARTITION BY e.run_id, e.task_id, e.stage ORDER BY e.seq DESC) = 1"""

REFUSED = """(
    SELECT run_id, task_id, candidate_id, arg_max(status, seq) AS status, arg_max_null(reason, seq) AS reason,
           arg_max_null(message, seq) AS message
    FROM confirmations GROUP BY ALL HAVING arg_max(outcome, seq) = 'refused')"""
"""Kernels that were refused as they were confirmed: not correct after all, and found nothing."""

# A kernel is refused with all that became the best after it: what stays of a gain is that of those before.
ENDS = f"""
WITH promoted AS (
    SELECT p.run_id, p.task_id, p.stage, arg_max_null(p.ratio, p.seq) AS ratio,
           any_value(r.status) IS NOT NULL AS refused
    FROM promotions p SEMI JOIN {REFUSED} USING (run_id, task_id)
    SEMI JOIN {taken("candidates")} USING (run_id, task_id, stage, candidate_id)
    LEFT JOIN {REFUSED} r USING (run_id, task_id, candidate_id)
    WHERE p.promoted GROUP BY p.run_id, p.task_id, p.stage, p.candidate_id),
kept AS (
    SELECT run_id, task_id, stage, coalesce(product(ratio) FILTER (NOT refused), 1.0) AS gain
    FROM promoted GROUP BY ALL HAVING bool_or(refused))
SELECT e.* REPLACE (CASE WHEN e.stage_gain IS NOT NULL THEN coalesce(k.gain, e.stage_gain) END AS stage_gain)
FROM ({LAST_ENDS}) e LEFT JOIN kept k USING (run_id, task_id, stage)"""
"""`LAST_ENDS` with the gain that is left where a kernel was refused."""


def timed(places: str | None = None) -> str:
    """A common table expression: each candidate's own kind of score and time, of all tasks or of those in `places`. A
    find may be of another kind than the best, and is then no gain over it."""
    return f"""timed AS (
    SELECT run_id, task_id, candidate_id, arg_min(score_kind, seq) AS score_kind, arg_min(median_us, seq) AS median_us
    FROM {measured("timings")} {_inside(places)} WHERE who = 'candidate' GROUP BY run_id, task_id, candidate_id)"""


def judged(places: str | None = None) -> str:
    """A common table expression: what holds of each candidate, of all tasks or of those in `places`: the last verdict,
    or that it was refused."""
    return f"""judged AS (
    SELECT v.run_id, v.task_id, v.candidate_id, coalesce(r.status, v.status) AS status,
           CASE WHEN r.status IS NULL THEN v.reason ELSE r.reason END AS reason,
           CASE WHEN r.status IS NULL THEN v.message ELSE r.message END AS message, r.status IS NOT NULL AS refused
    FROM (SELECT run_id, task_id, candidate_id, arg_max(status, seq) AS status, arg_max_null(reason, seq) AS reason,
                 arg_max_null(message, seq) AS message
          FROM verdicts {_inside(places)} GROUP BY run_id, task_id, candidate_id) v
    LEFT JOIN {REFUSED} r USING (run_id, task_id, candidate_id))"""


def _inside(places: str | None) -> str:
    return "" if places is None else f"SEMI JOIN {places} USING (run_id, task_id)"


# No reply, or a draft that nobody could judge or compare with the best, says nothing of what a stage would find.
TOLD = f"""told AS (
    SELECT e.run_id, e.task_id, e.stage
    FROM ended e JOIN {taken("candidates")} c USING (run_id, task_id, stage)
    JOIN judged v USING (run_id, task_id, candidate_id) LEFT JOIN timed m USING (run_id, task_id, candidate_id)
    WHERE v.status <> 'undecided' GROUP BY e.run_id, e.task_id, e.stage
    HAVING coalesce(bool_or(m.score_kind = e.score_kind), false) OR NOT bool_or(v.status = 'correct'))"""

# Beside a best kernel that was refused a find says nothing.
AUDITED = f"""audits AS (
    SELECT e.* FROM ended e SEMI JOIN told USING (run_id, task_id, stage)
    ANTI JOIN {REFUSED} r ON r.run_id = e.run_id AND r.task_id = e.task_id AND r.candidate_id = e.best_id
    WHERE outcome = 'audited'),
involved AS (
    SELECT run_id, task_id, candidate_id
    FROM {taken("candidates")} JOIN audits USING (run_id, task_id, stage) WHERE audit
    UNION SELECT run_id, task_id, best_id FROM audits),
scored AS (
    SELECT run_id, task_id, candidate_id, score_kind, arg_min(value, seq) AS value, arg_min(lo, seq) AS lo,
           arg_min(hi, seq) AS hi
    FROM {measured("ratios")} JOIN involved USING (run_id, task_id, candidate_id)
    JOIN timed USING (run_id, task_id, candidate_id)
    WHERE "over" = 'eager' GROUP BY ALL),
audited AS (
    SELECT a.run_id, a.task_id, a.stage, a.rule, a.score_kind, 'audited' AS evidence, a.best_id,
           coalesce(bool_or(c.lo > b.hi) FILTER (c.score_kind = a.score_kind), false) AS false_skip,
           coalesce(max(c.value / b.value) FILTER (c.score_kind = a.score_kind), 1.0) AS gain
    FROM audits a LEFT JOIN scored b ON b.run_id = a.run_id AND b.task_id = a.task_id AND b.candidate_id = a.best_id
    LEFT JOIN (SELECT run_id, task_id, stage, candidate_id FROM {taken("candidates")} WHERE audit) d
           ON d.run_id = a.run_id AND d.task_id = a.task_id AND d.stage = a.stage
    LEFT JOIN scored c ON c.run_id = d.run_id AND c.task_id = d.task_id AND c.candidate_id = d.candidate_id
    GROUP BY a.run_id, a.task_id, a.stage, a.rule, a.score_kind, a.best_id)"""


def marked(stages: str) -> str:
    """Common table expressions: a mark of what each stage of `stages` drafted; what a later run took from the memo has
    the same one: equal kernels with equal ratios."""
    return f"""drafted AS (
    SELECT DISTINCT c.run_id, c.task_id, c.stage, concat_ws(' ', c.candidate_id, r."over", r.value) AS draft
    FROM {taken("candidates")} c SEMI JOIN {stages} USING (run_id, task_id, stage)
    LEFT JOIN {measured("ratios")} r USING (run_id, task_id, stage, candidate_id)),
marked AS (
    SELECT run_id, task_id, stage, md5(string_agg(draft, ',' ORDER BY draft)) AS mark
    FROM drafted GROUP BY run_id, task_id, stage)"""


STAGE_YIELD = f"""
WITH {timed()}, {judged()},
ended AS ({ENDS}),
{TOLD},
promoted AS (
    SELECT DISTINCT run_id, task_id, stage, candidate_id
    FROM promotions ANTI JOIN {REFUSED} USING (run_id, task_id, candidate_id) WHERE promoted),
tried AS (
    SELECT c.run_id, c.task_id, c.stage, count(*) AS attempts, count(*) FILTER (j.status = 'correct') AS correct,
           count(DISTINCT p.candidate_id) AS improved
    FROM {taken("candidates")} c LEFT JOIN judged j USING (run_id, task_id, candidate_id)
    LEFT JOIN promoted p USING (run_id, task_id, stage, candidate_id) GROUP BY ALL),
spent AS (
    SELECT run_id, task_id, stage, tokens, seconds, gpu_s FROM stage_cost WHERE stage IS NOT NULL),
keys AS (
    SELECT run_id, task_id, stage FROM tried UNION SELECT run_id, task_id, stage FROM spent
    UNION SELECT run_id, task_id, stage FROM ended)
SELECT t.category, k.stage, coalesce(e.score_kind, t.score_kind) AS score_kind, count(*) AS plans,
       count(*) FILTER (e.outcome = 'skipped') AS skipped, coalesce(sum(a.attempts), 0)::BIGINT AS attempts,
       coalesce(sum(a.correct), 0)::BIGINT AS correct, coalesce(sum(a.improved), 0)::BIGINT AS improved,
       median(e.stage_gain) FILTER (e.outcome <> 'audited' AND w.stage IS NOT NULL) AS median_gain,
       coalesce(sum(q.tokens), 0)::BIGINT AS tokens, coalesce(sum(q.seconds), 0) AS seconds,
       coalesce(sum(q.gpu_s), 0) AS gpu_s
FROM keys k JOIN tasks t USING (run_id, task_id) LEFT JOIN tried a USING (run_id, task_id, stage)
LEFT JOIN spent q USING (run_id, task_id, stage) LEFT JOIN ended e USING (run_id, task_id, stage)
LEFT JOIN told w USING (run_id, task_id, stage)
GROUP BY ALL ORDER BY t.category, k.stage, score_kind
"""

HEADROOM = """
SELECT run_id, task_id, stage, candidate_id, score_kind, median_us, floor_us, median_us / floor_us AS headroom,
       below_floor
FROM timings WHERE who = 'candidate' AND floor_us > 0
QUALIFY row_number() OVER (PARTITION BY run_id, task_id, stage, candidate_id, score_kind ORDER BY seq DESC) = 1
ORDER BY run_id, task_id, headroom
"""


def false_skips(which: str) -> str:
    """Of the rules with which `which`, a condition on `obeyed`, agrees: those that were audited, or observed."""
    return f"""
WITH fired AS (
    SELECT run_id, task_id, stage, rule, bool_or(obeyed) AS obeyed FROM {present("rules")}
    WHERE kind = 'skip' AND fired AND {which} GROUP BY run_id, task_id, stage, rule),
ended AS (
    SELECT run_id, task_id, stage, outcome, rule, best_id, score_kind, stage_gain
    FROM ({ENDS}) SEMI JOIN fired USING (run_id, task_id, stage) WHERE outcome <> 'skipped'),
places AS (SELECT DISTINCT run_id, task_id FROM ended),
{timed("places")}, {judged("places")}, {TOLD}, {AUDITED},
observed AS (
    SELECT e.run_id, e.task_id, e.stage, r.rule, e.score_kind, 'observed' AS evidence, e.best_id,
           e.stage_gain > 1 AS false_skip, e.stage_gain AS gain
    FROM fired r JOIN ended e USING (run_id, task_id, stage) SEMI JOIN told USING (run_id, task_id, stage)
    WHERE NOT r.obeyed AND e.outcome IN ('done', 'exited') AND e.stage_gain IS NOT NULL),
ran AS (FROM audited UNION ALL FROM observed),
{marked("ran")},
found AS (
    -- The same finding of several runs is not another one.
    SELECT DISTINCT t.category, f.* EXCLUDE (run_id), m.mark, t.task_hash, u.device
    FROM ran f JOIN tasks t USING (run_id, task_id) JOIN runs u USING (run_id)
    LEFT JOIN marked m USING (run_id, task_id, stage))
SELECT category, stage, rule, score_kind, evidence, count(*) AS skips, count(*) FILTER (false_skip) AS false_skips,
       false_skips / skips AS rate, wilson_lower(false_skips, skips) AS rate_lo,
       wilson_upper(false_skips, skips) AS rate_hi, median(gain) AS median_gain, max(gain) AS max_gain
FROM found GROUP BY category, stage, rule, score_kind, evidence
ORDER BY category, stage, rule, score_kind, evidence
"""


FALSE_SKIPS = false_skips("true")

RULE_AUDIT = f"""
WITH audited AS (
    SELECT category, stage, rule, sum(skips)::BIGINT AS audits,
           any_value(median_gain) FILTER (score_kind = 'measured') AS measured,
           any_value(median_gain) FILTER (score_kind = 'unverified') AS unverified,
           any_value(median_gain) FILTER (score_kind = 'estimated') AS estimated
    FROM ({false_skips("obeyed")}) GROUP BY category, stage, rule)
SELECT t.category, r.stage, r.kind, r.rule, count(*) AS evaluations, count(*) FILTER (r.outcome = 'true') AS "true",
       count(*) FILTER (r.outcome = 'false') AS "false", count(*) FILTER (r.outcome = 'unknown') AS "unknown",
       count(*) FILTER (r.fired) AS fired, count(*) FILTER (r.obeyed) AS obeyed,
       coalesce(any_value(a.audits), 0) AS audits, any_value(a.measured) AS audited_gain_measured,
       any_value(a.unverified) AS audited_gain_unverified, any_value(a.estimated) AS audited_gain_estimated
FROM {present("rules")} r JOIN tasks t USING (run_id, task_id)
LEFT JOIN audited a ON a.category = t.category AND a.stage = r.stage AND a.rule = r.rule AND r.kind = 'skip'
GROUP BY t.category, r.stage, r.kind, r.rule ORDER BY t.category, r.stage, r.kind, r.rule
"""

FAILURES = f"""
WITH {judged()},
failed AS (
    SELECT c.run_id, c.task_id, c.category, c.stage, c.role, v.status AS kind, coalesce(v.reason, v.status) AS reason,
           v.message
    FROM judged v JOIN candidates c USING (run_id, task_id, candidate_id) WHERE v.status <> 'correct'),
unusable AS (
    SELECT p.run_id, p.task_id, t.category, p.stage, p.role, p.kind, coalesce(p.problem, p.failure) AS reason, p.message
    FROM llm_problems p JOIN tasks t USING (run_id, task_id) WHERE p.kind IN ('reply_unusable', 'llm_failed'))
SELECT kind, reason, category, stage, role, count(*) AS n, count(DISTINCT task_id) AS tasks,
       count(DISTINCT run_id) AS runs, min(message) AS example
FROM (FROM failed UNION ALL FROM unusable) GROUP BY kind, reason, category, stage, role
ORDER BY n DESC, kind, reason, category, stage, role
"""

HISTORY = f"""
WITH {judged()},
scored AS (
    SELECT run_id, task_id, candidate_id, arg_min(value, seq) AS speedup, arg_min(lo, seq) AS speedup_lo,
           arg_min(hi, seq) AS speedup_hi
    FROM {measured("ratios")} WHERE "over" = 'eager' GROUP BY run_id, task_id, candidate_id),
{timed()},
decided AS (
    SELECT run_id, task_id, stage, candidate_id, arg_max(promoted, seq) AS promoted, arg_max(why, seq) AS why
    FROM promotions GROUP BY run_id, task_id, stage, candidate_id),
drafted AS (
    SELECT c.*, s.task_hash FROM candidates c
    ASOF LEFT JOIN task_starts s ON s.run_id = c.run_id AND s.task_id = c.task_id AND s.seq <= c.seq)
SELECT c.task_id, c.run_id, c.seq, c.t, c.category, c.stage, c.role, c.sample, c.attempt, c.audit, c.candidate_id,
       c.parent_id, j.status, j.reason, m.score_kind, m.median_us, s.speedup, s.speedup_lo, s.speedup_hi,
       coalesce(d.promoted AND NOT j.refused, false) AS promoted, d.why,
       last_value(CASE WHEN d.promoted AND NOT j.refused THEN s.speedup END IGNORE NULLS) OVER (
           PARTITION BY c.run_id, c.task_id, c.task_hash ORDER BY c.seq ROWS UNBOUNDED PRECEDING) AS best_so_far,
       c.task_hash
FROM drafted c LEFT JOIN judged j USING (run_id, task_id, candidate_id)
LEFT JOIN scored s USING (run_id, task_id, candidate_id) LEFT JOIN timed m USING (run_id, task_id, candidate_id)
LEFT JOIN decided d USING (run_id, task_id, stage, candidate_id)
ORDER BY c.task_id, c.run_id, c.seq
"""
