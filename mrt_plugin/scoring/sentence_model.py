"""Vectors of a sentence-transformers model, computed in batches of fixed shapes and stored in the cache."""

from collections.abc import Iterable
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from mrt_plugin.groups.batches import chunked
from mrt_plugin.scoring.cache import ScoreCache, entry_key
from mrt_plugin.scoring.fixed_shapes import CHUNK, contents, fixed_batches, through_cache, tokens_at_once


class SentenceVectors:
    """Converts texts to vectors of length 1, from the cache where it has them, otherwise from the model."""

    def __init__(self, name: str, store: ScoreCache) -> None:
        self.name, self.store = name, store
        self.fingerprint = _fingerprint(name)

    def __call__(self, texts: list[str], advance: Any = lambda count: None) -> np.ndarray:
        """Return the vectors, float32 [n, dim]."""
        keys = [entry_key(self.fingerprint, text.encode()) for text in texts]
        items = dict(zip(keys, texts, strict=True))
        found = through_cache(self.store, items, lambda some: _encode(_load(self.name), some), advance)
        return np.stack([found[key] for key in keys])

    def prepare(self, texts: Iterable[list[str]]) -> None:
        """Fill the cache with the vectors of all these texts. Memory does not grow with their number."""
        with tqdm(desc=f"Embedding ({self.name})", unit=" texts", delay=2) as bar:
            for some in chunked(chain.from_iterable(texts), CHUNK):
                self(some, bar.update)


@cache
def _load(name: str) -> SentenceTransformer:
    try:
        return SentenceTransformer(name).eval()
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"embedder={name!r} is not `lexical`, and could not be loaded as a sentence-transformers model: {problem}"
        ) from problem


@cache
def _fingerprint(name: str) -> bytes:
    model = _load(name)
    settings = f"{model.max_seq_length} {model.default_prompt_name} {model.prompts}"
    return entry_key(b"embedding", *contents(model, model.tokenizer), settings.encode())


def _encode(model: SentenceTransformer, texts: list[str]) -> Iterable[tuple[list[int], np.ndarray]]:
    """Yield the indices of some texts and their vectors, batch by batch."""
    tokenizer: Any = model.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or model.default_prompt_name is not None:
        # Not a transformer, or one with a prompt before the text: one text at a time is a fixed shape as well.
        for index, text in enumerate(texts):
            yield [index], model.encode([text], normalize_embeddings=True, show_progress_bar=False)
        return
    longest = model.max_seq_length
    limit: dict[str, Any] = {} if longest is None else {"truncation": True, "max_length": longest}
    lengths = [len(ids) for ids in tokenizer(texts, **limit)["input_ids"]]
    tokens = tokens_at_once(model.device)
    for padded, indices, rows in fixed_batches(lengths, tokens=tokens, longest=longest):
        batch = [texts[index] for index in indices] + [texts[indices[0]]] * (rows - len(indices))
        features = tokenizer(batch, padding="max_length", max_length=padded, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            vectors = model(dict(features.to(model.device)))["sentence_embedding"].float()
        yield indices, torch.nn.functional.normalize(vectors, dim=1)[: len(indices)].cpu().numpy()
