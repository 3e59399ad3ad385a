"""Derived stores: DuckDB tables and views built from journals."""

from __future__ import annotations

from engine.store.compare import Comparison, compare
from engine.store.ingest import DuckDbStore, Ingested, ingest
from engine.store.moments import Scope
from engine.store.plans import Replay
from engine.store.query import FORMS, Answer, QueryError, export, query
from engine.store.training import export_training
from engine.store.whatif import replay, what_if

__all__ = [
    "FORMS",
    "Answer",
    "Comparison",
    "DuckDbStore",
    "Ingested",
    "QueryError",
    "Replay",
    "Scope",
    "compare",
    "export",
    "export_training",
    "ingest",
    "query",
    "replay",
    "what_if",
]
