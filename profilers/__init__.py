"""Profilers: one file each; they know the engine's records and errors and nothing else of it."""
