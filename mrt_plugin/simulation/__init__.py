"""Simulation: generated data whose truth is known, and small models to train on it."""
