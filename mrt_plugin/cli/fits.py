"""The table of fits of loss = a + b/K."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mrt_plugin.cli.show import say, table

if TYPE_CHECKING:
    from mrt_plugin.planning.fit import InverseFit


def show_fits(fits: Mapping[str, "InverseFit"]) -> None:
    """Write the table, one row per arm, and what to make of it."""
    rows = [
        (
            arm,
            f"{row.runs}",
            f"{row.a:.4f} ± {_error(row.a_error)}",
            f"{row.b:.4f} ± {_error(row.b_error)}",
            "" if math.isnan(row.r_squared) else f"{row.r_squared:.3f}",
            f"{row.mse:.2e}",
        )
        for arm, row in fits.items()
    ]
    table(("arm", "runs", "a (endless K)", "b (what K = 1 loses)", "R²", "MSE"), rows, title="loss = a + b/K")
    say("That held-out loss follows 1/K is an assumption: look at R², and at the residuals of your largest K.")


def _error(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:.4f}"
