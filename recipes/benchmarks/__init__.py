"""Benchmarks for developers: selection alone, and each stage from a pool to a selection."""
