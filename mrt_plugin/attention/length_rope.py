"""Rotary angles that depend on the longest sequence of a forward pass, and so on how a step is split into passes."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class LengthRope(NamedTuple):
    """A rotary scaling for which transformers uses the longest sequence of a forward pass for all its sequences."""

    kind: str
    """`longrope` has two sets of angles. `dynamic` has one set per length, and keeps the set of an earlier forward."""
    threshold: int
    """In tokens. Sequences of at most this length always have the same angles."""

    def splits(self, lengths: Sequence[int]) -> bool:
        """Return whether sequences of these lengths have different angles together than alone."""
        return max(lengths) > self.threshold and (self.kind == "dynamic" or min(lengths) <= self.threshold)


def length_ropes(config: Any) -> list[LengthRope]:
    """Return the rotary scalings of a configuration that depend on the longest sequence of a forward pass."""
    text = config.get_text_config(decoder=True)
    found = set()
    for entry in _entries(text):
        if entry["rope_type"] == "longrope":
            found.add(LengthRope("longrope", entry["original_max_position_embeddings"]))
        elif "dynamic" in entry["rope_type"]:
            found.add(LengthRope("dynamic", text.max_position_embeddings))
    return sorted(found)


def lift_thresholds(config: Any, length: int) -> None:
    """Give sequences of at most `length` tokens the same angles, in place, to compare attention alone."""
    text = config.get_text_config(decoder=True)
    for kind, threshold in length_ropes(text):
        if kind == "dynamic":
            text.max_position_embeddings = max(threshold, length)
        else:  # transformers reads it from the configuration first
            text.original_max_position_embeddings = max(threshold, length)
    for entry in _entries(text):
        if entry["rope_type"] == "longrope":
            entry["original_max_position_embeddings"] = text.original_max_position_embeddings


def _entries(text: Any) -> list[dict[str, Any]]:
    """Return the rotary parameters, one entry per kind of layer where the kinds have different angles."""
    parameters = getattr(text, "rope_parameters", None) or {}
    return [parameters] if "rope_type" in parameters else [entry for entry in parameters.values() if entry]


def refuse_split_angles(config: Any, lengths: Sequence[int], data: str) -> None:
    """Refuse pairs whose rotary angles would depend on the other pairs in their forward pass (`ValueError`).

    `lengths` are the tokens of each pair, prompt and response together. `data` names the pairs in the message.
    """
    for kind, threshold in (rope for rope in length_ropes(config) if rope.splits(lengths)):
        longer = sum(length > threshold for length in lengths)
        apart = ", or train the longer pairs in a run of their own" if kind == "longrope" else ""
        raise ValueError(
            f"{config.model_type} takes its rotary angles from the longest pair of a forward pass ({kind}): one of "
            f"more than {threshold} tokens changes the angles of all beside it, so a step would depend on how it is "
            f"cut. {longer} of the {len(lengths)} pairs of the {data} data have more, up to {max(lengths)}. Set "
            f"max_length={threshold} (Axolotl: sequence_len), which drops them{apart}."
        )
