"""Generate prompts from 60 prompts with a tiny model, filter them, and say which the world can answer."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from mrt_plugin.encoding import Encoder, Pair
from mrt_plugin.groups import load_groups
from mrt_plugin.models.tiny_model import build_llama, build_tokenizer, pretrain, save
from mrt_plugin.pipeline.augment import AugmentSettings, generate_prompts
from mrt_plugin.planning.diversity import prompt_diversity
from mrt_plugin.planning.progress import quiet
from mrt_plugin.sampling import LocalModel, SamplingSettings
from recipes.objectives.world import draw_data

OWNED = 60
"""Prompts at the start."""
ADDED = 60
"""The most prompts that a run adds: as many in every arm of a seed."""
SUPPORTS = (1, 2, 4)
INSTRUCTION = "Examples:\n{examples}\nWrite a new one."
SETTINGS = AugmentSettings(supports=SUPPORTS, candidates=150, threshold=0.5)
"""Prompts of this world begin alike. Two with two of three words in common overlap by 0.4 to 0.6, others by 0.3."""


def generate(seed: int, folder: Path) -> dict[str, Any]:
    """Generate candidates for a seed, and return the gains; write the ids of the prompts that each arm adds.

    A candidate that is no training prompt of the world has no known answers: it is counted and left out.
    """
    result = folder / f"{seed}.json"
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found
    folder.mkdir(parents=True, exist_ok=True)
    data = draw_data(seed)
    instruction = folder / "instruction.txt"
    instruction.write_text(INSTRUCTION, encoding="utf-8")
    model = _generator(seed, folder / f"generator-{seed}")
    owned, output = data.groups[:OWNED], folder / f"{seed}.jsonl"
    with quiet():
        made = generate_prompts(
            load_groups(Dataset.from_list(owned)),
            LocalModel(str(model)),
            output,
            SETTINGS,
            SamplingSettings(seed=seed, max_tokens=40),
            instruction=instruction,
        )
    kept = [json.loads(line)["prompt"] for line in output.read_text(encoding="utf-8").splitlines()]
    dropped = [one.prompt for one in made.dropped]
    ids = {group["prompt"]: group["id"] for group in data.groups[OWNED:]}
    arms = {"filtered": kept, "dropped": dropped}
    known = {
        name: [ids[prompt] for prompt in dict.fromkeys(prompts) if prompt in ids] for name, prompts in arms.items()
    }
    added = min(ADDED, *map(len, known.values()))
    counts: dict[str, Any] = {"kept": len(kept), "dropped": len(dropped), "added": added}
    counts["gains"] = list(map(asdict, made.gains))
    for name, found_ids in known.items():
        counts[f"{name}_known"] = len(found_ids)
        chosen = found_ids[:added]
        (folder / f"{seed}-{name}.txt").write_text("\n".join([*(group["id"] for group in owned), *chosen]) + "\n")
        counts[f"{name}_d"] = prompt_diversity(
            [group["prompt"] for group in data.groups if group in owned or group["id"] in chosen]
        ).d
    counts["owned_d"] = prompt_diversity([group["prompt"] for group in owned]).d
    result.write_text(json.dumps(counts) + "\n", encoding="utf-8")
    return counts


def _generator(seed: int, folder: Path) -> Path:
    """Train a tiny model to write a prompt of this world after examples of others, and return its folder."""
    if (folder / "model.safetensors").is_file():
        return folder
    prompts = [group["prompt"] for group in draw_data(seed).groups]
    tokenizer = build_tokenizer([*prompts, INSTRUCTION])
    encoder, random = Encoder(tokenizer), np.random.default_rng([seed, 7])

    def draw(step: int) -> list[Pair]:
        pairs = []
        for _ in range(32):
            count = int(random.choice(SUPPORTS))
            *supports, target = random.choice(prompts, size=count + 1, replace=False)
            examples = "\n\n".join(f"{place}. {text}" for place, text in enumerate(supports, start=1))
            pairs.append(encoder.encode(INSTRUCTION.replace("{examples}", examples), str(target)))
        return pairs

    model = build_llama(tokenizer, seed)
    pretrain(model, draw, steps=200)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, folder)
    return folder
