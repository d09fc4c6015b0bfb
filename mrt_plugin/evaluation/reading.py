"""Outputs laid out for reading: the first draws of every model on prompts that nobody picked."""

import math
from collections.abc import Sequence
from typing import Any

from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.subject import Subject
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.text import prompt_text

REFERENCES_SHOWN = 3
"""Beside the outputs of a prompt."""


def lay_out(cases: Sequence[Case], subjects: Sequence[Subject], outputs: int, seed: int) -> list[dict[str, Any]]:
    """About `outputs` outputs of all models together: prompts drawn by a hash of (seed, id), and of each the first
    draws of every model.

    Returns:
        Rows of `id`, `prompt`, `references` (texts, the first few), `more_references` (their number) and `models`: by
        name a list of `text`, `cut_off`, `right` and `reward` (None where not measured). Only prompts that every
        sampled model has samples of.
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
