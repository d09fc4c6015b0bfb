"""Experiment 7: train a small transformer on discrete tokens, with this package's selections and trainer.

In truth the three answers to a prompt (modes A, B and C) are equally likely, but the pool comes from a generator that
prefers A, as does the reward. Which selector brings the model closest to the truth?
"""

import tempfile
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback

from mrt_plugin.encoding import Encoder
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.groups import load_groups
from mrt_plugin.models.log_likelihood import log_likelihoods
from mrt_plugin.models.tiny_model import build_llama
from mrt_plugin.planning.progress import quiet
from mrt_plugin.selection import select
from mrt_plugin.simulation.experiments import Step, silent
from mrt_plugin.simulation.results import TokensFound
from mrt_plugin.trainer import MultiResponseSFTConfig, MultiResponseSFTTrainer

KS = (1, 2, 4, 8)
PROMPTS, TEST_PROMPTS, POOL = 200, 200, 32
PROMPT_TOKENS, CONTENT_TOKENS = 4, 4
MODES = ("A", "B", "C")
GENERATED = (0.95, 0.04, 0.01)
REWARD, REWARD_NOISE = (1.00, 0.97, 0.96), 0.02
PAIRS_PER_STEP = 64
SELECTORS = ("random_k", "best_k", "diverse_k", "diverse_best_k", "filter_then_spread")

WORDS = [
    *("<pad>", "<eos>", ":"),
    *(f"x{number}" for number in range(64)),
    *(f"m{mode}" for mode in MODES),
    *(f"c{number}" for number in range(128)),
]
PLACE = {word: number for number, word in enumerate(WORDS)}


def tokens(
    seed: int = 0,
    *,
    repeats: int = 2,
    steps: int = 100,
    ks: Sequence[int] = KS,
    selectors: Sequence[str] = SELECTORS,
    progress: Step = silent,
) -> TokensFound:
    """Train one transformer per selector, K and repeat, and measure the `distance` of each on new prompts."""
    tables = np.empty((2, len(selectors), len(ks), repeats))
    kept_modes: dict[str, list[list[float]]] = {name: [] for name in selectors}
    tokenizer, runs = build_tokenizer(), list(product(enumerate(selectors), enumerate(ks)))
    with quiet():
        for repeat in range(repeats):
            random = np.random.default_rng([seed, 7, repeat])
            groups = load_groups(Dataset.from_list([draw_pool(str(number), random) for number in range(PROMPTS)]))
            test = [draw_numbers(random) for _ in range(TEST_PROMPTS)]
            for done, ((row, name), (place, k)) in enumerate(runs, start=repeat * len(runs) + 1):
                chosen = select(groups, name, k=k, seed=seed + repeat, embedder=bag_of_words)
                if repeat == 0:
                    modes = [response.split()[0] for responses in chosen["responses"] for response in responses]
                    kept_modes[name].append([modes.count(f"m{mode}") / len(modes) for mode in MODES])
                model = train(chosen, tokenizer, k, steps, seed=int(random.integers(2**31)))
                tables[:, row, place, repeat] = distance(model, tokenizer, test)
                progress(done, repeats * len(runs))
    rows = [tables[0], *tables.mean(axis=-1)]
    mode_kl, kl_mean, nll_mean = (dict(zip(selectors, table.tolist(), strict=True)) for table in rows)
    return TokensFound(
        k=ks,
        prompts=PROMPTS,
        pool=POOL,
        repeats=repeats,
        steps=steps,
        pairs_per_step=PAIRS_PER_STEP,
        generated=GENERATED,
        mode_kl=mode_kl,
        mode_kl_mean=kl_mean,
        nll_mean=nll_mean,
        kept_modes=kept_modes,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(PLACE))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def draw_numbers(random: np.random.Generator) -> list[int]:
    return random.choice(64, size=PROMPT_TOKENS, replace=False).tolist()


def text_of_prompt(prompt: Sequence[int]) -> str:
    return " ".join(f"x{number}" for number in prompt) + " :"


def text_of_answer(prompt: Sequence[int], mode: int) -> str:
    start = sum(prompt) + 13 * mode
    return f" m{MODES[mode]} " + " ".join(f"c{(start + 17 * step) % 128}" for step in range(CONTENT_TOKENS))


def draw_pool(name: str, random: np.random.Generator) -> dict[str, Any]:
    prompt = draw_numbers(random)
    modes = random.choice(len(MODES), size=POOL, p=GENERATED)
    rewards = np.array(REWARD)[modes] + REWARD_NOISE * random.standard_normal(POOL)
    responses = [text_of_answer(prompt, int(mode)) for mode in modes]
    return {"id": name, "prompt": text_of_prompt(prompt), "responses": responses, "scores": rewards.tolist()}


def bag_of_words(texts: list[str]) -> np.ndarray:
    """Return which words each text contains, [n, words]."""
    vectors = np.zeros((len(texts), len(WORDS)))
    for row, text in enumerate(texts):
        vectors[row, [PLACE[word] for word in text.split()]] = 1
    return vectors


def train(groups: Dataset, tokenizer: PreTrainedTokenizerFast, k: int, steps: int, seed: int) -> LlamaForCausalLM:
    """Train a two-layer transformer of width 64 on selected groups, with 64 pairs per step for every K."""
    model = build_llama(tokenizer, seed, hidden=64, num_key_value_heads=4, max_position_embeddings=32)
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        args = MultiResponseSFTConfig(
            output_dir=folder,
            selector="all",
            prompt_format="plain",
            per_device_train_batch_size=PAIRS_PER_STEP // k,
            max_steps=steps,
            learning_rate=2e-3,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            max_length=32,
            row_length=512,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            seed=seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = MultiResponseSFTTrainer(model=model, args=args, train_dataset=groups, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


def distance(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """Measure KL(truth || model) over the modes, in nats, and the NLL per token of the three right answers."""
    encoder = Encoder(tokenizer, prompt_format="plain")
    pairs, firsts = [], []
    for prompt, mode in product(prompts, range(len(MODES))):
        pair = encoder.encode(text_of_prompt(prompt), text_of_answer(prompt, mode))
        first = list(pair.trained).index(True)
        pairs.append(pair)
        firsts.append(Pair(pair.input_ids[: first + 1], [False] * first + [True]))
    mode_log_probability = log_likelihoods(model, firsts).reshape(-1, len(MODES))
    nll = -log_likelihoods(model, pairs).sum() / sum(pair.trained_length for pair in pairs)
    return float((np.log(1 / len(MODES)) - mode_log_probability).mean()), float(nll)
