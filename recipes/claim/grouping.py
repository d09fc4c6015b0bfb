"""How far the gradients of a prompt's responses agree, and what that does to a step that is made of groups.

The mean of n·K gradients, K of each prompt, has 1 + (K-1)·rho times the variance of the mean of n·K gradients of
different prompts, with rho their intraclass correlation. Here rho is measured on one half of the prompts, and the
variance of steps on the other, so that the formula can fail.
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
"""Pairs of a step."""
STEPS = 4000
"""Steps drawn for each variance."""


def pair_gradients(
    model: LlamaForCausalLM, groups: Sequence[dict[str, Any]], encoder: Encoder
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the mean token NLL of each pair alone, [prompts, N, parameters], and that NLL, [prompts, N]."""
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
    """rho of vectors: the variance between prompts over the total, both as traces, unbiased.

    Args:
        gradients: [prompts, N, parameters].
    """
    prompts, n, _ = gradients.shape
    means = gradients.mean(axis=1)
    within = ((gradients - means[:, None]) ** 2).sum() / (prompts * (n - 1))
    between = ((means - means.mean(axis=0)) ** 2).sum() / (prompts - 1) - within / n
    return float(between / (between + within))


def step_variance(gradients: np.ndarray, k: int, random: np.random.Generator, steps: int = STEPS) -> float:
    """The variance (trace) of the mean gradient of steps of `STEP_PAIRS` pairs, K of each prompt drawn.

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
    # |w G|² = w (G Gᵀ) wᵀ, with the gradients centred: no step's gradient is ever written down.
    centred = flat - flat.mean(axis=0)
    products = centred @ centred.T
    return float(np.einsum("si,si->s", weights @ products, weights).mean())


def compare(gradients: np.ndarray, ks: Sequence[int], seed: int) -> dict[str, Any]:
    """rho from the first half of the prompts; the ratio it predicts, and the one that steps of the other half have.

    Returns:
        `rho`, and per K its `predicted` and `measured` ratio of variances, grouped over scattered.
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
    """Of some seeds, the base model and one trained on 8n pairs of different prompts; the prompts are held-out ones.

    Returns:
        Per seed and model what `compare` returns, and `loss`: the components of the variance of a response's loss.
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
