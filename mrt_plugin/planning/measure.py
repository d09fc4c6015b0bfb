"""Measure what planning needs from a model: the loss of every response, and token counts of prompts and responses."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mrt_plugin.encoding import Encoder
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import build_group_row
from mrt_plugin.models.log_likelihood import Model, check_ids, equal_pairs, log_likelihoods, worse_than_guessing
from mrt_plugin.options import LossAggregation, PaidLayout
from mrt_plugin.planning.budget import Costs
from mrt_plugin.planning.progress import Progress, counting

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredGroup:
    """One group as encoded and measured for a model, with N responses."""

    id: str
    places: list[int]
    """Indices of the measured responses in the pool: those that fit `max_length`."""
    pairs: list[Pair]
    prompt_tokens: int
    """Tokens of the shared prefix."""
    segment_tokens: np.ndarray
    """[N] tokens of each response's segment, including the repeated last prompt token."""
    trained_tokens: np.ndarray
    nll: np.ndarray
    """[N] summed negative log-likelihood (NLL) of each response, in nats."""


@dataclass(frozen=True)
class Measurement:
    """Measured groups of a model."""

    groups: list[MeasuredGroup]
    left_out: int
    """Responses left out because prompt and response exceed `max_length`. A group with none left is not listed."""
    max_length: int | None

    def distinct(self) -> "Measurement":
        """Return the measurement with each distinct response of a pool only once."""
        groups = []
        for group in self.groups:
            kept = [same[0] for same in equal_pairs(group.pairs)]
            groups.append(
                replace(
                    group,
                    places=[group.places[at] for at in kept],
                    pairs=[group.pairs[at] for at in kept],
                    segment_tokens=group.segment_tokens[kept],
                    trained_tokens=group.trained_tokens[kept],
                    nll=group.nll[kept],
                )
            )
        return replace(self, groups=groups)

    @property
    def nll_per_token(self) -> float:
        """Return the mean NLL per trained token, in nats. Every prompt has one vote in numerator and denominator."""
        nll = np.mean([group.nll.mean() for group in self.groups])
        return float(nll / np.mean([group.trained_tokens.mean() for group in self.groups]))

    def losses(self, aggregation: LossAggregation) -> list[np.ndarray]:
        """Return the loss of each response, [N] per group, as the training loss with this aggregation counts it.

        L is the number of trained tokens of a response. `token` divides the sum of all NLL by the number of all
        tokens, a ratio R. Returned is R + (nll - R·L)/(mean L). The mean of these values is R, and their variance is
        the first-order (large-sample) approximation of the ratio's (Cochran, "Sampling Techniques", section 6.3).
        `prompt` returns nll / M, with M the mean length over the prompt's pool. `response` returns nll / L.
        """
        if aggregation == "response":
            return [group.nll / group.trained_tokens for group in self.groups]
        if aggregation == "prompt":
            return [group.nll / group.trained_tokens.mean() for group in self.groups]
        ratio = self.nll_per_token
        mean_length = np.mean([group.trained_tokens.mean() for group in self.groups])
        return [ratio + (group.nll - ratio * group.trained_tokens) / mean_length for group in self.groups]

    def costs(self, layout: PaidLayout) -> Costs:
        """Return the costs C_p of a prompt and C_r of a response, in tokens, as in `token_costs`."""
        return _mean_costs([(group.prompt_tokens, group.segment_tokens) for group in self.groups], layout)


def measure(
    model: Model,
    encoder: Encoder,
    groups: Iterable[Mapping[str, Any]],
    *,
    max_length: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Measurement:
    """Measure a model on groups. `max_length` limits prompt and response together, by default to the model's limit."""
    limit = max_length or model.config.to_dict().get("max_position_embeddings")
    encoded: list[tuple[str, list[int], list[Pair]]] = []
    left_out = 0
    for group in groups:
        pairs = encoder.encode_group(group["prompt"], group["responses"])
        check_ids(pairs, model)
        fitting = [place for place, pair in enumerate(pairs) if limit is None or len(pair.input_ids) <= limit]
        left_out += len(pairs) - len(fitting)
        if fitting:
            encoded.append((group["id"], fitting, [pairs[place] for place in fitting]))
    if not encoded:
        raise ValueError(
            f"No response fits max_length={limit} together with its prompt: raise it, or shorten the data."
            if left_out
            else "There are no groups to measure."
        )
    every = [pair for _, _, pairs in encoded for pair in pairs]
    nll = -log_likelihoods(model, every, progress=counting(progress, "losses of responses", len(every)))
    if not np.isfinite(nll).all():
        raise ValueError("The model's loss is not finite on some response: load it in float32.")
    measured, start = [], 0
    for name, places, pairs in encoded:
        row = build_group_row(pairs)
        segments, trained = np.array(row["segment_lengths"]), np.array([pair.trained_length for pair in pairs])
        own = nll[start : start + len(pairs)]
        measured.append(MeasuredGroup(name, places, pairs, row["prefix_length"], segments, trained, own))
        start += len(pairs)
    found = Measurement(measured, left_out, limit)
    warning = worse_than_guessing(found.nll_per_token, model)
    if warning:
        logger.warning(warning)
    return found


def token_costs(groups: Iterable[Mapping[str, Any]], encoder: Encoder, layout: PaidLayout) -> Costs:
    """Compute the costs C_p of a prompt and C_r of a response in tokens, from a tokenizer alone.

    C_p is the mean length of the shared prefix. C_r is the mean length of a response's segment, averaged over prompts.
    The quadratic cost of attention is left out.
    """
    rows = [build_group_row(encoder.encode_group(group["prompt"], group["responses"])) for group in groups]
    return _mean_costs([(row["prefix_length"], np.array(row["segment_lengths"])) for row in rows], layout)


def _mean_costs(lengths: Sequence[tuple[int, np.ndarray]], layout: PaidLayout) -> Costs:
    prefixes, segments = zip(*lengths, strict=True)
    return Costs(float(np.mean(prefixes)), float(np.mean([row.mean() for row in segments])), layout)
