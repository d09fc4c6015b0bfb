"""Attention: the backends that compute a shared prompt once, and the proof that a backend is exact on a model."""

from mrt_plugin.attention.backend import ExpandedBackend
from mrt_plugin.attention.family import NotShareable
from mrt_plugin.attention.proof import prove
from mrt_plugin.attention.resolve import resolve_backend

__all__ = ["ExpandedBackend", "NotShareable", "prove", "resolve_backend"]
