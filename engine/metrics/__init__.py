"""`python -m engine.metrics`: the vocabulary of metrics, whether its names exist, and what is known of one kernel."""
