"""Compute rewards of samples with a reward model or a user's function."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Json, List, Value

from mrt_plugin.encoding.messages import prompt_messages
from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.samples import Samples
from mrt_plugin.groups.write import spelled
from mrt_plugin.scoring.scores import Scorer, score_columns, scorer_list


def rewards(
    cases: Sequence[Case], samples: Sequence[Samples], scorer: Scorer, *, score_cache: str | Path | None = None
) -> list[np.ndarray]:
    """Compute the reward of every sample, [n] for a case with n samples.

    Args:
        cases: the prompts.
        samples: the samples of each prompt.
        scorer: name or path of a reward model, or a function of (prompt, responses) or its name.
        score_cache: as for `score_groups`.

    Raises:
        ValueError: if more than one scorer is given, or it does not return one finite number for each sample.
    """
    if len(scorer_list(scorer)) != 1:
        raise ValueError(f"scorer={scorer!r}: an evaluation takes one scorer. Run it once for each.")
    sampled = [place for place, one in enumerate(samples) if one.texts]
    found = [np.zeros(0) for _ in cases]
    if not sampled:
        return found
    prompts = [cases[place].prompt for place in sampled]
    texts = all(isinstance(prompt, str) for prompt in prompts)
    if not texts:
        prompts = [prompt_messages(prompt) for prompt in prompts]
    columns = {
        "id": [cases[place].id for place in sampled],
        "prompt": [spelled(prompt) for prompt in prompts],
        "responses": [samples[place].texts for place in sampled],
    }
    features = Features(
        {
            "id": Value("string"),
            "prompt": Value("string") if texts else List(Json()),
            "responses": List(Value("string")),
        }
    )
    ((_, scores),) = score_columns(
        Dataset.from_dict(columns, features=features), scorer, score_cache=score_cache
    ).items()
    for place, given in zip(sampled, scores["scores"], strict=True):
        found[place] = np.asarray(given, dtype=np.float64)
    return found
