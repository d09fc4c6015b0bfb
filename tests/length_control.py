"""Measure how well win rates at equal lengths correct a judge that prefers length.

The figures of docs/judging.md: `PYTHONPATH=. python tests/length_control.py`.
"""

import numpy as np
from scipy.special import expit

from mrt_plugin.evaluation.win_rate import fit_lengths

REPETITIONS = 200


def controlled(difference: np.ndarray, points: np.ndarray) -> float:
    """The win rate at equal lengths, without its interval."""
    x = np.tanh(difference / difference.std())
    return float(expit(fit_lengths(x, points, np.ones((1, len(x))))[0, 0]))


def main() -> None:
    random = np.random.default_rng(0)
    for prompts in (50, 200, 800):
        for factor in (1.1, 1.4, 2.0):
            rates, found, quality, raw = [], [], [], []
            for _ in range(REPETITIONS):
                longer = random.lognormal(4, 0.5, prompts) * factor
                difference = longer - random.lognormal(4, 0.5, prompts)
                points = (difference > 0).astype(float)
                rates.append(points.mean())
                found.append(controlled(difference, points))
                chance = expit(np.log(0.7 / 0.3) + 2 * np.tanh(difference / difference.std()))
                points = (random.random(prompts) < chance).astype(float)
                raw.append(points.mean())
                quality.append(controlled(difference, points))
            print(
                f"{prompts} prompts, lengths x {factor}: only length {np.mean(rates):.3f} -> {np.mean(found):.3f}; "
                f"quality 0.7 and length {np.mean(raw):.3f} -> {np.mean(quality):.3f} (sd {np.std(quality):.3f})"
            )


if __name__ == "__main__":
    main()
