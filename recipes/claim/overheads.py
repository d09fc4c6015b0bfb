"""Measure the costs besides training: choosing K of a pool, and the proof that the shared layout is exact."""

import time
from statistics import median
from typing import Any

import torch
from datasets import Dataset

from mrt_plugin.attention import prove, resolve_backend
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.groups import load_groups
from mrt_plugin.layout.group_row import build_group_row
from mrt_plugin.loss.token_nll import TokenNLL
from mrt_plugin.models.tiny_model import random_llama
from mrt_plugin.selection.run import select_indices
from recipes.claim.world import POOL, RESPONSE, World, draw_pool

TURNS = 3
"""Repetitions of each measurement; the median is used."""


def proof_seconds(length: int) -> float:
    """Measure one proof in seconds, for a group of 8 with a prompt of `length` tokens."""
    random = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, 1000, (length,), generator=random).tolist()
    answers = torch.randint(3, 1000, (POOL, RESPONSE), generator=random).tolist()
    row = build_group_row([Pair(prompt + answer, [False] * length + [True] * RESPONSE) for answer in answers])
    seconds = []
    for _ in range(TURNS):
        model = random_llama()  # the model on which training is priced
        backend = resolve_backend("auto", model.config, device_type="cpu")
        backend.prepare_model(model)
        seconds.append(prove(model, backend, row, compute=TokenNLL(model).bound(model)).seconds)
    return median(seconds)


def selection_seconds(length: int, prompts: int = 512) -> float:
    """Measure `random_k` with K = 4 of a pool of 8, in seconds per prompt."""
    world = World(0)
    groups = load_groups(Dataset.from_list(draw_pool(world, world.prompts(prompts, length=length, stream=0))))
    seconds = []
    for _ in range(TURNS):
        began = time.perf_counter()
        select_indices(groups, "random_k", k=4, seed=0)
        seconds.append(time.perf_counter() - began)
    return median(seconds) / prompts


def measure(length: int) -> dict[str, Any]:
    """Measure both, in seconds."""
    return {"selection": selection_seconds(length), "proof": proof_seconds(length)}
