"""Monitoring of a run: early stopping, overfitting, sampled answers, a smoke test before a long run."""
