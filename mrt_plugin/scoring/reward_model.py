"""Scores of a reward model: any sequence classifier with one label, in batches of fixed shapes, with a cache."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from mrt_plugin.encoding.messages import prompt_messages, response_messages
from mrt_plugin.groups.keys import canonical
from mrt_plugin.groups.messages import message_text, response_text
from mrt_plugin.scoring.cache import ScoreCache, entry_key
from mrt_plugin.scoring.fixed_shapes import contents, fixed_batches, through_cache, tokens_at_once

FORMAT = "1"
"""Increase this when the text of a pair or its truncation changes. Older entries of the cache are then not used."""

Conversation = tuple[Any, Any]
"""A prompt with one response, each a string or a list of messages."""


class RewardModel:
    """Scores conversations, or pairs of texts if the tokenizer has no chat template.

    A conversation longer than the model's limit loses its beginning. `cut` counts such conversations.
    """

    def __init__(self, name: str, store: ScoreCache, *, trust_remote_code: bool = False) -> None:
        self.store, self.cut = store, 0
        self.model, self.tokenizer = _load(name, trust_remote_code)
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        limits = [self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", None)]
        self.longest = min(limit for limit in limits if limit is not None)
        content = contents(self.model, self.tokenizer)
        self.fingerprint = entry_key(b"reward", FORMAT.encode(), str(self.longest).encode(), *content)

    def score(self, pairs: Sequence[Conversation]) -> np.ndarray:
        """Return the scores, float64 [n], from the cache where it has them."""
        keys = [entry_key(self.fingerprint, canonical(prompt), canonical(response)) for prompt, response in pairs]
        found = through_cache(self.store, dict(zip(keys, pairs, strict=True)), self._run)
        return np.array([found[key][0] for key in keys], dtype=np.float64)

    def _run(self, pairs: list[Conversation]) -> Iterator[tuple[list[int], np.ndarray]]:
        encoded = [self._encode(pair) for pair in pairs]
        lengths = [len(item["input_ids"]) for item in encoded]
        tokens = tokens_at_once(self.model.device)
        for padded, indices, rows in fixed_batches(lengths, tokens=tokens, longest=self.longest):
            batch = [encoded[index] for index in indices] + [encoded[indices[0]]] * (rows - len(indices))
            features = self.tokenizer.pad(batch, padding="max_length", max_length=padded, return_tensors="pt")
            with torch.inference_mode():
                logits = self.model(**features.to(self.model.device)).logits
            yield indices, logits[: len(indices), :1].float().cpu().numpy()

    def _encode(self, pair: Conversation) -> dict[str, list[int]]:
        encoded = encode_conversation(self.tokenizer, *pair)
        if len(encoded["input_ids"]) <= self.longest:
            return encoded
        self.cut += 1
        if self.tokenizer.chat_template is None:
            return dict(self.tokenizer(*_texts(*pair), truncation=True, max_length=self.longest))
        return {name: values[-self.longest :] for name, values in encoded.items()}


def encode_conversation(tokenizer: Any, prompt: Any, response: Any) -> dict[str, list[int]]:
    """Encode a prompt with one response as the reward model reads it: in its own chat template, else as two texts."""
    if tokenizer.chat_template is None:
        return dict(tokenizer(*_texts(prompt, response), verbose=False))
    # A string is used unchanged: a sample may be empty, and is then scored as an empty response.
    answer = [{"role": "assistant", "content": response}] if isinstance(response, str) else None
    messages = [*prompt_messages(prompt), *(answer or response_messages(response))]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError as problem:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"The reward model's chat template refuses a conversation of {roles}: {problem}. Take a model whose "
            "template accepts these roles, or merge the system text into the prompt."
        ) from problem
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return {"input_ids": ids, "attention_mask": [1] * len(ids)}


def _texts(prompt: Any, response: Any) -> tuple[str, str]:
    return "\n".join(message_text(message) for message in prompt_messages(prompt)), response_text(response)


def _load(name: str, trust_remote_code: bool) -> tuple[Any, Any]:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"scorer={name!r} could not be loaded as a reward model: {problem} Give a name or path of a model for "
            "sequence classification, or a function of yours as `package.module:function`."
        ) from problem
    if config.num_labels != 1:
        raise ValueError(
            f"scorer={name!r} has {config.num_labels} labels ({', '.join(map(str, config.id2label.values()))}), and a "
            "reward model has one. To use one of them, give your own function: scorer='my_module:score'."
        )
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        name, config=config, trust_remote_code=trust_remote_code, output_loading_info=True
    )
    missing = ", ".join(sorted(report["missing_keys"]))
    if missing:
        raise ValueError(
            f"scorer={name!r} has no trained score head ({missing} would be random): it is not a reward model."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        have = f"{len(tokenizer):,} tokens, and the model has {model.get_input_embeddings().num_embeddings:,}"
        raise ValueError(f"scorer={name!r}: its tokenizer has {have}: the folder holds another model's tokenizer.")
    # Decoders read the score at the last token that is not padding, by this id.
    text_config = model.config.get_text_config()
    if text_config.pad_token_id is None:
        text_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.pad_token_id = text_config.pad_token_id
    return model.eval(), tokenizer
