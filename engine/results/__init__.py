"""`python -m engine.results`: ingest, sql, what-if, comparison, export and schema."""
