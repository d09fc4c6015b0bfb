"""Vectors of a sentence-transformers model, computed in batches of fixed shapes and stored in the cache."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from mrt_plugin.groups.batches import BYTES
from mrt_plugin.scoring.cache import ScoreCache, chunks, entry_key
from mrt_plugin.scoring.fixed_shapes import TOKENS_CPU, TOKENS_GPU, fixed_batches
from mrt_plugin.scoring.model_content import model_content, tokenizer_content

CHUNK = 8192
"""Number of texts that are sorted by length and processed together: about 12 MiB of vectors of 384 numbers."""


class SentenceVectors:
    """Converts texts to vectors of length 1, from the cache where it has them, otherwise from the model.

    Every finished batch is stored immediately, so a run that was killed does not compute it again.

    Raises:
        ValueError: if there is no such model.
    """

    def __init__(self, name: str, store: ScoreCache) -> None:
        self.name, self.store = name, store
        self.fingerprint = _fingerprint(name)

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Return the vectors, float32 [n, dim]."""
        keys = [self._key(text) for text in texts]
        found = self.store.get(list(dict.fromkeys(keys)))
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if missing:
            found.update(self._compute(missing, None))
        return np.stack([found[key] for key in keys])

    def prepare(self, texts: Iterable[list[str]]) -> None:
        """Fill the cache with the vectors of all these texts. Memory does not grow with their number."""
        bar = tqdm(desc=f"Embedding ({self.name})", unit=" texts", delay=2)
        with bar:
            waiting: dict[bytes, str] = {}
            for some in texts:
                keyed = {self._key(text): text for text in some}
                found = self.store.get(list(keyed))
                waiting.update({key: text for key, text in keyed.items() if key not in found})
                bar.update(len(found))
                if len(waiting) >= CHUNK or sum(map(len, waiting.values())) >= BYTES:
                    self._compute(waiting, bar)
                    waiting.clear()
            self._compute(waiting, bar)

    def _key(self, text: str) -> bytes:
        return entry_key(self.fingerprint, text.encode())

    def _compute(self, missing: dict[bytes, str], bar: Any) -> dict[bytes, np.ndarray]:
        """Compute, store and return the vectors of some texts."""
        computed: dict[bytes, np.ndarray] = {}
        for some in chunks(list(missing), CHUNK):
            for indices, vectors in _encode(_load(self.name), [missing[key] for key in some]):
                done = {some[index]: vector for index, vector in zip(indices, vectors, strict=True)}
                if np.isfinite(vectors).all():  # others are never stored; the caller refuses them by text
                    self.store.put(done)
                computed.update(done)
                if bar is not None:
                    bar.update(len(done))
        return computed


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
    return entry_key(b"embedding", model_content(model), tokenizer_content(model.tokenizer), settings.encode())


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
    tokens = TOKENS_CPU if model.device.type == "cpu" else TOKENS_GPU
    for padded, indices, rows in fixed_batches(lengths, tokens=tokens, longest=longest):
        batch = [texts[index] for index in indices] + [texts[indices[0]]] * (rows - len(indices))
        features = tokenizer(batch, padding="max_length", max_length=padded, truncation=True, return_tensors="pt").to(
            model.device
        )
        with torch.inference_mode():
            vectors = model(dict(features))["sentence_embedding"].float()
        yield indices, torch.nn.functional.normalize(vectors, dim=1)[: len(indices)].cpu().numpy()
