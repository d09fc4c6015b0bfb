"""Compute every number of the results page from the runs and the prices."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recipes.claim.arms import ARMS
from recipes.claim.decision import (
    Estimate,
    affordable_share,
    bootstrap,
    decide,
    relative_gain,
)
from recipes.claim.power import pooled_gain, rule_power
from recipes.claim.pricing import Layout, Price, token_price
from recipes.claim.records import key_of
from recipes.claim.train import Setting
from recipes.claim.tuning import Tuned, kl_at

SEVERAL = ("k2", "k4", "k8")
RIVALS = ("k1", "k1_epochs", "k1_redraw")
"""Arms with K = 1 that can spend the same cost as K responses per prompt."""
LAYOUTS: tuple[Layout, ...] = ("shared_prefix", "expanded")


class Curves:
    """Main runs of one prompt length. Only complete seeds are used, with each arm at its best setting from tuning."""

    def __init__(
        self, records: Iterable[dict[str, Any]], tuned: Tuned, chosen: dict[str, list[Setting]], length: int
    ) -> None:
        runs = {}
        for record in records:
            key = key_of(record)
            if key.length == length:
                runs[key.arm, key.setting, key.seed] = record["curve"]
        needed = [(arm, setting) for arm, settings in chosen.items() for setting in settings]
        seeds = sorted({seed for _, _, seed in runs})
        self.seeds = [seed for seed in seeds if all((*which, seed) in runs for which in needed)]
        self.runs, self.tuned, self.settings = runs, tuned, chosen

    def kl(self, arm: str, pairs: float) -> np.ndarray:
        """Return the KL to the truth after a number of pairs, [seeds].

        Raises:
            ValueError: if `pairs` is outside the checkpoints.
        """
        setting = self.tuned.best(arm, pairs, self.settings[arm])
        return np.array([kl_at(self.runs[arm, setting, seed], pairs) for seed in self.seeds])

    def kl_within(self, arm: str, pairs: float, n: int) -> np.ndarray:
        """Return the KL after at most so many pairs, stopped at the checkpoint best on the tuning split, [seeds]."""
        stops = [place * n for place in ARMS[arm].checkpoints if place * n < pairs] + [pairs]
        best = {stop: self.tuned.best(arm, stop, self.settings[arm]) for stop in stops}
        return self.kl(arm, min(stops, key=lambda stop: self.tuned.mean_kl(arm, best[stop], stop)))

    def mean(self, arm: str, pairs: float) -> dict[str, Any]:
        """Return the mean KL with its bootstrap interval, for a table or a plot."""
        values = self.kl(arm, pairs)
        return {"arm": arm, "pairs": pairs, **asdict(bootstrap(lambda mean: mean, values))}

    @property
    def base(self) -> float:
        """Return the mean KL of the base models."""
        return float(np.mean([self.runs[key][0]["kl"] for key in self.runs if key[2] in self.seeds]))


@dataclass(frozen=True)
class Comparison:
    """Comparison of K responses for n prompts with one way of spending the same cost on K = 1."""

    length: int
    layout: Layout
    k: int
    rival: str
    cost: float
    rival_pairs: float
    """Number of pairs that K = 1 can pay for, in multiples of n."""
    kl: float
    rival_kl: float
    gain: Estimate
    """Relative reduction of the KL."""
    share: Estimate
    """Share of the gain at equal prompts that is left at equal cost."""
    wins: int
    """Number of seeds in which K responses come closer to the truth."""
    seeds: int
    verdict: str


def compare(
    curves: Curves, price: Price, length: int, layout: Layout, several: str, rival: str, n: int, **charged: Any
) -> Comparison | None:
    """Compare at equal cost; None if the rival's runs were not long enough."""
    arm, other = ARMS[several], ARMS[rival]
    budget = price.cost(arm, arm.k * n, n, layout, **charged)
    pairs = price.pairs_for(other, budget, n, layout, **charged)
    if not other.checkpoints[0] * n <= pairs <= other.pairs(n) * (1 + 1e-3):
        return None
    # One step is the smallest unit, so the runs may end slightly below the budget of 8n pairs.
    pairs = min(pairs, other.pairs(n))
    mine, alone = curves.kl(several, arm.k * n), curves.kl("k1", n)
    # Repeating the same prompts can do harm, so a run on few prompts may stop before its budget is spent.
    theirs = curves.kl_within(rival, pairs, n) if other.passes > 1 else curves.kl(rival, pairs)
    gain = bootstrap(relative_gain, theirs, mine)
    return Comparison(
        length=length,
        layout=layout,
        k=arm.k,
        rival=rival,
        cost=budget,
        rival_pairs=pairs / n,
        kl=float(mine.mean()),
        rival_kl=float(theirs.mean()),
        gain=gain,
        share=bootstrap(affordable_share, theirs, alone, mine),
        wins=int((mine < theirs).sum()),
        seeds=len(mine),
        verdict=decide(gain),
    )


def price_curve(
    curves: Curves, price: Price, arm: str, layout: Layout, n: int, **charged: Any
) -> list[dict[str, Any]]:
    """Compute cost and mean KL at the arm's checkpoints, for a plot."""
    points = []
    for place in ARMS[arm].checkpoints:
        point = curves.mean(arm, place * n)
        points.append({**point, "cost": price.cost(ARMS[arm], place * n, n, layout, **charged)})
    return points


def gain_by_budget(
    curves: Curves, price: Price, several: str, layout: Layout, n: int, **charged: Any
) -> list[dict[str, Any]]:
    """Compute the relative gain over K = 1 with more prompts, at the cost of each of the arm's checkpoints."""
    rows = []
    for place in ARMS[several].checkpoints:
        budget = price.cost(ARMS[several], place * n, n, layout, **charged)
        pairs = price.pairs_for(ARMS["k1"], budget, n, layout, **charged)
        if not ARMS["k1"].checkpoints[0] * n <= pairs <= ARMS["k1"].pairs(n) * (1 + 1e-3):
            continue
        gain = bootstrap(
            relative_gain, curves.kl("k1", min(pairs, ARMS["k1"].pairs(n))), curves.kl(several, place * n)
        )
        rows.append({"prompts": place / ARMS[several].k, "cost": budget, **asdict(gain)})
    return rows


def analyse(
    records: Sequence[dict[str, Any]],
    tuning: Sequence[dict[str, Any]],
    prices: dict[int, Price],
    n: int,
) -> dict[str, Any]:
    """Compute everything that the page shows, JSON-ready.

    Args:
        records: records of the main runs.
        tuning: records of the runs on the tuning split.
        prices: prices by prompt length.
        n: number of prompts in the arm with K = 8.
    """
    tuned = Tuned(tuning)
    chosen = tuned.chosen(n)
    found: dict[str, Any] = {"n": n, "settings": {arm: [asdict(s) for s in chosen[arm]] for arm in chosen}}
    found["lengths"] = {}
    measured = {length: Curves(records, tuned, chosen, length) for length in sorted(prices)}
    measured = {length: curves for length, curves in measured.items() if curves.seeds}
    for length, curves in measured.items():
        price = prices[length]
        found["lengths"][str(length)] = {
            "seeds": curves.seeds,
            "price": asdict(price),
            "base": curves.base,
            "equal_prompts": [curves.mean(arm, ARMS[arm].k * n) for arm in ("k1", *SEVERAL)],
            "equal_pairs": [curves.mean(arm, ARMS[arm].pairs(n)) for arm in ARMS],
            "grouping": asdict(bootstrap(relative_gain, curves.kl("k8", 8 * n), curves.kl("k8_scattered", 8 * n))),
            "gain_equal_prompts": {
                arm: asdict(bootstrap(relative_gain, curves.kl("k1", n), curves.kl(arm, ARMS[arm].k * n)))
                for arm in SEVERAL
            },
            "gain_equal_pairs": {
                arm: asdict(bootstrap(relative_gain, curves.kl("k1", 8 * n), curves.kl(arm, 8 * n))) for arm in SEVERAL
            },
            "comparisons": _comparisons(curves, price, length, n),
            "pooled": {arm: pooled_gain(list(measured.values()), price, arm, n) for arm in SEVERAL},
            "power": _power(curves, price, n),
            "sampled": _comparisons(curves, price, length, n, sampled=True),
            "proof_whole": _comparisons(curves, price, length, n, proof_over=None),
            "tokens": _comparisons(curves, token_price(length), length, n),
            "curves": {
                layout: {arm: price_curve(curves, price, arm, layout, n) for arm in ARMS} for layout in LAYOUTS
            },
            "by_budget": {
                layout: {arm: gain_by_budget(curves, price, arm, layout, n) for arm in SEVERAL} for layout in LAYOUTS
            },
        }
    return found


def _power(curves: Curves, price: Price, n: int, several: str = "k4") -> dict[str, float] | None:
    """Compute the power of the decision rule at equal cost in the shared layout.

    Returns None with one seed, or if the runs of K = 1 are too short.
    """
    arm, one = ARMS[several], ARMS["k1"]
    pairs = price.pairs_for(one, price.cost(arm, arm.k * n, n, "shared_prefix"), n, "shared_prefix")
    if len(curves.seeds) < 2 or not one.checkpoints[0] * n <= pairs <= one.pairs(n):
        return None
    return rule_power(curves.kl("k1", pairs), curves.kl(several, arm.k * n))


def _comparisons(curves: Curves, price: Price, length: int, n: int, **charged: Any) -> list[dict[str, Any]]:
    rows = [
        compare(curves, price, length, layout, several, rival, n, **charged)
        for layout in LAYOUTS
        for several in SEVERAL
        for rival in RIVALS
    ]
    return [finite(asdict(row)) for row in rows if row is not None]


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Remove the numbers that JSON cannot represent."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
