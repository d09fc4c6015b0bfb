"""Apply this package's selectors to the controlled experiments, where a response is one real number.

The similarity of two responses is 1 - |y - y'| / the largest distance in the pool. The selectors receive it as a
cosine of 1 - 2·|y - y'| / largest. `similarity: paper` converts this cosine back into the similarity.
"""

import numpy as np

from mrt_plugin.options import SelectionOptions
from mrt_plugin.selection.pool import Pool
from mrt_plugin.selection.registry import get_selector

SELECTORS = ("random_k", "best_k", "diverse_best_k", "filter_then_spread")
"""The paper uses the name GRADES for two selectors.

`diverse_best_k` is the facility location that it runs on language-model data. `filter_then_spread` is what its
simulator runs and publishes.
"""


def closeness(responses: np.ndarray) -> np.ndarray:
    """Compute 1 - distance / largest distance of the pool, [n, N, N], for responses [n, N]."""
    distances = np.abs(responses[:, :, None] - responses[:, None, :])
    value: np.ndarray = 1 - distances / np.maximum(distances.max(axis=(1, 2), keepdims=True), 1e-12)
    return value


def choose(
    selector: str, responses: np.ndarray, rewards: np.ndarray, k: int, random: np.random.Generator
) -> np.ndarray:
    """Choose K responses of each pool with a selector of this package.

    Args:
        selector: name of the selector.
        responses: [n, N] with N > K.
        rewards: [n, N].
        k: K, the number of responses to keep.
        random: generator for the draws of `random_k` and for breaking ties.

    Returns:
        [n, K] indices into the pools.
    """
    strategy = get_selector(selector)
    keys = random.integers(2**63, size=responses.shape, dtype=np.uint64)
    order = np.lexsort((keys, -rewards), axis=1)
    cosines = 2 * closeness(np.take_along_axis(responses, order, 1)) - 1 if strategy.needs_embeddings else None
    pools = []
    for row in range(len(responses)):
        pool = Pool({}, order[row].tolist(), scores=rewards[row, order[row]])
        pool.keys = keys[row, order[row]]
        if cosines is not None:
            pool.cosines = np.round(cosines[row], 6)
        pools.append(pool)
    chosen = strategy.choose(pools, SelectionOptions(k=k, alpha=1.0, similarity="paper"))
    return np.array([order[row, picks.positions] for row, picks in enumerate(chosen)])
