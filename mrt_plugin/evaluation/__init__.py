"""Evaluation: measure what a model has learned, on held-out groups and against known distributions."""
