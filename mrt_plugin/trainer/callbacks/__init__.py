"""Monitoring of a run: early stopping, overfitting, sampled answers, a smoke test before a long run."""

from mrt_plugin.trainer.callbacks.early_stopping import HeldOutEarlyStopping
from mrt_plugin.trainer.callbacks.overfitting import Overfitting
from mrt_plugin.trainer.callbacks.samples import HeldOutSamples
from mrt_plugin.trainer.callbacks.smoke import SmokeTest, SmokeTestFailed
from mrt_plugin.trainer.callbacks.watch import Watching, watch

__all__ = [
    "HeldOutEarlyStopping",
    "HeldOutSamples",
    "Overfitting",
    "SmokeTest",
    "SmokeTestFailed",
    "Watching",
    "watch",
]
