"""Choose the number of responses per prompt with the smallest variance under a budget, in either layout."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrt_plugin.options import LossAggregation, PaidLayout


@dataclass(frozen=True)
class Costs:
    """Cost C_p of a prompt and C_r of a response, in any unit. The `expanded` layout pays C_p for each response."""

    prompt: float
    response: float
    layout: PaidLayout = "shared_prefix"

    def of_prompt(self, k: float) -> float:
        if self.layout == "shared_prefix":
            return self.prompt + k * self.response
        return k * (self.prompt + self.response)


@dataclass(frozen=True)
class BudgetRow:
    """What a budget buys at one K: n prompts, maybe 0, their pairs, and the variance Var[L] of the loss estimate."""

    k: int
    prompts: int
    pairs: float
    cost: float
    variance: float


def best_k_formula(ratio: float, costs: Costs) -> float:
    """Return k* = sqrt((V_{y|x}/V_x)·(C_p/C_r)) for `shared_prefix` (arXiv 2606.00544), and 1 for `expanded`.

    The ratio is V_x / V_{y|x}. k* is the optimum over real numbers if prompts never run out, ∞ for a ratio <= 0.
    """
    if costs.layout == "expanded":
        return 1.0
    return math.sqrt(costs.prompt / costs.response / ratio) if ratio > 0 else math.inf


def budget_table(
    v_x: float,
    v_yx: float,
    costs: Costs,
    *,
    pool_sizes: Sequence[int],
    budget: float,
    loss_aggregation: LossAggregation = "token",
) -> list[BudgetRow]:
    """Compute what a budget buys at each K from 1 to the largest pool. A negative V_x counts as 0.

    A prompt with N responses in its pool keeps k = min(K, N). `loss_aggregation: prompt` gives each of the n prompts
    one vote, and the variance is (V_x + V_{y|x}·mean(1/k)) / n. `token` and `response` give a prompt k votes, and the
    variance is (V_x·mean(k²)/mean(k)² + V_{y|x}/mean(k)) / n.
    """
    sizes = np.asarray(pool_sizes)
    if budget < costs.of_prompt(1):
        raise ValueError(
            f"A budget of {budget:g} does not pay for one prompt with one response, which costs "
            f"{costs.of_prompt(1):g}: raise it."
        )
    rows = []
    for k in range(1, int(sizes.max()) + 1):
        kept = np.minimum(sizes, k)
        mean = float(kept.mean())
        cost = costs.of_prompt(mean)
        prompts = min(len(sizes), int(budget / cost * (1 + 1e-12)))
        if loss_aggregation == "prompt":
            noise = max(v_x, 0.0) + v_yx * float((1 / kept).mean())
        else:
            noise = max(v_x, 0.0) * (float((kept**2).mean()) / mean**2) + v_yx / mean  # 1 exactly for equal pools
        rows.append(BudgetRow(k, prompts, prompts * mean, prompts * cost, noise / prompts if prompts else math.inf))
    return rows


def best_row(rows: Sequence[BudgetRow]) -> BudgetRow:
    """Return the row with the smallest variance; in a tie, the one with fewer responses."""
    return min(rows, key=lambda row: (row.variance, row.k))


def parse_budget(budget: str | float, ordinary: float) -> float:
    """Read a budget given as a number, or as a multiple of the cost of an ordinary epoch ("2x")."""
    text = str(budget).strip().replace(",", "").replace("_", "")
    try:
        amount = float(text[:-1]) * ordinary if text.endswith("x") else float(text)
    except ValueError:
        amount = math.nan
    if not 0 < amount < math.inf:
        raise ValueError(
            f"budget={budget!r} is neither a number of tokens above 0 nor a multiple of an ordinary epoch such as 2x."
        )
    return amount
