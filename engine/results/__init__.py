"""`python -m engine.results`: ingest, sql and export."""
