"""The variance components and the best K, against data whose true values are known."""

import math

import numpy as np
import pytest

from mrt_plugin.planning.budget import Costs, best_k_formula, best_row, budget_table
from mrt_plugin.planning.fit import fit_inverse_k
from mrt_plugin.planning.variance import bootstrap_intervals, estimate_components

V_X, V_YX = 0.3, 1.2
COSTS = Costs(prompt=40, response=10)


def draw(random, prompts, sizes=(2, 3, 5, 8), v_x=V_X, v_yx=V_YX):
    """Losses of `prompts` prompts with unequal pools, skewed effects, and a variance that differs between prompts."""
    losses = []
    for _ in range(prompts):
        effect = (random.gamma(4) - 4) / 2 * math.sqrt(v_x)
        spread = math.sqrt(v_yx * random.gamma(4) / 4)
        losses.append(5 + effect + spread * random.standard_normal(random.choice(sizes)))
    return losses


def naive_components(losses):
    """What one would write without thinking: the variance of group means, and the plain mean variance inside."""
    return float(np.var([np.mean(row) for row in losses])), float(np.mean([np.var(row) for row in losses]))


def best(ratio):
    return best_row(budget_table(ratio, 1, COSTS, pool_sizes=[16] * 400, budget=8000)).k


@pytest.mark.slow
def test_nominal_90_percent_intervals_cover_and_the_naive_estimate_does_not():
    repetitions, prompts = 200, 80
    random = np.random.default_rng(0)
    covered = {"v_x": 0, "v_yx": 0, "rho": 0, "k": 0, "naive v_x": 0}
    means = []
    for number in range(repetitions):
        losses = draw(random, prompts)
        found = bootstrap_intervals(losses, seed=number, draws=400)
        covered["v_x"] += found.v_x.low <= V_X <= found.v_x.high
        covered["v_yx"] += found.v_yx.low <= V_YX <= found.v_yx.high
        covered["rho"] += found.rho.low <= V_X / (V_X + V_YX) <= found.rho.high
        covered["k"] += best(found.ratio.high) <= best(V_X / V_YX) <= best(found.ratio.low)
        # The same bootstrap, about the naive estimate of V_x.
        group_means = np.array([row.mean() for row in losses])
        resampled = group_means[random.integers(prompts, size=(400, prompts))].var(axis=1)
        low, high = np.quantile(resampled, [0.05, 0.95])
        covered["naive v_x"] += low <= V_X <= high
        estimate = estimate_components(losses)
        means.append((estimate.v_x, estimate.v_yx, *naive_components(losses)))
    shares = {name: count / repetitions for name, count in covered.items()}
    assert min(shares[name] for name in ("v_x", "v_yx", "rho", "k")) >= 0.85, shares
    assert shares["naive v_x"] < 0.5, shares

    v_x, v_yx, naive_v_x, naive_v_yx = np.mean(means, axis=0)
    errors = np.std(means, axis=0) / math.sqrt(repetitions)
    assert abs(v_x - V_X) < 3 * errors[0]
    assert abs(v_yx - V_YX) < 3 * errors[1]
    assert naive_v_x - V_X > 10 * errors[2]
    assert V_YX - naive_v_yx > 10 * errors[3]


def test_estimates_by_hand():
    found = estimate_components([[1.0, 3.0], [2.0, 6.0, 4.0], [5.0]])
    s = (2.0, 4.0)
    means = (2.0, 4.0)
    assert found.v_yx == pytest.approx(np.mean(s))
    assert found.v_x == pytest.approx(np.var(means, ddof=1) - np.mean([s[0] / 2, s[1] / 3]))
    assert (found.prompts, found.left_out) == (2, 1)
    assert found.rho == pytest.approx(max(found.v_x, 0) / (max(found.v_x, 0) + found.v_yx))


def test_shifting_and_scaling_losses():
    random = np.random.default_rng(1)
    losses = draw(random, 30)
    one, other = estimate_components(losses), estimate_components([1e6 + 10 * row for row in losses])
    assert other.v_x == pytest.approx(100 * one.v_x, rel=1e-6)
    assert other.ratio == pytest.approx(one.ratio, rel=1e-6)


def test_no_variance_between_prompts_is_estimated_at_zero_on_average_and_below_zero_at_times():
    random = np.random.default_rng(2)
    found = [estimate_components(draw(random, 40, v_x=0.0)).v_x for _ in range(200)]
    assert 0.3 < np.mean(np.array(found) < 0) < 0.7
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(200)
    negative = next(value for value in found if value < 0)
    assert best_k_formula(negative / V_YX, COSTS) == math.inf
    assert best(negative / V_YX) == 16


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([[1.0], [2.0], [3.0, 4.0]], "Only 1 of 3 prompts have 2 responses"),
        ([[2.5, 2.5], [2.5, 2.5, 2.5]], "All losses are equal .2.5."),
        ([[1.0, float("nan")], [2.0, 3.0]], "not finite"),
        ([], "Only 0 of 0"),
    ],
)
def test_data_that_says_nothing_is_refused(losses, words):
    for function in (estimate_components, bootstrap_intervals):
        with pytest.raises(ValueError, match=words):
            function(losses)


