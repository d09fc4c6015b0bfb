"""Models: open a model with its tokenizer and adapter, compute log-likelihoods, build tiny local models."""

from typing import TYPE_CHECKING

from mrt_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from mrt_plugin.models.named_model import parse_models

__all__ = ["parse_models"]

__getattr__ = lazy_names(__name__, {"parse_models": ".named_model"})
