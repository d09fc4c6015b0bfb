"""Training counters, and the metrics that are logged from them."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Meter:
    """Sums over the steps since the last log, over all processes."""

    groups: float = 0.0
    pairs: float = 0.0
    tokens: float = 0.0
    """Tokens in the model's input, without padding."""
    slots: float = 0.0
    """Tokens in the model's input, with padding."""
    saved_tokens: float = 0.0
    """Prompt tokens that the expanded layout would have computed in addition."""
    trained_tokens: float = 0.0
    correct_tokens: float = 0.0
    paused_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def add_batches(self, counts: torch.Tensor) -> None:
        """Add `batch_counts`, summed over the micro-batches of a step and over processes."""
        groups, pairs, tokens, slots, saved = counts.tolist()
        self.groups += groups
        self.pairs += pairs
        self.tokens += tokens
        self.slots += slots
        self.saved_tokens += saved

    def add_predictions(self, trained: float, correct: float) -> None:
        """Add the number of trained tokens and the number of them predicted correctly."""
        self.trained_tokens += trained
        self.correct_tokens += correct

    def read(self) -> dict[str, float]:
        """Return the metrics to log. Rates are per second of wall time, without the time of evaluations."""
        seconds = max(time.perf_counter() - self.started - self.paused_seconds, 1e-9)
        figures = {
            "tokens_per_second": self.tokens / seconds,
            "pairs_per_second": self.pairs / seconds,
            "responses_per_prompt": self.pairs / max(self.groups, 1),
            "padding_share": 1 - self.tokens / max(self.slots, 1),
            "prompt_tokens_saved_share": self.saved_tokens / max(self.tokens + self.saved_tokens, 1),
        }
        if self.trained_tokens:
            figures["mean_token_accuracy"] = self.correct_tokens / self.trained_tokens
        return figures


def batch_counts(batch: dict[str, Any]) -> torch.Tensor:
    """Return groups, pairs, tokens, slots and saved prompt tokens of a collated batch: [5] float64 on the CPU."""
    stats = batch["stats"]
    return torch.tensor(
        [stats[name] for name in ("groups", "pairs", "tokens", "slots", "saved_tokens")], dtype=torch.float64
    )
