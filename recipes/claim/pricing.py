"""Price a point of a curve in either layout: training, selection, proof and, on request, sampling.

A prompt costs C_p and a response C_r. A prompt with K responses costs C_p + K·C_r if the prompt is computed once, and
K·(C_p + C_r) if it is copied. C_p and C_r are fitted to measurements of `mrt bench`, so that one training run can be
priced in both layouts.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from recipes.claim.arms import Arm, responses_drawn
from recipes.claim.world import RESPONSE

Layout = Literal["shared_prefix", "expanded"]

PROOF_OVER = 10_000
"""Number of prompts that share the cost of one proof. Runs here are small, and one proof costs a large run no more."""


@dataclass(frozen=True)
class Price:
    """Prices at one prompt length, all in one unit."""

    prompt: float
    """C_p, forward and backward."""
    response: float
    """C_r, forward and backward."""
    selection: float = 0.0
    """Cost of choosing K of a pool, per prompt."""
    proof: float = 0.0
    """Cost of the proof that the shared layout is exact, once per run."""

    def fit(self, arm: Arm, pairs: float, layout: Layout) -> float:
        """Return the cost of training on `pairs`."""
        if layout == "shared_prefix" and arm.shares:
            return pairs / arm.k * (self.prompt + arm.k * self.response)
        return pairs * (self.prompt + self.response)

    def cost(
        self,
        arm: Arm,
        pairs: float,
        n: int,
        layout: Layout,
        *,
        sampled: bool = False,
        proof_over: float | None = PROOF_OVER,
    ) -> float:
        """Return the total cost of an arm that stops after `pairs`.

        Args:
            arm: the arm.
            pairs: number of pairs it was trained on.
            n: number of prompts in the arm with K = 8.
            layout: `shared_prefix` or `expanded`.
            sampled: also charge for drawing the responses: one forward pass for each prompt and for each response that
                had to exist, priced at a third of forward and backward.
            proof_over: number of prompts that share the cost of one proof; None charges the full proof.
        """
        prompts, responses = responses_drawn(arm, pairs, n)
        total = self.fit(arm, pairs, layout)
        # An arm that redraws selects again in every pass.
        total += self.selection * (pairs if arm.redraw else prompts)
        if layout == "shared_prefix" and arm.shares:
            total += self.proof if proof_over is None else self.proof * prompts / proof_over
        if sampled:
            total += (prompts * self.prompt + responses * self.response) / 3
        return total

    def pairs_for(self, arm: Arm, budget: float, n: int, layout: Layout, **charged: Any) -> float:
        """Return the pairs that a budget pays for, by bisection; infinite if it pays for more than a thousand runs."""
        low, high = 0.0, 1000.0 * arm.pairs(n)
        if self.cost(arm, high, n, layout, **charged) < budget:
            return float("inf")
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.cost(arm, middle, n, layout, **charged) <= budget else (low, middle)
        return low


def token_price(length: int) -> Price:
    """Return prices in tokens per forward pass in the shared layout: P - 1 for a prompt, R + 1 for a response.

    Example:

    >>> token_price(256)
    Price(prompt=255, response=65, selection=0.0, proof=0.0)
    """
    return Price(prompt=length - 1, response=RESPONSE + 1)


@dataclass(frozen=True)
class BenchFit:
    """Fitted time of a step of `mrt bench`: seconds per token, and per query-key pair (meeting) in attention."""

    token: float
    """Seconds per token, forward and backward."""
    meeting: float
    """Seconds per query-key pair, in all layers."""
    worst: float
    """Largest relative error of the fit."""
    measured: list[dict[str, Any]]
    """`shape` (P, R, K), `arm`, and `seconds` per prompt with its K responses."""

    def price(self, length: int, *, selection: float = 0.0, proof: float = 0.0) -> Price:
        """Return C_p and C_r at a prompt length, with the costs of selection and proof."""
        one, two = _work(length, RESPONSE, 1), _work(length, RESPONSE, 2)
        first, second = (self.token * tokens + self.meeting * meetings for tokens, meetings in (one, two))
        response = second - first
        return Price(first - response, response, selection, proof)


def fit_bench(bench: dict[str, Any]) -> BenchFit:
    """Fit the seconds per token and per query-key pair to our arms in `mrt bench --json`.

    The fit minimises relative squared errors over both layouts. A prompt's first P - 1 tokens attend to each other
    causally. A segment of R + 1 tokens attends to them and to itself. The expanded layout has K copies with one
    segment each. One fit over all shapes is less sensitive to timing noise than a line through two K.

    Raises:
        ValueError: for random lengths (`--mixed`), for other shapes than P,R,K, or with fewer than three measurements.
    """
    if bench["settings"]["mixed"]:
        raise ValueError("A benchmark of mixed lengths has no one P: run mrt bench without --mixed.")
    measured, work = [], []
    for shape in bench["shapes"]:
        if "prompt" not in shape or shape.get("system"):
            raise ValueError(f"The shape {shape['shape']} is not P,R,K: run mrt bench on such shapes only.")
        p, r, k = shape["prompt"], shape["response"], shape["k"]
        for arm in shape["arms"]:
            if not arm["name"].startswith("mrt") or "pairs_per_second" not in arm:
                continue
            shared = arm["name"].startswith("mrt shared")
            work.append(_work(p, r, k) if shared else k * _work(p, r, 1))
            measured.append({"shape": [p, r, k], "arm": arm["name"], "seconds": k / arm["pairs_per_second"]})
    if len(measured) < 3:
        raise ValueError(f"The benchmark has {len(measured)} measurements of ours: give it more shapes.")
    relative = np.stack(work) / np.array([[row["seconds"]] for row in measured])
    (token, meeting), *_ = np.linalg.lstsq(relative, np.ones(len(measured)), rcond=None)
    worst = float(np.abs(relative @ [token, meeting] - 1).max())
    return BenchFit(float(token), float(meeting), worst, measured)


def _work(length: int, response: int, k: int) -> np.ndarray:
    """Count the tokens and query-key pairs of a prompt with K responses in the shared layout."""
    prompt, segment = length - 1, response + 1
    return np.array([prompt + k * segment, prompt**2 / 2 + k * (segment * prompt + segment**2 / 2)])
