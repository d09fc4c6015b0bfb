"""Compute win rates from verdicts on pairs shown in both orders, with intervals, position bias and length control."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit
from scipy.stats import kendalltau, norm, spearmanr

from mrt_plugin.evaluation.result import Interval, RewardAgreement, WinRate
from mrt_plugin.planning.paired import LEVEL, Bootstrap, Measured, holm
from mrt_plugin.scoring.judge import Verdict

PENALTY = 0.1
"""Ridge penalty on both coefficients. Where the longer response always wins, they would be infinite without it.

With it, judges that see only the length come from 0.55 to 0.84 to 0.50 to 0.58 (`tests/length_control.py`).
"""


@dataclass(frozen=True)
class Comparison:
    """One pair of samples of a prompt. `first` is the verdict with the model's sample as A, `second` with it as B."""

    case: int
    first: Verdict | None
    second: Verdict | None
    length: float = 0.0
    """Length of the model's sample minus that of the other."""
    reward: float | None = None
    """Reward of the model's sample minus that of the other, if rewards were measured."""
    identical: bool = False
    """The two samples are the same text: a tie, which no judge was asked about."""

    @property
    def points(self) -> float | None:
        """1 for a win of the model, 1/2 for a tie, 0 for a loss, averaged over both orders; None if one is unknown."""
        if self.identical:
            return 0.5
        if self.first is None or self.second is None:
            return None
        return ({"A": 1.0, "tie": 0.5, "B": 0.0}[self.first] + {"A": 0.0, "tie": 0.5, "B": 1.0}[self.second]) / 2


def win_rate(model: str, against: str, comparisons: Sequence[Comparison], boot: Bootstrap, prompts: int) -> WinRate:
    """Summarise a model's comparisons on `prompts` prompts. Each prompt has one vote."""
    known = [(one, one.points) for one in comparisons if one.points is not None]
    cases, points = np.array([one.case for one, _ in known], np.int64), np.array([value for _, value in known])
    per_prompt = np.full(prompts, np.nan)
    for case in np.unique(cases):
        per_prompt[case] = points[cases == case].mean()
    measured = Measured.mean(per_prompt)
    count = int(measured.known.sum())
    asked = [one for one, _ in known if not one.identical]
    verdicts = [(one.first, one.second) for one in asked]
    decided = [[shown == "A" for shown in pair if shown != "tie"] for pair in verdicts]
    first_shown, decisive = sum(map(sum, decided)), sum(map(len, decided))
    both = [pair for pair in decided if len(pair) == 2]
    lengths = np.array([one.length for one, _ in known])
    rate = measured.value
    controlled, controlled_interval = None, None
    if rate is not None and (lengths > 0).any() and (lengths < 0).any():
        controlled, controlled_interval = length_controlled(cases, points, lengths, boot, prompts)
    return WinRate(
        model=model,
        against=against,
        prompts=count,
        pairs=len(known),
        identical=sum(one.identical for one, _ in known),
        unreadable=len(comparisons) - len(known),
        wins=int((points > 0.5).sum()),
        ties=int((points == 0.5).sum()),
        losses=int((points < 0.5).sum()),
        rate=rate,
        interval=None if rate is None else wilson(rate, count),
        bootstrap=None if rate is None else boot.interval(measured),
        length_controlled=controlled,
        length_controlled_interval=controlled_interval,
        length_difference=float(lengths.mean()) if len(lengths) else None,
        longer=float((lengths > 0).mean()) if len(lengths) else None,
        first_shown=first_shown / decisive if decisive else None,
        first_shown_interval=wilson(first_shown / decisive, decisive) if decisive else None,
        consistent=sum(one != other for one, other in both) / len(both) if both else None,
        reward=reward_agreement(known),
        p=None if rate is None else boot.chance(measured, Measured.mean(np.full(prompts, 0.5))),
    )


