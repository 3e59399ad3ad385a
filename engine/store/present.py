"""Which rows of a run hold. A task's file may have been edited since, and the events then tell of each text in turn; a
reply may have been asked for again, with another prompt, or a kernel timed again on another device, when the run went
on.

All of it is rare: the rows that hold no more are found once, as the database is filled, for views to leave out.
"""

from __future__ import annotations

_SLOT = "run_id, task_id, stage, role, attempt, sample"
_ASKED = ("llm_calls", "candidates")
"""Tables with rows of slots of the plan."""
_TIMED = {"timings": "who", "ratios": "over"}
"""Tables with times of candidates, and the column that names what was timed."""

DDL = (
    "CREATE TABLE _stale (run_id VARCHAR, task_id VARCHAR, since BIGINT, until BIGINT)",
    "CREATE TABLE _replaced (run_id VARCHAR, seq BIGINT)",
)


def present(table: str) -> str:
    """The rows of `table` that do not tell of an earlier text of their task."""
    return f"""(SELECT e.* FROM {table} e
    ANTI JOIN _stale s ON s.run_id = e.run_id AND s.task_id = e.task_id AND s.since <= e.seq AND e.seq < s.until)"""


def taken(table: str) -> str:
    """Of these, for each slot of the plan, the last: a reply that was asked for again takes the place of the first."""
    assert table in _ASKED
    return f"(SELECT e.* FROM {present(table)} e ANTI JOIN _replaced USING (run_id, seq))"


def measured(table: str) -> str:
    """The rows of `table`, of all texts; of a kernel that the run timed on several devices those of the last one. The
    first of them is the kernel's own measurement."""
    assert table in _TIMED
    return f"(SELECT e.* FROM {table} e ANTI JOIN _replaced USING (run_id, seq))"


def _replaced(table: str) -> str:
    return f"""
WITH told AS (FROM {present(table)}),
again AS (SELECT {_SLOT}, max(seq) AS seq FROM told GROUP BY ALL HAVING count(*) > 1)
SELECT t.run_id, t.seq FROM told t JOIN again a
    ON a.run_id = t.run_id AND a.task_id = t.task_id AND a.stage IS NOT DISTINCT FROM t.stage AND a.role = t.role
       AND a.attempt = t.attempt AND a.sample = t.sample AND a.seq > t.seq"""


def _timed_elsewhere(table: str, what: str) -> str:
    return f"""
WITH devices AS (
    SELECT run_id, seq, lead(seq) OVER starts AS until, device::VARCHAR AS device,
           first_value(device::VARCHAR) OVER later AS present
    FROM environment WINDOW starts AS (PARTITION BY run_id ORDER BY seq),
                            later AS (PARTITION BY run_id ORDER BY seq DESC)),
elsewhere AS (SELECT run_id, seq AS since, until FROM devices WHERE device IS DISTINCT FROM present),
told AS (
    SELECT e.run_id, e.task_id, e.candidate_id, e."{what}" AS what, e.seq, s.run_id IS NOT NULL AS earlier
    FROM {table} e SEMI JOIN elsewhere USING (run_id)
    LEFT JOIN elsewhere s ON s.run_id = e.run_id AND s.since <= e.seq AND e.seq < s.until)
SELECT run_id, seq
FROM told SEMI JOIN (FROM told WHERE NOT earlier) USING (run_id, task_id, candidate_id, what) WHERE earlier"""


# The last start is that of the present text: what is stale ends with the start of another one.
_STALE = """
SELECT run_id, task_id, seq, until
FROM (SELECT *, lead(seq) OVER starts AS until, first_value(task_hash) OVER later AS present
      FROM task_starts WINDOW starts AS (PARTITION BY run_id, task_id ORDER BY seq),
                              later AS (PARTITION BY run_id, task_id ORDER BY seq DESC))
WHERE task_hash IS DISTINCT FROM present"""

FILL = (
    "DELETE FROM _stale",
    f"INSERT INTO _stale {_STALE}",
    "DELETE FROM _replaced",
    *(f"INSERT INTO _replaced {_replaced(table)}" for table in _ASKED),
    *(f"INSERT INTO _replaced {_timed_elsewhere(table, what)}" for table, what in _TIMED.items()),
)
"""Statements that find them anew."""
