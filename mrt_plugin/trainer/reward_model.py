"""Train a reward model with TRL's `RewardTrainer` on a pool's scores: on one part of the prompts, for use on the rest.

The split is that of arXiv 2306.17492 and 2403.11124 (RM-train and RM-test): a reward model that chooses or judges
responses must not have been trained on their prompts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from peft import LoraConfig, TaskType
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
from trl import RewardConfig, RewardTrainer

from mrt_plugin.groups.keys import canonical, digest, held_out
from mrt_plugin.groups.write import rows_of
from mrt_plugin.planning.paired import LEVEL, Bootstrap, Measured
from mrt_plugin.planning.progress import Progress, quiet
from mrt_plugin.scoring.agreement import Agreement, agreement
from mrt_plugin.scoring.reward_model import encode_conversation
from mrt_plugin.scoring.scores import score_columns
from mrt_plugin.scoring.training_prompts import write_training_prompts
from mrt_plugin.trainer.reward_options import RewardOptions


@dataclass(frozen=True)
class RewardPart:
    """Counts of one part of the prompts, and how well the trained model orders its pairs.

    `accuracy` is over all pairs of untied responses; the model's own ties count half. Its interval is a bootstrap's
    over prompts.
    """

    prompts: int
    pairs: int
    ties: int
    accuracy: float | None
    interval: list[float] | None
    agreement: Agreement


@dataclass(frozen=True)
class RewardModelResult:
    output: str
    trained_pairs: int
    """Pairs that were trained on: at most `max_pairs` of a prompt, and none that is too long."""
    too_long: int
    steps: int
    loss: float
    training: RewardPart
    held_out: RewardPart
    options: dict[str, Any] = field(default_factory=dict)
    level: float = LEVEL


def split_prompts(groups: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return the groups to train a reward model on, and the others, by a hash of the prompt and the seed.

    Groups with the same prompt are on the same side, in any order of the groups and in any other pool.
    """
    first = [held_out(prompt, share, seed) for prompt in groups["prompt"]]
    parts = [[place for place, side in enumerate(first) if side is wanted] for wanted in (True, False)]
    for part, what in zip(parts, ("train on", "test on"), strict=True):
        if not part:
            raise ValueError(f"{len(groups):,} prompts, of which none is left to {what}: give more, or another share.")
    return groups.select(parts[0]), groups.select(parts[1])


def score_pairs(scores: Sequence[float]) -> tuple[list[tuple[int, int]], int]:
    """Return all pairs (better, worse) of a prompt's responses by score, and the number of ties, which are left out.

    >>> score_pairs([1.0, 3.0, 1.0])
    ([(1, 0), (1, 2)], 1)
    """
    places = [(i, j) for i in range(len(scores)) for j in range(i + 1, len(scores))]
    pairs = [(i, j) if scores[i] > scores[j] else (j, i) for i, j in places if scores[i] != scores[j]]
    return pairs, len(places) - len(pairs)


