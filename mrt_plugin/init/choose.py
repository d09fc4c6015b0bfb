"""Choose the values of a first recipe from the data, the model and the card, each with its reason."""

import math
import re
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PretrainedConfig

from mrt_plugin.doctor.memory import Method, estimate_memory
from mrt_plugin.init.look import DataFacts

KEPT = 0.99
"""Share of the pairs that `max_length` keeps where the longest are more than twice as long as these."""
FREE = 0.85
"""Share of the card that the estimate may fill. The rest is for CUDA and fragments."""
LONG_ROW = 8192
"""The most tokens of a row, even where more fit: longer rows are slower per token."""
TINY = 10_000_000
"""Parameters below which a model trains with the demo's learning rate, and on little data with its epochs."""
LITTLE = 100_000
"""Tokens of an epoch up to which several more of them take a laptop minutes."""
CHECKED = 20
"""The fewest held-out prompts that are worth an evaluation."""


@dataclass(frozen=True)
class Card:
    """Where the run trains: a GPU with its memory in GiB, or the CPU."""

    name: str
    memory_gib: float | None

    @property
    def is_cpu(self) -> bool:
        return self.memory_gib is None


def parse_card(text: str) -> Card:
    """Return the card of a text such as `12gb` or `24 GB`, or the CPU for `cpu`.

    Raises:
        ValueError: for any other text.

    Example:

    >>> parse_card("12gb")
    Card(name='12 GB', memory_gib=12.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gi?b?)?", text.strip().lower())
    if text.strip().lower() == "cpu":
        return Card("CPU", None)
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no card: give its memory, such as 12gb, or cpu.")
    return Card(f"{float(found[1]):g} GB", float(found[1]))


@dataclass(frozen=True)
class Value:
    """A chosen value with the reason for it."""

    value: float | int | str | bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """The values of a recipe."""

    selector: Value
    k: Value
    max_length: Value
    row_length: Value
    load_in_4bit: Value
    lora_r: Value
    micro_batch: Value
    accumulation: Value
    epochs: Value
    learning_rate: Value
    held_out: Value
    gradient_checkpointing: Value
    memory: str
    """The estimate that the batch was chosen by, as a sentence."""


def choose(facts: DataFacts, config: PretrainedConfig, card: Card) -> Choice:
    """Choose values that fit the card.

    Args:
        facts: of the pool.
        config: of the model.
        card: where the run trains.

    Raises:
        ValueError: if one pair at a time does not fit the card, even in 4 bit.
    """
    k = _choose_k(facts)
    max_length = _choose_max_length(facts, config)
    row = _choose_row(facts, int(k.value), int(max_length.value))
    step = 8 if facts.groups < 5_000 else 16
    checkpointing = Value(not card.is_cpu, "recomputes activations: less memory for a third more time")
    if card.is_cpu:
        checkpointing = Value(False, "the CPU has memory enough, and recomputing costs a third more time")
    bits, batch, row, memory = _fit(facts, config, card, row, int(max_length.value), step, bool(checkpointing.value))
    share = _held_out(facts.groups)
    size = _parameters(config)
    rank = 8 if size < 1.5e9 else 16
    epochs = Value(2, "every epoch shows all k responses of a prompt")
    rate = Value(2e-4, "usual for LoRA; ten times that of full fine-tuning")
    if size < TINY:
        if facts.groups * int(k.value) * facts.pairs.mean() < LITTLE:
            epochs = Value(8, "the model is tiny, and learns little in the usual 2")
        rate = Value(2e-3, "ten times the usual 2e-4: the model is tiny")
    return Choice(
        selector=_choose_selector(facts),
        k=k,
        max_length=max_length,
        row_length=row,
        load_in_4bit=bits,
        lora_r=Value(rank, "8 suits models below 1.5B parameters, 16 those up to 10B"),
        micro_batch=batch,
        accumulation=Value(math.ceil(step / int(batch.value)), f"a step is {step} prompts x {k.value} responses"),
        epochs=epochs,
        learning_rate=rate,
        held_out=share,
        gradient_checkpointing=checkpointing,
        memory=memory,
    )


def _choose_selector(facts: DataFacts) -> Value:
    if facts.largest == 1:
        return Value("all", "each prompt has one response; `mrt sample` draws more")
    other = "diverse_best_k also uses your scores" if facts.scored else "diverse_k picks different ones"
    return Value("random_k", f"unbiased: likely answers stay likely; {other}")


def _choose_k(facts: DataFacts) -> Value:
    if facts.largest == 1:
        return Value(1, "of 1")
    k = min(4, facts.middle)
    pools = f"{facts.smallest}" if facts.smallest == facts.largest else f"{facts.smallest} to {facts.largest}"
    return Value(k, f"of {pools}; `mrt plan` measures how many are worth keeping with your model")


def _choose_max_length(facts: DataFacts, config: PretrainedConfig) -> Value:
    longest, enough = int(facts.pairs.max()), int(np.quantile(facts.pairs, KEPT))
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or longest
    wanted = longest if longest <= 2 * enough else enough
    chosen = min(_up(wanted, 64), limit)
    dropped = int((facts.pairs > chosen).sum())
    if not dropped:
        return Value(chosen, f"the longest prompt with one response has {longest:,} tokens: nothing is dropped")
    share = 100 * dropped / len(facts.pairs)
    return Value(chosen, f"drops {share:.1f} % of the pairs, which are longer (up to {longest:,} tokens)")


def _choose_row(facts: DataFacts, k: int, max_length: int) -> Value:
    group = float(np.quantile(facts.prompts + k * (facts.answers + 1), KEPT))
    chosen = min(max(_up(group, 256), max_length), max(LONG_ROW, max_length))
    return Value(chosen, f"tokens of a row: a prompt once with its {k} responses; longer groups are split")


def _fit(
    facts: DataFacts, config: PretrainedConfig, card: Card, row: Value, max_length: int, step: int, checkpointing: bool
) -> tuple[Value, Value, Value, str]:
    """Return load_in_4bit, the micro-batch, the row length and the estimate: the first combination that fits."""
    if card.is_cpu:
        batch = Value(min(4, step), "groups of one forward pass: CPUs gain nothing from more")
        found = _estimate(config, None, int(batch.value), int(row.value), checkpointing, torch.float32)
        memory = f"about {found:.1f} GiB at the peak, by an estimate from shapes"
        return Value(False, "4-bit weights save GPU memory; on a CPU they only cost time"), batch, row, memory
    assert card.memory_gib is not None
    space = FREE * card.memory_gib
    lengths = [int(row.value)]
    while lengths[-1] > max_length:
        lengths.append(max(lengths[-1] // 2, max_length))
    for bits, words in ((None, "16-bit weights fit"), (4, "16-bit weights do not fit: QLoRA")):
        for length in lengths:
            for size in (8, 4, 2, 1):
                if size > step or (bits is None and length < lengths[0]):
                    continue
                found = _estimate(config, bits, size, length, checkpointing, torch.bfloat16)
                if found <= space:
                    memory = f"{found:.1f} GiB of {card.name} by an estimate from shapes, not measured"
                    shorter = "" if length == lengths[0] else "; shorter than a group, so that it fits the card"
                    batch = Value(size, "groups of one forward pass: what fits the card")
                    return (
                        Value(bits == 4, words),
                        batch,
                        replace(row, value=length, reason=row.reason + shorter),
                        memory,
                    )
    least = _estimate(config, 4, 1, max_length, checkpointing, torch.bfloat16)
    raise ValueError(
        f"one row of {max_length:,} tokens needs {least:.1f} GiB even with 4-bit weights, and {card.name} leaves "
        f"{space:.1f}: choose a smaller model, a larger card, or shorter responses."
    )


def _estimate(
    config: PretrainedConfig, bits: int | None, rows: int, length: int, checkpointing: bool, dtype: torch.dtype
) -> float:
    """Return the estimated peak memory of a LoRA step in GiB."""
    method = Method(bits, lora_rank=16, dtype=dtype, gradient_checkpointing=checkpointing)
    return estimate_memory(config, method, rows=rows, length=length).total


def _parameters(config: PretrainedConfig) -> int:
    return estimate_memory(config, Method(), rows=1, length=8).parameters


def _held_out(groups: int) -> Value:
    if groups < 2 * CHECKED:
        return Value(0, f"{groups} prompts are too few to hold some out")
    share = min(0.05, 500 / groups)
    share = round(max(share, CHECKED / groups), 3)
    return Value(share, f"about {round(share * groups):,} prompts, by a hash of the prompt: none is on both sides")


def _up(number: float, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple
