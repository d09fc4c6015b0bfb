"""Simulation: generate data with a known true distribution, and train small models on it."""
