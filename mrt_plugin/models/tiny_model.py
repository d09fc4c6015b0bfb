"""Small models: a chat Llama that is built and trained in seconds, and the models of speed measurements."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from mrt_plugin.encoding.pair import Pair
from mrt_plugin.models.log_likelihood import pad_pairs

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_byte_level(texts: Sequence[str], vocabulary: int, special_tokens: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer of at most `vocabulary` tokens on `texts`. Any text survives a round trip."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_tokenizer(texts: Sequence[str], vocabulary: int = 512) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a ChatML template on `texts`. It can encode any text."""
    special_tokens = ("<|pad|>", "<|im_start|>", "<|im_end|>")
    tokenizer = train_byte_level([*texts, "system\nuser\nassistant\n"], vocabulary, special_tokens)
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
    """Build a randomly initialised Llama in fp32, for a tokenizer. `config` are other fields of `LlamaConfig`."""
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


def random_hybrid(vocabulary: int = 1000) -> PreTrainedModel:
    """Build the hybrid model for speed measurements: Qwen 3.5 of the sizes of `random_llama`.

    Three of its four layers carry a state along the row.
    """
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "layer_types": [*["linear_attention"] * 3, "full_attention"],
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "max_position_embeddings": 1 << 20,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_5_text", **settings))
    return model


def pretrain(
    model: LlamaForCausalLM,
    draw: Callable[[int], Sequence[Pair]],
    *,
    steps: int,
    learning_rate: float = 3e-3,
    progress: Callable[[int], None] = lambda step: None,
) -> None:
    """Train all weights on the pairs that `draw` returns for each step, with AdamW and a linear decay to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 20, 1) * (1 - step / steps))
    model.train()
    for step in range(steps):
        input_ids, labels, mask = pad_pairs(draw(step), 0)  # padding is masked, so any token will do
        model(input_ids=input_ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress(step + 1)
    model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save model and tokenizer in the format that libraries load by path."""
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
