"""Show outputs for reading: the first draws of every model on randomly chosen prompts."""

import math
from collections.abc import Sequence
from typing import Any

from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.subject import Subject
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.text import prompt_text

REFERENCES_SHOWN = 3
"""Number of references shown next to a prompt's outputs."""


def lay_out(cases: Sequence[Case], subjects: Sequence[Subject], outputs: int, seed: int) -> list[dict[str, Any]]:
    """Choose about `outputs` outputs over all models together: the first draws of every model on some prompts.

    The prompts are drawn by a hash of (seed, id), among those for which every sampled model has samples.

    Returns:
        Rows of `id`, `prompt`, `references` (the first few texts), `more_references` (number of references not shown)
        and `models`: for each name a list of `text`, `cut_off`, `right` and `reward` (None if not measured).
    """
    sampled = [subject for subject in subjects if subject.samples is not None]
    able = [
        place
        for place in range(len(cases))
        if sampled and all(subject.samples is not None and subject.samples[place].texts for subject in sampled)
    ]
    if not able or not outputs:
        return []
    each = math.ceil(outputs / len(sampled))
    able.sort(key=lambda place: digest(b"read", str(seed).encode(), cases[place].id.encode()))
    chosen = able[:each]
    draws = math.ceil(each / len(chosen))
    return [
        {
            "id": cases[place].id,
            "prompt": prompt_text(cases[place].prompt),
            "references": cases[place].texts[:REFERENCES_SHOWN],
            "more_references": max(0, len(cases[place].references) - REFERENCES_SHOWN),
            "models": {subject.model.name: _said(subject, place, draws) for subject in sampled},
        }
        for place in chosen
    ]


def _said(subject: Subject, place: int, draws: int) -> list[dict[str, Any]]:
    assert subject.samples is not None
    said = subject.samples[place]
    return [
        {
            "text": said.texts[number],
            "cut_off": said.cut_off[number],
            "right": None if subject.right is None else subject.right[place][number],
            "reward": None if subject.rewards is None else float(subject.rewards[place][number]),
        }
        for number in range(min(draws, len(said.texts)))
    ]
