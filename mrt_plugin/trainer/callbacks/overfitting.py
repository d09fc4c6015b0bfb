"""The gap between held-out and training loss, with a warning when it has grown."""

import logging
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

TRAIN_ROWS = 64
"""Number of training rows evaluated next to the held-out rows. They stay the same, so their difficulty cancels."""


@dataclass
class Overfitting:
    """Held-out minus training loss at each evaluation, in nats per token, and its growth.

    Both losses are taken at the same weights, without dropout, on rows that stay the same. The two sets differ in
    which responses of their pools were kept, and in how hard their prompts are. The gap is therefore compared with the
    smallest gap of the run, not with 0.

    Args:
        limit: growth above which it warns. 0.2 nats per token means that held-out tokens lost a factor of e^0.2 = 1.22
            in probability relative to training tokens. This is a convention, not a measured bound.
    """

    limit: float
    _smallest: dict[str, float] = field(default_factory=dict)
    _best: dict[str, tuple[float, int]] = field(default_factory=dict)
    _warned: set[str] = field(default_factory=set)

    def metrics(self, prefix: str, *, held_out: float, train: float, step: int) -> dict[str, float]:
        """Return the gap to log. Warn once per held-out set when its growth exceeds the limit."""
        gap = held_out - train
        smallest = self._smallest[prefix] = min(gap, self._smallest.get(prefix, gap))
        best, best_step = self._best[prefix] = min((held_out, step), self._best.get(prefix, (held_out, step)))
        if gap - smallest > self.limit and prefix not in self._warned:
            self._warned.add(prefix)
            verdict = (
                f"The held-out loss itself was best at step {best_step} ({best:.4f}) and is {held_out:.4f} now: stop "
                "here, or set early_stopping, and keep the best checkpoint"
                if held_out > best
                else "The held-out loss itself still falls, so going on is worth it for now"
            )
            logger.warning(
                "Overfitting: at step %d the gap between held-out and training loss is %.3f nats per token, %.3f more "
                "than at its smallest (overfit_limit=%g). %s. Against it: fewer epochs, more prompts, more responses "
                "per prompt, a smaller learning rate or LoRA rank.",
                step,
                gap,
                gap - smallest,
                self.limit,
                verdict,
            )
        return {f"{prefix}_train_gap": gap}
