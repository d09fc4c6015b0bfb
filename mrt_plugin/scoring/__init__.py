"""Scoring: embeddings and scores of responses, with a cache on disk."""

from mrt_plugin.scoring.cache import CacheError, ScoreCache
from mrt_plugin.scoring.embedders import Embedder, load_embedder
from mrt_plugin.scoring.scores import score_groups, softmax_weights

__all__ = ["CacheError", "Embedder", "ScoreCache", "load_embedder", "score_groups", "softmax_weights"]
