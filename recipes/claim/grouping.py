"""Measure how similar the gradients of a prompt's responses are, and how this affects steps made of groups.

Take the mean of n·K gradients, with K of each prompt. Its variance is 1 + (K-1)·rho times that of n·K gradients of
different prompts, with rho the intraclass correlation of the gradients. rho is measured on one half of the prompts,
and the variance of steps on the other half. So the measurement can contradict the formula.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from mrt_plugin.encoding import Encoder
from mrt_plugin.models.log_likelihood import pad_pairs
from mrt_plugin.planning.variance import estimate_components
from recipes.claim.model import base_model, build_encoder
from recipes.claim.records import read_records
from recipes.claim.train import RunKey, Scale, train_run
from recipes.claim.tuning import Tuned
from recipes.claim.world import RESPONSE, World, draw_pool

STEP_PAIRS = 16
"""Pairs per step."""
STEPS = 4000
"""Number of steps drawn for each variance."""


def pair_gradients(
    model: LlamaForCausalLM, groups: Sequence[dict[str, Any]], encoder: Encoder
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the gradient of each pair's mean token negative log-likelihood (NLL), and this NLL.

    Returns:
        Gradients [prompts, N, parameters] and NLL [prompts, N].
    """
    parameters = list(model.parameters())
    gradients, losses = [], []
    for group in groups:
        rows, values = [], []
        for pair in encoder.encode_group(group["prompt"], group["responses"]):
            input_ids, labels, mask = pad_pairs([pair], 0)
            loss = model(input_ids=input_ids, attention_mask=mask, labels=labels).loss
            rows.append(torch.cat([part.ravel() for part in torch.autograd.grad(loss, parameters)]).numpy())
            values.append(loss.item())
        gradients.append(np.stack(rows))
        losses.append(values)
    return np.stack(gradients), np.array(losses)


def intraclass_correlation(gradients: np.ndarray) -> float:
    """Estimate rho of vectors: the variance between prompts divided by the total, with unbiased traces of both.

    Args:
        gradients: [prompts, N, parameters].
    """
    prompts, n, _ = gradients.shape
    means = gradients.mean(axis=1)
    within = ((gradients - means[:, None]) ** 2).sum() / (prompts * (n - 1))
    between = ((means - means.mean(axis=0)) ** 2).sum() / (prompts - 1) - within / n
    return float(between / (between + within))


def step_variance(gradients: np.ndarray, k: int, random: np.random.Generator, steps: int = STEPS) -> float:
    """Measure the variance (trace) of the mean gradient of steps of `STEP_PAIRS` pairs, with K pairs per prompt.

    Prompts are drawn with replacement, a prompt's responses without.
    """
    prompts, n, size = gradients.shape
    flat = gradients.reshape(prompts * n, size)
    chosen = random.integers(prompts, size=(steps, STEP_PAIRS // k))
    places = random.permuted(np.broadcast_to(np.arange(n), (*chosen.shape, n)), axis=2)[:, :, :k]
    weights = np.zeros((steps, prompts * n))
    np.add.at(
        weights, (np.arange(steps)[:, None], (chosen[:, :, None] * n + places).reshape(steps, -1)), 1 / STEP_PAIRS
    )
    # |w G|² = w (G Gᵀ) wᵀ with centred gradients, so no step's gradient is computed explicitly.
    centred = flat - flat.mean(axis=0)
    products = centred @ centred.T
    return float(np.einsum("si,si->s", weights @ products, weights).mean())


def compare(gradients: np.ndarray, ks: Sequence[int], seed: int) -> dict[str, Any]:
    """Estimate rho on the first half of the prompts, and compare its prediction with steps of the other half.

    Returns:
        `rho`, and for each K the `predicted` and `measured` ratio of variances, grouped over scattered.
    """
    half = len(gradients) // 2
    rho = intraclass_correlation(gradients[:half])
    random = np.random.default_rng([seed, 4])
    scattered = step_variance(gradients[half:], 1, random)
    return {
        "rho": rho,
        "ratios": [
            {
                "k": k,
                "predicted": 1 + (k - 1) * rho,
                "measured": step_variance(gradients[half:], k, random) / scattered,
            }
            for k in ks
        ],
    }


def measure_grouping(
    folder: Path, scale: Scale, *, length: int = 64, seeds: Sequence[int] = (0, 1, 2), prompts: int = 96
) -> list[dict[str, Any]]:
    """Measure for some seeds the base model and one trained on 8n pairs of different prompts, on held-out prompts.

    Returns:
        For each seed and model the result of `compare`, and `loss`: the variance components of a response's loss.
    """
    tuned = Tuned(read_records(folder / "tuning.jsonl"))
    rows = []
    for seed in seeds:
        world = World(seed)
        pool = draw_pool(world, world.prompts(prompts, length=length, stream=1))
        base = base_model(seed, folder / "bases", steps=scale.base_steps)
        _, trained = train_run(
            RunKey(length, "k1", seed, tuned.best("k1", 8 * scale.n)), scale, folder / "bases", layout="expanded"
        )
        for stage, model in (("base model", base), ("trained", trained)):
            gradients, losses = pair_gradients(model, pool, build_encoder())
            parts = estimate_components(list(losses * RESPONSE))
            row = {"seed": seed, "stage": stage, "prompts": prompts, **compare(gradients, (2, 4, 8), seed)}
            rows.append({**row, "loss": {**asdict(parts), "rho": parts.rho}})
    return rows
