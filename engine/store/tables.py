"""Tables of the database: which events fill them, and the type of each column."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """`field`: the event's field, where it has another name than the column."""

    name: str
    type: str
    field: str


@dataclass(frozen=True, slots=True)
class Table:
    """One row per event of `kinds`; a field that one of the kinds does not have is NULL."""

    name: str
    kinds: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def ddl(self) -> str:
        columns = ", ".join(f'"{column.name}" {column.type}' for column in self.columns)
        return f"CREATE TABLE {self.name} ({columns})"


_TYPES = {"t": "VARCHAR", "i": "BIGINT", "f": "DOUBLE", "b": "BOOLEAN", "j": "JSON"}
_ENVELOPE = "run_id:t seq:i t:f task_id:t stage:t"


def _table(name: str, kinds: str, columns: str) -> Table:
    """`columns`: words of the form name:type or name:type:field."""
    found = []
    for word in f"{_ENVELOPE} {columns}".split():
        column, letter, *field = word.split(":")
        found.append(Column(column, _TYPES[letter], field[0] if field else column))
    return Table(name, tuple(kinds.split()), tuple(found))


TABLES = (
    _table(
        "run_starts",
        "run_started",
        "config_hash:t version:t backend:t category:t provider:t model:t thresholds:j",
    ),
    _table("run_ends", "run_ended", "outcome:t tasks:i failed:j wall_s:f"),
    _table("sweep_jobs", "sweep_job", "sweep_id:t job:i overrides:j"),
    _table("labels", "label", "label:t"),
    _table("environment", "environment", "device:j facts:j"),
    _table(
        "task_starts",
        "task_started",
        "name:t category:t named:t classified:t facts:j contract:j contract_origin:t task_hash:t licence:t",
    ),
    _table("classifications", "classification", "evaluations:j"),
    _table("baselines", "baseline", "who:t score_kind:t median_us:f lo_us:f hi_us:f n:i floor_us:f"),
    _table("stage_starts", "stage_started", "category:t parent_id:t audit:b"),
    _table(
        "rules",
        "rule",
        "rule:t kind:t:rule_kind expression:t:when outcome:t fired:b obeyed:b operands:j missing:j why:t "
        "candidate_id:t",
    ),
    _table(
        "llm_calls",
        "llm_call",
        "category:t role:t attempt:i sample:i request_hash:t model:t provider:t answered_by:t finish:t input_tokens:i "
        "output_tokens:i cached_tokens:i reasoning_tokens:i cost_usd:f latency_s:f attempts:i",
    ),
    _table(
        "llm_problems",
        "llm_failed reply_unusable advice_unreadable prompt_drift",
        "kind:t role:t attempt:i sample:i failure:t problem:t message:t slot:t difference:t",
    ),
    _table("step_uses", "step", "step_kind:t step:t wall_s:f"),
    _table(
        "candidates",
        "candidate",
        "candidate_id:t parent_id:t role:t proposer:t audit:b category:t sample:i attempt:i source_hash:t",
    ),
    _table(
        "verdicts",
        "verdict",
        "candidate_id:t status:t reason:t mode:t precision_class:t error_ratio:f variant:t suite:t launches:i "
        "host_ops:j message:t seed:i wall_s:f gpu_s:f stages:j",
    ),
    _table(
        "timings",
        "timing",
        "candidate_id:t who:t score_kind:t median_us:f lo_us:f hi_us:f n:i floor_us:f below_floor:b",
    ),
    _table("ratios", "ratio", "candidate_id:t over:t value:f lo:f hi:f n:i"),
    _table("metrics", "metric", "candidate_id:t metric:t value:f unit:t source:t confidence:f note:t contradiction:t"),
    _table("promotions", "promotion", "candidate_id:t incumbent_id:t promoted:b why:t ratio:f"),
    _table(
        "stages",
        "stage_ended",
        "category:t outcome:t why:t rule:t best_id:t speedup:f score_kind:t stage_gain:f failures:i candidates:i",
    ),
    _table(
        "confirmations",
        "confirmation",
        "candidate_id:t outcome:t status:t reason:t mode:t message:t error_ratio:f variant:t suite:t variants:j "
        "drops:j sanitizers:j ratios:j chosen:i remarks:j seed:i wall_s:f gpu_s:f",
    ),
    _table(
        "task_ends",
        "task_ended",
        "category:t outcome:t why:t best_id:t speedup:f speedup_lo:f speedup_hi:f speedup_fastest:f fastest:t "
        "headroom:f score_kind:t confirmed:b",
    ),
    _table("interruptions", "task_failed job_failed waiting", "kind:t error:t message:t where:t"),
)
"""Every kind of event has its table; `runs` and `tasks` are views over two of them each."""

STEPS = Table(
    "steps",
    (),
    tuple(
        Column(name, kind, name)
        for name, kind in (
            ("run_id", "VARCHAR"),
            ("seq", "BIGINT"),
            ("t", "DOUBLE"),
            ("kind", "VARCHAR"),
            ("key", "VARCHAR"),
            ("wall_s", "DOUBLE"),
            ("gpu_s", "DOUBLE"),
            ("cost_usd", "DOUBLE"),
            ("cost", "JSON"),
        )
    ),
)
"""The steps' ledger: what each run really paid. `seq` is the line."""
