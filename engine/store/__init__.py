"""Derived stores: DuckDB tables and views built from journals."""

from __future__ import annotations

from engine.store.ingest import DuckDbStore, Ingested, ingest
from engine.store.query import Answer, QueryError, export, query, what_if

__all__ = ["Answer", "DuckDbStore", "Ingested", "QueryError", "export", "ingest", "query", "what_if"]
