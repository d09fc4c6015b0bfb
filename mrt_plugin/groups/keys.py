"""Identifiers that depend only on content: group ids, prompt keys and the held-out split."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def canonical(value: Any) -> bytes:
    """Encode a string or messages so that the same content gives the same bytes in any process and key order."""
    return _ENCODER.encode(value).encode()


def digest(*parts: bytes, size: int = 8) -> bytes:
    """Hash several byte strings. The same bytes split in another way have another hash."""
    return hashlib.blake2b(_framed(parts), digest_size=size).digest()


def digests(prefix: Sequence[bytes], endings: Iterable[Sequence[bytes]]) -> list[bytes]:
    """Return `digest(*prefix, *ending)` for each ending. The prefix is hashed once."""
    begun = hashlib.blake2b(_framed(prefix), digest_size=8)
    found = []
    for ending in endings:
        state = begun.copy()
        state.update(_framed(ending))
        found.append(state.digest())
    return found


def _framed(parts: Sequence[bytes]) -> bytes:
    return b"".join([len(part).to_bytes(8, "little") + part for part in parts])


def prompt_key(prompt: Any) -> str:
    """Return a stable key of a prompt (string or messages) that does not depend on its responses."""
    return digest(b"prompt", canonical(prompt), size=16).hex()


def held_out(prompt: Any, share: float, seed: int = 0) -> bool:
    """Return whether a prompt belongs to the held-out `share`, in [0, 1], of all distinct prompts.

    The result depends only on the prompt and the seed. So equal prompts are on the same side, also in new data.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share={share!r} must be between 0 and 1.")
    drawn = int.from_bytes(digest(b"held out", str(seed).encode(), canonical(prompt)), "little")
    return drawn < share * 2**64