def train_reward_model(
    groups: Dataset,
    model: str,
    output: str | Path,
    options: RewardOptions | None = None,
    *,
    score_cache: str | Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> RewardModelResult:
    """Train a reward model on the scores of one part of the prompts, and measure it on the other part.

    The folder `output` is a model for sequence classification with its tokenizer, and is a `scorer` everywhere. The
    model reads conversations in its own chat template, or pairs of texts if it has none, here and as a scorer.

    Args:
        groups: groups with a column `scores`, as `load_groups` returns them.
        model: folder or hub name of the base: a language model, or any model for sequence classification.
        output: the folder to write.
        options: how it is trained.
        score_cache: the directory of the cache of scores.
        progress: progress callback.

    Raises:
        ValueError: if there are no scores, or no two responses of a prompt differ in score; if no pair is short
            enough; or if the base cannot be used.

    Example:

    ```python
    from mrt_plugin import load_groups
    from mrt_plugin.trainer.reward_model import train_reward_model
    from mrt_plugin.trainer.reward_options import RewardOptions

    pool = load_groups("pool.jsonl")
    result = train_reward_model(pool, "path/to/base", "reward", RewardOptions(lora_r=16, learning_rate=1e-4))
    print(result.held_out.accuracy)
    ```
    """
    options, output = options or RewardOptions(), Path(output)
    if "scores" not in groups.column_names:
        raise ValueError("The groups have no scores to learn from: give a pool with a column `scores`.")
    first, rest = split_prompts(groups, options.share, options.seed)
    set_seed(options.seed)  # the head is drawn
    with quiet():  # a new head is expected
        tokenizer, base = _load(model)
    pairs, too_long = _encoded(first, tokenizer, options)
    if not len(pairs):
        if too_long:
            raise ValueError(f"All {too_long:,} pairs are longer than max_length={options.max_length}: raise it.")
        raise ValueError(
            f"No two responses to any of the {len(first):,} training prompts differ in score: there is nothing to "
            "learn. Score the pool by a rule or a judge that tells responses apart."
        )
    trained, steps, loss = _train(base, tokenizer, pairs, options, progress)
    trained.save_pretrained(output)
    tokenizer.save_pretrained(output)
    write_training_prompts(output, first["prompt"])
    progress("measuring", 0, 2)
    training = measure_reward_model(first, str(output), options.seed, score_cache)
    progress("measuring", 1, 2)
    others = measure_reward_model(rest, str(output), options.seed, score_cache)
    progress("measuring", 2, 2)
    how = {"model": model} | asdict(options)
    return RewardModelResult(str(output), len(pairs), too_long, steps, loss, training, others, how)


def measure_reward_model(
    groups: Dataset, scorer: str, seed: int = 0, score_cache: str | Path | None = None
) -> RewardPart:
    """Measure how well a scorer orders the pairs of responses that differ in the column `scores`."""
    ((_, column),) = score_columns(groups, scorer, score_cache=score_cache, known_training=True).items()
    right, weights, ties = [], [], 0
    for scores, given in zip(groups["scores"], column["scores"], strict=True):
        pairs, tied = score_pairs(scores)
        ties += tied
        right.append(sum(0.5 + 0.5 * np.sign(given[better] - given[worse]) for better, worse in pairs))
        weights.append(float(len(pairs)))
    some = np.array(weights) > 0
    measured = Measured(np.where(some, np.array(right, np.float64), np.nan), np.array(weights))
    ends = Bootstrap(len(groups), seed).interval(measured)
    found = agreement(groups["scores"], column["scores"])
    return RewardPart(len(groups), int(sum(weights)), ties, measured.value, ends, found)


def _load(name: str) -> tuple[Any, Any]:
    """Load a base with one label and its tokenizer. A new head is drawn at random."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"model={name!r} could not be loaded as the base of a reward model: {problem} Give a language model, or a "
            "model for sequence classification."
        ) from problem
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"model={name!r}: its tokenizer has neither a padding token nor an end token.")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # decoders read the score before the padding
    return tokenizer, model


def _encoded(groups: Dataset, tokenizer: Any, options: RewardOptions) -> tuple[Dataset, int]:
    """Return the encoded pairs of all groups, and the number of those that are too long.

    `RewardTrainer` takes the columns `chosen_ids` and `rejected_ids` as they are.
    """
    left_out = 0

    def rows() -> Iterator[dict[str, list[int]]]:
        nonlocal left_out
        for group in rows_of(groups):
            pairs, _ = score_pairs(group["scores"])
            if len(pairs) > options.max_pairs:
                name = (b"reward pair", str(options.seed).encode(), canonical(group["prompt"]))
                texts = [canonical(response) for response in group["responses"]]
                pairs.sort(key=lambda pair: digest(*name, texts[pair[0]], texts[pair[1]]))
                pairs = pairs[: options.max_pairs]
            used = sorted({place for pair in pairs for place in pair})
            given = {
                place: encode_conversation(tokenizer, group["prompt"], group["responses"][place]) for place in used
            }
            for pair in pairs:
                sides = dict(zip(("chosen", "rejected"), (given[place] for place in pair), strict=True))
                if max(len(side["input_ids"]) for side in sides.values()) > options.max_length:
                    left_out += 1
                    continue
                row = {f"{name}_ids": side["input_ids"] for name, side in sides.items()}
                yield row | {f"{name}_types": side.get("token_type_ids", []) for name, side in sides.items()}

    names = [f"{side}_{what}" for side in ("chosen", "rejected") for what in ("ids", "types")]
    found = list(rows())
    features = Features({name: List(Value("int64")) for name in names})
    return Dataset.from_dict({name: [row[name] for row in found] for name in names}, features=features), left_out


@dataclass(frozen=True)
class _Collator:
    """Pads the chosen conversations of a batch, then the rejected ones, as `RewardTrainer` expects them."""

    tokenizer: Any

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rows = []
        for side in ("chosen", "rejected"):
            for example in examples:
                types = example[f"{side}_types"]
                rows.append({"input_ids": example[f"{side}_ids"]} | ({"token_type_ids": types} if types else {}))
        return dict(self.tokenizer.pad(rows, padding=True, return_tensors="pt"))


class _Report(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress("training", state.global_step, state.max_steps)


def _train(
    model: Any, tokenizer: Any, pairs: Dataset, options: RewardOptions, progress: Progress
) -> tuple[Any, int, float]:
    """Return the trained model, with its adapter merged, the number of steps, and the mean loss."""
    cuda = torch.cuda.is_available()
    lora = None
    if options.lora_r:
        rank: dict[str, Any] = {"r": options.lora_r, "lora_alpha": 2 * options.lora_r, "lora_dropout": 0.0}
        lora = LoraConfig(task_type=TaskType.SEQ_CLS, target_modules="all-linear", **rank)
    with TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                output_dir=folder,
                num_train_epochs=options.epochs,
                learning_rate=options.learning_rate,
                per_device_train_batch_size=options.batch_size,
                max_length=None,  # too long pairs are already left out
                seed=options.seed,
                use_cpu=not cuda,
                bf16=cuda and torch.cuda.is_bf16_supported(),
                remove_unused_columns=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
            ),
            data_collator=_Collator(tokenizer),
            train_dataset=pairs,
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[_Report(progress)],
        )
        trainer.remove_callback(PrinterCallback)  # standard output is only for results
        found = trainer.train()
    trained: Any = trainer.model
    if lora is not None:
        trained = trained.merge_and_unload()
    return trained, int(found.global_step), float(found.training_loss)
