"""Evaluation: what a model has learned, measured on held-out groups and against known distributions."""