def with_outcomes(rows: Sequence[WinRate]) -> list[WinRate]:
    """Add outcomes, corrected for the number of win rates. An interval that holds 1/2 is always unclear."""
    corrected = iter(holm([row.p for row in rows if row.p is not None]))
    found = []
    for row in rows:
        p = None if row.p is None else next(corrected)
        clear = p is not None and p <= 1 - LEVEL and row.interval and not row.interval[0] <= 0.5 <= row.interval[1]
        outcome = "unclear" if not clear or row.rate is None else "better" if row.rate > 0.5 else "worse"
        found.append(replace(row, p_corrected=p, outcome=outcome))
    return found


def wilson(share: float, count: int, level: float = LEVEL) -> list[float]:
    """Return Wilson's interval (1927) of a share of `count`. It has a width also for shares of 0 and 1.

    For win rates, which may count halves, it is conservative: halves vary less than wins and losses.

    >>> [round(end, 3) for end in wilson(1.0, 10)]
    [0.722, 1.0]
    """
    z = float(norm.ppf((1 + level) / 2))
    middle, half = (
        share + z * z / (2 * count),
        z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)),
    )
    return [max(0.0, (middle - half) / (1 + z * z / count)), min(1.0, (middle + half) / (1 + z * z / count))]


def length_controlled(
    cases: np.ndarray, points: np.ndarray, lengths: np.ndarray, boot: Bootstrap, prompts: int
) -> tuple[float, Interval]:
    """Return the win rate at equal lengths with its interval, as AlpacaEval 2 does (arXiv 2404.04475).

    Fits logit P(win) = theta + phi·tanh(difference in length / its standard deviation), with half wins as shares, and
    returns the probability of theta alone. AlpacaEval's term for a prompt's difficulty is left out: it is estimated
    from a leaderboard of models.
    """
    x = np.tanh(lengths / (lengths.std() or 1.0))
    pairs = np.bincount(cases, minlength=prompts)
    weights = 1 / pairs[cases]
    theta = float(fit_lengths(x, points, weights[None])[0, 0])
    drawn = fit_lengths(x, points, boot.counts[:, cases] * weights)
    return float(expit(theta)), boot.ends(expit(drawn[:, 0]), int((pairs > 0).sum()))


def fit_lengths(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fit theta + phi·x to shares y by ridge logistic regression, once per row of weights [D, n]. Returns [D, 2]."""
    design = np.stack([np.ones_like(x), x])
    found = np.zeros((len(weights), 2))
    products = np.stack([np.ones_like(x), x, x * x], axis=1)
    for _ in range(100):
        p = expit(found @ design)
        slope = (weights * (p - y)) @ design.T + PENALTY * found
        a, b, c = ((weights * p * (1 - p)) @ products).T
        a, c = a + PENALTY, c + PENALTY
        step = np.stack([c * slope[:, 0] - b * slope[:, 1], a * slope[:, 1] - b * slope[:, 0]], axis=1)
        step /= (a * c - b * b)[:, None]
        size = np.linalg.norm(step, axis=1, keepdims=True)
        found -= step * np.minimum(1.0, 2.0 / np.maximum(size, 1e-30))  # Newton's method may overshoot
        if size.max() < 1e-9:
            break
    return found


def reward_agreement(known: Sequence[tuple[Comparison, float]]) -> RewardAgreement | None:
    """Compare verdicts with differences in reward, over all pairs that have both."""
    pairs = [(value, one.reward) for one, value in known if one.reward is not None]
    if not pairs:
        return None
    judged, rewards = (np.array(values) for values in zip(*pairs, strict=True))
    orders = np.sign(judged - 0.5) * np.sign(rewards)
    decided = int((orders != 0).sum())
    varied = len(pairs) > 1 and np.ptp(judged) > 0 and np.ptp(rewards) > 0
    return RewardAgreement(
        pairs=len(pairs),
        decided=decided,
        accuracy=float((orders > 0).sum() / decided) if decided else None,
        interval=wilson(float((orders > 0).sum() / decided), decided) if decided else None,
        spearman=float(spearmanr(judged, rewards).statistic) if varied else None,
        kendall=float(kendalltau(judged, rewards).statistic) if varied else None,
    )
