"""How held-out loss falls with K over a set of runs: loss = a + b/K, by least squares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class InverseFit:
    """loss = a + b/K."""

    a: float
    """What is left with endless responses."""
    b: float
    """What K = 1 loses against endless responses."""
    a_error: float
    """Standard error of a; NaN with runs at two values of K only and one run each."""
    b_error: float
    mse: float
    """Mean squared residual."""
    r_squared: float
    """Share of the variance over runs that the fit explains; NaN if all losses are equal."""
    runs: int

    def at(self, k: float) -> float:
        """The fitted loss at K."""
        return self.a + self.b / k


def fit_inverse_k(k: Sequence[float], loss: Sequence[float]) -> InverseFit:
    """Fit loss = a + b/K to a set of runs, one entry per run.

    The form is that of the variance of a loss estimate (`mrt_plugin.planning.variance`); that a held-out loss follows
    it is an assumption, which `r_squared` and the residuals let you judge.

    Raises:
        ValueError: with fewer than two different K.

    Example:

    >>> fit = fit_inverse_k([1, 2, 4], [2.0, 1.5, 1.25])
    >>> round(fit.a, 6), round(fit.b, 6), round(fit.at(8), 6)
    (1.0, 1.0, 1.125)
    """
    ks, losses = np.asarray(k, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if ks.shape != losses.shape or ks.ndim != 1:
        raise ValueError(f"Give one loss per K: {ks.size} values of K and {losses.size} losses.")
    if len(np.unique(ks)) < 2 or not (ks > 0).all() or not np.isfinite(losses).all():
        raise ValueError("A fit over K needs runs with at least two different K above 0, and finite losses.")
    design = np.stack([np.ones_like(ks), 1 / ks], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, losses, rcond=None)
    residuals = losses - design @ [a, b]
    free, spread = len(ks) - 2, float(((losses - losses.mean()) ** 2).sum())
    noise = float(residuals @ residuals) / free if free else np.nan
    a_error, b_error = np.sqrt(noise * np.diag(np.linalg.inv(design.T @ design)))
    return InverseFit(
        a=float(a),
        b=float(b),
        a_error=float(a_error),
        b_error=float(b_error),
        mse=float((residuals**2).mean()),
        r_squared=1 - float(residuals @ residuals) / spread if spread > 0 else np.nan,
        runs=len(ks),
    )
