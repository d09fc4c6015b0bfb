"""How often the intervals of `mrt audit` and `mrt plan` hold the truth, and a null evaluation shows a verdict.

The figures of docs/planning-explained.md and docs/evaluation-reference.md:
`PYTHONPATH=. python tests/interval_coverage.py`. The tests run the same with fewer repetitions.
"""

import numpy as np

from mrt_plugin.evaluation.evaluate import differences
from mrt_plugin.evaluation.result import outcome
from mrt_plugin.evaluation.subject import Subject
from mrt_plugin.models.named_model import NamedModel
from mrt_plugin.planning.audit import LEVEL
from mrt_plugin.planning.documents import DocumentCosts, document_variances, price_documents
from mrt_plugin.planning.paired import Bootstrap, Measured

N, K = 8, 2
KEYS = (
    *(("nll_per_token", None), ("nll_per_response", None), ("alignment", None), ("diversity", None), ("length", None)),
    *(("coverage", m) for m in (1, 2, 4, 8)),
    *(("reward", None), ("best_reward", 8), ("pass", 1)),
)
"""Twelve measures; the first nine are those of the command's default at --m 8."""


def audit_coverage(prompts: int, repetitions: int, seed: int = 0) -> dict[str, tuple[float, float]]:
    """By statistic: the coverage of plain 90 % percentiles, and of those that the audit uses. All truths are 0.

    `random_k` keeps 2 of 8 normal losses: its mean gap to the pool, and its squared error minus the expected one.
    """
    random = np.random.default_rng(seed)
    boot = Bootstrap(prompts, level=LEVEL)
    held = {"gap": np.zeros(2), "EMSE": np.zeros(2)}
    for _ in range(repetitions):
        losses = random.normal(0, 1, (prompts, N))
        gaps = losses[:, :K].mean(axis=1) - losses.mean(axis=1)
        usual = losses.var(axis=1, ddof=1) / K * (1 - K / N)
        for name, values in (("gap", gaps), ("EMSE", gaps**2 - usual)):
            means = values[random.integers(prompts, size=(2000, prompts))].mean(axis=1)
            plain = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            used = boot.interval(Measured.mean(values))
            assert used is not None
            held[name] += [low <= 0 <= high for low, high in (plain, used)]
    return {name: tuple(counts / repetitions) for name, counts in held.items()}


def null_verdicts(measures: int, prompts: int, repetitions: int, seed: int = 0) -> tuple[float, float]:
    """The share of null evaluations with any verdict, from each interval alone and as `mrt evaluate` corrects it.

    Two models whose measures have the same distribution, all measures independent: the worst case.
    """
    random = np.random.default_rng(seed)
    boot = Bootstrap(prompts, seed)
    alone = corrected = 0
    for _ in range(repetitions):
        subjects = [
            Subject(
                NamedModel(name, name, None),
                {key: Measured.mean(random.gamma(2, 1, prompts)) for key in KEYS[:measures]},
            )
            for name in ("before", "after")
        ]
        rows = differences(subjects, subjects[0], boot)
        alone += any(outcome(row.measure, row.interval) != "unclear" for row in rows)
        corrected += any(row.outcome != "unclear" for row in rows)
    return alone / repetitions, corrected / repetitions


V_D, V_P, V_R = 0.4, 0.3, 1.2
COSTS = DocumentCosts(document=400, prompt=40, response=20)


def document_coverage(documents: int, repetitions: int, *, skewed: bool, seed: int = 0) -> dict[str, float]:
    """The coverage of the nominal 90 % intervals of V_d, V_p, V_r, m and K, for unequal documents.

    A document has 2 to 8 prompts with 2 to 5 responses each. The truth of m and K is the best choice at the true
    components, for documents of these sizes.
    """
    random = np.random.default_rng(seed)
    held = np.zeros(5)
    for number in range(repetitions):
        losses = []
        for _ in range(documents):
            above = _effect(random, V_D, skewed)
            rows = [above + _effect(random, V_P, skewed) for _ in range(random.integers(2, 9))]
            losses.append([mean + random.normal(0, V_R**0.5, random.integers(2, 6)) for mean in rows])
        sizes = {
            "document_sizes": [len(rows) for rows in losses],
            "pool_sizes": [len(row) for rows in losses for row in rows],
            "budget": documents * 700.0,
            "loss_aggregation": "token",
        }
        found = price_documents(losses, COSTS, **sizes, level=LEVEL, seed=number, draws=400)
        choices, factors = document_variances(COSTS, **sizes)
        m, k, *_ = choices[int((factors @ [V_D, V_P, V_R]).argmin())]
        ends = [*vars(found.intervals).values(), found.m_interval, found.k_interval]
        held += [low <= value <= high for (low, high), value in zip(ends, (V_D, V_P, V_R, m, k), strict=True)]
    return dict(zip(("V_d", "V_p", "V_r", "m", "K"), held / repetitions, strict=True))


def _effect(random: np.random.Generator, variance: float, skewed: bool) -> float:
    value = (random.gamma(4) - 4) / 2 if skewed else random.standard_normal()
    return float(variance**0.5 * value)


if __name__ == "__main__":
    print("documents, effects | coverage of the intervals of a plan with documents")
    for documents in (10, 30, 100):
        for skewed in (False, True):
            found = document_coverage(documents, 400, skewed=skewed)
            print(
                documents,
                "skewed" if skewed else "normal",
                *(f"| {name} {share:.1%}" for name, share in found.items()),
            )
    print("prompts | gap: plain, used | EMSE: plain, used")
    for prompts in (5, 8, 10, 20):
        found = audit_coverage(prompts, 4000)
        print(prompts, *(f"| {plain:.1%}, {used:.1%}" for plain, used in found.values()))
    print("measures, prompts | any verdict: alone, corrected")
    for measures in (9, 12):
        for prompts in (10, 40):
            print(measures, prompts, *(f"| {share:.1%}" for share in null_verdicts(measures, prompts, 2000)))
