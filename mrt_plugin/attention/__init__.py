"""Attention: the backends that compute a shared prompt once, and the proof that a backend is exact on a model."""

from mrt_plugin.attention.backend import Backend, Compute, ExpandedBackend, OneByOneBackend
from mrt_plugin.attention.family import NotShareable
from mrt_plugin.attention.plain import settle_plain
from mrt_plugin.attention.proof import Proof, prove, refusal_of
from mrt_plugin.attention.resolve import resolve_backend

__all__ = [
    "Backend",
    "Compute",
    "ExpandedBackend",
    "NotShareable",
    "OneByOneBackend",
    "Proof",
    "prove",
    "refusal_of",
    "resolve_backend",
    "settle_plain",
]