def test_identical_responses_leave_only_prompts():
    found = estimate_components([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    assert found.v_yx == 0
    assert found.rho == 1


def test_the_same_seed_gives_the_same_interval():
    losses = draw(np.random.default_rng(3), 30)
    assert bootstrap_intervals(losses, seed=5) == bootstrap_intervals(losses, seed=5)
    assert bootstrap_intervals(losses, seed=5) != bootstrap_intervals(losses, seed=6)


def test_formula_and_integer_optimum_agree_when_prompts_abound():
    for ratio in (0.02, 0.14, 1.0, 30.0):
        star = best_k_formula(ratio, COSTS)
        found = best_row(budget_table(ratio, 1, COSTS, pool_sizes=[64] * 10**5, budget=10**6)).k
        assert found == 1 if star < 1 else abs(found - star) < 1


def test_copied_prompts_make_one_response_the_best_while_prompts_are_left():
    copied = Costs(40, 10, "expanded")
    assert best_k_formula(0.01, copied) == 1
    assert best_row(budget_table(0.01, 1, copied, pool_sizes=[8] * 1000, budget=5000)).k == 1
    # With every prompt in, the rest of the budget can only go into responses.
    assert best_row(budget_table(0.01, 1, copied, pool_sizes=[8] * 100, budget=20000)).k == 4


def test_owned_prompts_pools_and_budget_all_bind():
    shared = budget_table(0.5, 2, COSTS, pool_sizes=[2, 4, 4, 6], budget=240)
    assert [row.k for row in shared] == [1, 2, 3, 4, 5, 6]
    assert [row.prompts for row in shared] == [4, 4, 3, 3, 3, 3]
    fourth = shared[3]
    kept = np.minimum([2, 4, 4, 6], 4)
    assert fourth.pairs == pytest.approx(3 * kept.mean())
    assert fourth.cost == pytest.approx(3 * (40 + 10 * kept.mean()))
    # A token or a response has a vote: a prompt with more responses counts for more.
    votes = kept / kept.sum()
    assert fourth.variance == pytest.approx(4 * (0.5 * (votes**2).sum() + 2 * (votes**2 / kept).sum()) / 3)
    fourth = budget_table(0.5, 2, COSTS, pool_sizes=[2, 4, 4, 6], budget=240, loss_aggregation="prompt")[3]
    assert fourth.variance == pytest.approx(2.0 * (0.25 + np.mean(1 / kept)) / 3)
    assert all(row.cost <= 240 for row in shared)
    with pytest.raises(ValueError, match="does not pay for one prompt"):
        budget_table(0.25, 1, COSTS, pool_sizes=[4], budget=49)


def test_variance_formula_against_simulated_means():
    random = np.random.default_rng(4)
    n, k = 20, 3
    estimates = [
        np.mean([random.normal(0, math.sqrt(V_X)) + random.normal(0, math.sqrt(V_YX), k) for _ in range(n)])
        for _ in range(4000)
    ]
    rows = budget_table(V_X, V_YX, Costs(0, 1), pool_sizes=[k] * n, budget=n * k)
    assert np.var(estimates) == pytest.approx(rows[k - 1].variance, rel=0.08)


@pytest.mark.parametrize("aggregation", ["token", "prompt"])
def test_unequal_pools_are_priced_as_the_training_loss_weighs_them(aggregation):
    random = np.random.default_rng(6)
    n, sizes = 30, np.array([1, 2, 4, 12])
    estimates = []
    for _ in range(6000):
        kept = random.choice(sizes, n)
        means = random.normal(0, math.sqrt(V_X), n) + random.normal(0, np.sqrt(V_YX / kept))
        votes = kept if aggregation == "token" else np.ones(n)
        estimates.append((votes * means).sum() / votes.sum())
    rows = budget_table(V_X, V_YX, Costs(0, 1), pool_sizes=list(sizes) * 25, budget=150, loss_aggregation=aggregation)
    assert rows[11].prompts == 31
    assert np.var(estimates) == pytest.approx(rows[11].variance * 31 / n, rel=0.06)


def test_differences_below_rounding_are_none():
    base = np.array([1.0, 2.0, 4.0, 7.0, 9.0])
    found = estimate_components([value + np.array([0.0, 3e-16, 1e-8]) for value in base])
    assert (found.v_yx, found.ratio, found.differing) == (0.0, math.inf, 0)
    one = estimate_components([[1.0, 1.5], *([value] * 2 for value in base)])
    assert (one.v_yx, one.differing) == (0.0, 1)
    assert estimate_components([[1.0, 1.5], [2.0, 2.5], [3.0, 3.0]]).v_yx == pytest.approx(0.25 / 3)
    assert bootstrap_intervals([[value, value + 0.1] for value in base]) is not None
    assert bootstrap_intervals([[value, value + 0.1] for value in base[:4]]) is None
    assert bootstrap_intervals([[1.0, 1.5], *([value] * 2 for value in base)]) is None


def test_fit_over_runs():
    random = np.random.default_rng(5)
    k = np.repeat([1, 2, 4, 8, 16], 20)
    fits = [fit_inverse_k(k, 1.2 + 0.4 / k + 0.05 * random.standard_normal(len(k))) for _ in range(200)]
    assert np.mean([fit.a for fit in fits]) == pytest.approx(1.2, abs=0.005)
    assert np.mean([fit.b for fit in fits]) == pytest.approx(0.4, abs=0.01)
    assert np.std([fit.b for fit in fits]) == pytest.approx(np.mean([fit.b_error for fit in fits]), rel=0.15)
    assert 0 < fits[0].r_squared < 1
    with pytest.raises(ValueError, match="two different K"):
        fit_inverse_k([2, 2], [1.0, 1.1])
