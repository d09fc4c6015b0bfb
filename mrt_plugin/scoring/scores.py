"""Scores of responses from a function of the user's own."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets

Scorer = Callable[[Any, list[Any]], Sequence[float]]
"""From a prompt and its N responses (as the dataset has them) to N finite numbers, higher is better."""


def score_groups(groups: Dataset, scorer: Scorer, *, num_proc: int | None = None) -> Dataset:
    """The groups with a `scores` column from `scorer`, in place of any they had.

    Args:
        groups: as `load_groups` gives them.
        scorer: called once per group, as `scorer(prompt, responses)`.
        num_proc: processes to call it in.

    Raises:
        ValueError: naming the group, if the scorer does not give one finite number per response.

    Example:

    ```python
    shortest_first = score_groups(groups, lambda prompt, responses: [-len(response) for response in responses])
    ```
    """
    scores = groups.map(
        _score,
        fn_kwargs={"scorer": scorer},
        remove_columns=groups.column_names,
        features=Features({"scores": List(Value("float64"))}),
        num_proc=num_proc,
        keep_in_memory=True,
        new_fingerprint=uuid.uuid4().hex,  # nothing here may be cached: the cache cannot see into a user's function
        desc="Scoring",
    )
    others = [name for name in groups.column_names if name != "scores"]
    return concatenate_datasets([groups.select_columns(others), scores], axis=1)


def _score(group: dict[str, Any], scorer: Scorer) -> dict[str, Any]:
    scores = np.asarray(scorer(group["prompt"], group["responses"]), dtype=np.float64)
    if scores.shape != (len(group["responses"]),) or not np.isfinite(scores).all():
        raise ValueError(
            f"The scorer gave {scores.tolist()} for the {len(group['responses'])} responses of group {group['id']}: "
            "it must give one finite number for each."
        )
    return {"scores": scores.tolist()}
