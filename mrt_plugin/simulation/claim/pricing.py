"""What a point of a curve costs, in either layout: the fit, the selection, the proof, and where asked the sampling.

A prompt with K responses costs C_p + K·C_r where the prompt is computed once and K·(C_p + C_r) where it is copied.
C_p and C_r are fitted to what `mrt bench` measured, so that one training run can be priced under both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mrt_plugin.simulation.claim.arms import Arm, responses_drawn
from mrt_plugin.simulation.claim.world import RESPONSE

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


def bench_price(bench: dict[str, Any], length: int, *, selection: float = 0.0, proof: float = 0.0) -> Price:
    """Seconds, fitted by least squares to the shared arm of `mrt bench --json` at P = `length`, R = 64 and several K.

    Args:
        bench: what `mrt bench --json` printed.
        length: P.
        selection: seconds per prompt.
        proof: seconds per run.

    Raises:
        ValueError: if the file has fewer than two K at this shape.
    """
    ks, seconds = _shared_seconds(bench, length)
    if len(set(ks)) < 2:
        raise ValueError(
            f"The benchmark has {len(set(ks))} values of K at P = {length}, R = {RESPONSE}, and two are needed. Run "
            f"mrt bench --shape {length},{RESPONSE},1 --shape {length},{RESPONSE},8 --json."
        )
    design = np.stack([np.ones(len(ks)), ks], axis=1)
    # Relative errors: a clock is wrong by a share of what it measures.
    weights = 1 / np.asarray(seconds)
    (prompt, response), *_ = np.linalg.lstsq(design * weights[:, None], np.ones(len(ks)), rcond=None)
    return Price(float(prompt), float(response), selection, proof)


def _shared_seconds(bench: dict[str, Any], length: int) -> tuple[Sequence[int], Sequence[float]]:
    """K, and seconds per prompt with K responses."""
    ks, seconds = [], []
    for shape in bench["shapes"]:
        if (shape["prompt"], shape["response"]) != (length, RESPONSE):
            continue
        for arm in shape["arms"]:
            if arm["name"].startswith("mrt shared") and "pairs_per_second" in arm:
                ks.append(int(shape["k"]))
                seconds.append(shape["k"] / arm["pairs_per_second"])
    return ks, seconds
