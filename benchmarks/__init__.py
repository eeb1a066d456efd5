"""Benchmarks of the ops; run ``python -m benchmarks --help``."""
