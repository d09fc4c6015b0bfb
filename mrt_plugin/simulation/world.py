"""The data of the controlled experiments (arXiv 2606.00544, section 5), and this package's selectors on it.

A prompt is x in R^5, standard normal. An answer is f(x) = sin(2·x_1) + x_2/2, plus one of three offsets, plus noise.
"""

import numpy as np

from mrt_plugin.options import SelectionOptions
from mrt_plugin.selection.pool import Pool
from mrt_plugin.selection.registry import get_selector

DIMENSION = 5
OFFSETS, NOISE = np.array([-1.5, 0.0, 1.5]), 0.1

SELECTORS = ("random_k", "best_k", "diverse_best_k", "filter_then_spread")
"""The paper's GRADES is `diverse_best_k` on language-model data, and `filter_then_spread` in its simulator."""


def draw_prompts(count: int, random: np.random.Generator) -> np.ndarray:
    return random.standard_normal((count, DIMENSION))


def centre(prompts: np.ndarray) -> np.ndarray:
    """Compute f(x), [n], for prompts [n, 5]."""
    return np.sin(2 * prompts[..., 0]) + 0.5 * prompts[..., 1]


def draw_responses(prompts: np.ndarray, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` independent answers per prompt, and the mode of each: [n, count] float64 and int64."""
    modes = random.integers(len(OFFSETS), size=(len(prompts), count))
    noise = NOISE * random.standard_normal(modes.shape)
    return centre(prompts)[:, None] + OFFSETS[modes] + noise, modes


def draw_sets(sets: int, prompts: int, pool: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw several training sets: prompts [sets, n, 5] and their pools [sets, n, N]."""
    drawn = np.stack([draw_prompts(prompts, random) for _ in range(sets)])
    return drawn, np.stack([draw_responses(x, pool, random)[0] for x in drawn])


def rewards(prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
    return -((responses - centre(prompts)[:, None]) ** 2)


def quadrature(points: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes [3·points] and weights that average a function of y - f(x) over the answers (Gauss-Hermite)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    all_nodes = (OFFSETS[:, None] + NOISE * nodes).ravel()
    return all_nodes, np.tile(weights / weights.sum() / len(OFFSETS), len(OFFSETS))


def closeness(responses: np.ndarray) -> np.ndarray:
    """Compute the similarity 1 - distance / largest distance of the pool, [n, N, N], for responses [n, N]."""
    distances = np.abs(responses[:, :, None] - responses[:, None, :])
    return 1 - distances / np.maximum(distances.max(axis=(1, 2), keepdims=True), 1e-12)


def choose(
    selector: str, responses: np.ndarray, rewards: np.ndarray, k: int, random: np.random.Generator
) -> np.ndarray:
    """Choose K responses of each pool with a selector of this package, and return their indices, [n, K].

    The selector gets the similarity s as a cosine of 2·s - 1, which `similarity: paper` converts back.
    """
    strategy = get_selector(selector)
    keys = random.integers(2**63, size=responses.shape, dtype=np.uint64)
    order = np.lexsort((keys, -rewards), axis=1)
    cosines = 2 * closeness(np.take_along_axis(responses, order, 1)) - 1 if strategy.needs_embeddings else None
    pools = []
    for row, places in enumerate(order):
        pool = Pool({}, places.tolist(), scores=rewards[row, places])
        pool.keys = keys[row, places]
        if cosines is not None:
            pool.cosines = np.round(cosines[row], 6)
        pools.append(pool)
    chosen = strategy.choose(pools, SelectionOptions(k=k, alpha=1.0, similarity="paper"))
    return np.array([places[picks.positions] for places, picks in zip(order, chosen, strict=True)])
