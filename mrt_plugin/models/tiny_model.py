"""Small Llamas: a chat model that is built and trained in seconds, and the model of speed measurements."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.models.log_likelihood import pad_pairs

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: Sequence[str], vocabulary: int = 512) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a ChatML template on `texts`. It can encode any text.

    Example:

    >>> tokenizer = build_tokenizer(["Suggest a drink.", "Try black tea."])
    >>> tokenizer.decode(tokenizer("Try black tea.")["input_ids"])
    'Try black tea.'
    """
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "system\nuser\nassistant\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def build_llama(
    tokenizer: PreTrainedTokenizerBase | None = None, seed: int = 0, *, hidden: int = 128, **config: Any
) -> LlamaForCausalLM:
    """Build a randomly initialised Llama in fp32, by default with two layers and grouped-query attention.

    Args:
        tokenizer: gives the vocabulary size and the ids of special tokens.
        seed: seed of the weights. torch's random state is not changed.
        hidden: the hidden size. The feed-forward layers are twice as wide.
        config: other fields of `LlamaConfig`.
    """
    settings: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        **{name: tokenizer and getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }
    if tokenizer is not None:
        settings["vocab_size"] = len(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**settings | config))


def random_llama(vocabulary: int = 1000) -> LlamaForCausalLM:
    """Build the Llama for speed measurements, in `mrt bench` and for the costs in the claim experiment."""
    return build_llama(
        hidden=256,
        vocab_size=vocabulary,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1 << 20,
        pad_token_id=0,
    )


def pretrain(
    model: LlamaForCausalLM,
    draw: Callable[[int], Sequence[Pair]],
    *,
    steps: int,
    learning_rate: float = 3e-3,
    progress: Callable[[int], None] = lambda step: None,
) -> float:
    """Train all weights on fresh pairs, so that the model knows the format and vocabulary before fine-tuning.

    Args:
        draw: returns the pairs of a step.
        steps: optimizer steps of AdamW, with a linear decay to zero.
        progress: called after each step.

    Returns:
        The mean negative log-likelihood per trained token, in nats, over the last tenth of the steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 20, 1) * (1 - step / steps))
    model.train()
    losses = []
    for step in range(steps):
        input_ids, labels, mask = pad_pairs(draw(step), 0)  # padding is masked, so any token will do
        loss = model(input_ids=input_ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        progress(step + 1)
    model.eval()
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save model and tokenizer in the format that libraries load by path."""
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
