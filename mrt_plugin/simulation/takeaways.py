"""Say what each experiment found in one sentence, computed from its numbers: also where a claim does not hold."""

import numpy as np
from scipy.stats import f, sem

from mrt_plugin.simulation.results import (
    BridgeFound,
    BudgetFound,
    BySelectorFound,
    GradientsFound,
    LotteryFound,
    TokensFound,
    VarianceFound,
)

RARE = 0.05
"""Largest probability, or share of resamples, that still counts as unlikely."""
ERRORS = 3
"""Standard errors that a measurement may be off."""
RELATED = 0.3
"""Smallest correlation that is called one."""


def variance(found: VarianceFound) -> str:
    rows = zip(found.k, found.variance, found.predicted, found.variance_error, strict=True)
    missed = [str(k) for k, measured, predicted, error in rows if abs(measured - predicted) > ERRORS * error]
    if missed:
        return (
            f"The formula misses the measured variance at K = {', '.join(missed)}, by over {ERRORS} standard errors."
        )
    share = found.variance[-1] / found.variance[0]
    return (
        f"The formula predicts the variance at every K: with K = {found.k[-1]} it is {share:.0%} of that with K = 1."
    )


def budget(found: BudgetFound) -> str:
    late, early = (found.k[int(np.mean(at.nll["random_k"], axis=1).argmin())] for at in (found.last, found.best))
    one = max(at.best_k["random_k"][0] for at in (found.last, found.best))
    where = f"K = {late}" if late == early else f"K = {late} after all steps, at K = {early} at the best step"
    if min(late, early) == 1 or one >= RARE:
        return (
            f"At equal cost, one answer to each prompt is not clearly beaten (best in {one:.0%} of resamples): NLL is "
            f"lowest at {where}, k* is {found.k_star:.1f}."
        )
    return (
        f"At equal cost, several answers to fewer prompts beat one answer to each: NLL is lowest at {where}, and k* "
        f"is {found.k_star:.1f}."
    )


def lottery(found: LotteryFound) -> str:
    ratio, runs = found.nll_sd[0] / found.nll_sd[-1], found.runs
    chance = 2 * min(f.sf(ratio**2, runs - 1, runs - 1), f.cdf(ratio**2, runs - 1, runs - 1))
    differ = "about as much"
    if chance < RARE:
        differ = f"{ratio:.0f} times as much" if ratio > 1 else "less"
    first, last = found.mode_error_mean[0], found.mode_error_mean[-1]
    return (
        f"With one random answer per prompt, {first:.0%} of the probability is on the wrong mode; with {found.k[-1]}, "
        f"{last:.0%}. Runs with one differ {differ} in NLL."
    )


def by_selector(found: BySelectorFound) -> str:
    last = {name: np.array(table[-1]) for name, table in found.nll.items()}
    first, second = sorted(last, key=lambda name: last[name].mean())[:2]
    wrong = {name: values[-1] for name, values in found.mode_error_mean.items()}
    gap, at = last[second] - last[first], f"At K = {found.k[-1]}"
    if gap.mean() <= 2 * sem(gap) or min(wrong, key=wrong.__getitem__) != first:
        return f"{at}, no selector learns the truth clearly best: {first} has the lowest NLL, {second} the next."
    return (
        f"{at}, {first} learns the truth best: {wrong[first]:.0%} of its probability is on the wrong mode, with the "
        f"others {min(value for name, value in wrong.items() if name != first):.0%} or more."
    )


def gradients(found: GradientsFound) -> str:
    best, random = found.selectors["best_k"], found.selectors["random_k"]
    low, high = best.cosine_other_networks
    numbers = f"(cosine {best.cosine:.2f}, with random answers {random.cosine:.2f}; on other networks {low:.2f} to "
    numbers = f"{numbers}{high:.2f})".replace("-", "−")
    if best.cosine + 2 * best.cosine_error < 0:
        return f"Training on the highest rewards goes against the true gradient {numbers}."
    less = best.cosine + 2 * best.cosine_error < random.cosine - 2 * random.cosine_error
    follows = "less than" if less else "no less than"
    return f"Training on the highest rewards follows the true gradient {follows} random answers do {numbers}."


def bridge(found: BridgeFound) -> str:
    values = (found.cosine_same_mode, found.cosine_other_mode, found.correlation)
    same, other, together = (f"{value:.2f}".replace("-", "−") for value in values)
    alike = found.correlation >= RELATED and found.cosine_same_mode > found.cosine_other_mode
    claim = "Similar answers have similar gradients" if alike else "Similar answers need not have similar gradients"
    return f"{claim}: cosine {same} within a mode, {other} between modes (correlation {together})."


def tokens(found: TokensFound) -> str:
    best = {name: int(np.argmin(values)) for name, values in found.mode_kl_mean.items()}
    runs = {name: found.mode_kl[name][place] for name, place in best.items()}
    lowest = {name: found.mode_kl_mean[name][place] for name, place in best.items()}
    winner = min(lowest, key=lowest.__getitem__)
    level = [name for name in runs if min(runs[name]) <= max(runs[winner])]
    come = f"{' and '.join(level)} {'come' if len(level) > 1 else 'comes'} closest to the truth"
    named = [name for name in ("random_k", "best_k") if name in lowest and name not in level]
    others = [f"{name} reaches {lowest[name]:.2f}" for name in named]
    kl = f"KL {lowest[winner]:.2f} at K = {found.k[best[winner]]}"
    return f"{come} ({'; '.join([kl, *others])})."
