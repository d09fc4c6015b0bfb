"""Scoring: embeddings and scores of responses."""

from mrt_plugin.scoring.embedders import Embedder, load_embedder
from mrt_plugin.scoring.scores import score_groups

__all__ = ["Embedder", "load_embedder", "score_groups"]
