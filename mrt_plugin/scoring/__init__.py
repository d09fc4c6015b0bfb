"""Scoring: embeddings and scores of responses, by models, functions and judges, with a cache on disk."""

from mrt_plugin.scoring.cache import CacheError, ScoreCache
from mrt_plugin.scoring.embedders import Embedder, load_embedder
from mrt_plugin.scoring.judge import Judge, parse_judge
from mrt_plugin.scoring.scores import score_groups, softmax_weights

__all__ = [
    "CacheError",
    "Embedder",
    "Judge",
    "ScoreCache",
    "load_embedder",
    "parse_judge",
    "score_groups",
    "softmax_weights",
]
