"""Benchmarks that developers run: selection on its own, and each stage of a selection."""
