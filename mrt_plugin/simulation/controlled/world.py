"""Generate the data of the controlled experiments: prompts with three right answers (arXiv 2606.00544, section 5).

A prompt is x in R^5, standard normal. An answer is y = f(x) plus one of three offsets plus noise, with
f(x) = sin(2·x_1) + x_2/2. The reward -(y - f(x))² is highest for the middle mode, although all three modes are equally
right.
"""

import numpy as np

DIMENSION = 5
OFFSETS = np.array([-1.5, 0.0, 1.5])
NOISE = 0.1


def draw_prompts(count: int, random: np.random.Generator) -> np.ndarray:
    """Draw prompts, [count, 5] float64."""
    return random.standard_normal((count, DIMENSION))


def centre(prompts: np.ndarray) -> np.ndarray:
    """Compute f(x), [n], for prompts [n, 5]."""
    value: np.ndarray = np.sin(2 * prompts[..., 0]) + 0.5 * prompts[..., 1]
    return value


def draw_responses(prompts: np.ndarray, count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` independent answers per prompt, and the mode of each: [n, count] float64 and int64."""
    modes = random.integers(len(OFFSETS), size=(len(prompts), count))
    noise = NOISE * random.standard_normal(modes.shape)
    return centre(prompts)[:, None] + OFFSETS[modes] + noise, modes


def rewards(prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Compute the rewards -(y - f(x))², [n, count]."""
    value: np.ndarray = -((responses - centre(prompts)[:, None]) ** 2)
    return value


def quadrature(points: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights that average a smooth function of y - f(x) over the answers, exact up to round-off.

    Returns:
        nodes [3·points] and weights that sum to 1 (Gauss-Hermite around each mode).
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    all_nodes = (OFFSETS[:, None] + NOISE * nodes).ravel()
    return all_nodes, np.tile(weights / weights.sum() / len(OFFSETS), len(OFFSETS))
