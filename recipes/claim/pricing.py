"""What a point of a curve costs, in either layout: the fit, the selection, the proof, and where asked the sampling.

A prompt with K responses costs C_p + K·C_r where the prompt is computed once and K·(C_p + C_r) where it is copied.
C_p and C_r are fitted to what `mrt bench` measured, so that one training run can be priced under both layouts.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from recipes.claim.arms import Arm, responses_drawn
from recipes.claim.world import RESPONSE

Layout = Literal["shared_prefix", "expanded"]

PROOF_OVER = 10_000
"""Prompts that one proof is spread over: the runs here are toys, and a proof takes as long for a real one."""


@dataclass(frozen=True)
class Price:
    """The prices at one prompt length, all in one unit."""

    prompt: float
    """C_p, forward and backward."""
    response: float
    """C_r, forward and backward."""
    selection: float = 0.0
    """Choosing K of a pool, per prompt."""
    proof: float = 0.0
    """The proof that the shared layout is exact, once per run."""

    def fit(self, arm: Arm, pairs: float, layout: Layout) -> float:
        """Training on so many pairs."""
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
        """Everything that is charged for an arm that stops after so many pairs.

        Args:
            arm: the arm.
            pairs: it was trained on.
            n: prompts of the arm with K = 8.
            layout: `shared_prefix` or `expanded`.
            sampled: charge for drawing the responses too: a forward, a third of forward and backward, of each prompt
                once and of each response that had to exist.
            proof_over: prompts that one proof is spread over; None charges it whole.
        """
        prompts, responses = responses_drawn(arm, pairs, n)
        total = self.fit(arm, pairs, layout)
        # A redrawing arm selects again in every pass.
        total += self.selection * (pairs if arm.redraw else prompts)
        if layout == "shared_prefix" and arm.shares:
            total += self.proof if proof_over is None else self.proof * prompts / proof_over
        if sampled:
            total += (prompts * self.prompt + responses * self.response) / 3
        return total

    def pairs_for(self, arm: Arm, budget: float, n: int, layout: Layout, **charged: Any) -> float:
        """The pairs that a budget pays for, by bisection; infinite if it pays for more than a thousand runs."""
        low, high = 0.0, 1000.0 * arm.pairs(n)
        if self.cost(arm, high, n, layout, **charged) < budget:
            return float("inf")
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.cost(arm, middle, n, layout, **charged) <= budget else (low, middle)
        return low


def token_price(length: int) -> Price:
    """Tokens of a forward, as the shared layout has them: P - 1 of a prompt, R + 1 of a response.

    Example:

    >>> token_price(256)
    Price(prompt=255, response=65, selection=0.0, proof=0.0)
    """
    return Price(prompt=length - 1, response=RESPONSE + 1)


@dataclass(frozen=True)
class BenchFit:
    """What a step of `mrt bench` takes: so much per token, and so much per query and key that meet in attention."""

    token: float
    """Seconds, forward and backward."""
    meeting: float
    """Seconds, in all layers."""
    worst: float
    """The largest relative error of the fit."""
    measured: list[dict[str, Any]]
    """`shape` (P, R, K), `arm`, and `seconds` per prompt with its K responses."""

    def price(self, length: int, *, selection: float = 0.0, proof: float = 0.0) -> Price:
        """C_p and C_r at a prompt length, with the costs beside the fit."""
        one, two = _work(length, RESPONSE, 1), _work(length, RESPONSE, 2)
        first, second = (self.token * tokens + self.meeting * meetings for tokens, meetings in (one, two))
        response = second - first
        return Price(first - response, response, selection, proof)


def fit_bench(bench: dict[str, Any]) -> BenchFit:
    """Fit tokens and meetings to the arms of ours in `mrt bench --json`, both layouts, by least relative squares.

    A prompt's first P - 1 tokens meet each other causally, and a segment of R + 1 meets them and itself; what is
    copied is K pairs of one segment each. One fit over all shapes leaves less to the clock than a line through two K.

    Raises:
        ValueError: for lengths that were drawn (`--mixed`), and with fewer than three measurements.
    """
    if bench["settings"]["mixed"]:
        raise ValueError("A benchmark of mixed lengths has no one P: run mrt bench without --mixed.")
    measured, work = [], []
    for shape in bench["shapes"]:
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
    """Tokens, and queries that meet keys, of a prompt with K responses in the shared layout."""
    prompt, segment = length - 1, response + 1
    return np.array([prompt + k * segment, prompt**2 / 2 + k * (segment * prompt + segment**2 / 2)])
