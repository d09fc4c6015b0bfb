"""Statistics of a dataset: kinds of task, numbers of responses, lengths."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from mrt_plugin.curation.categories import entropy
from mrt_plugin.curation.run_rules import token_counts
from mrt_plugin.groups.messages import prompt_text, response_text
from mrt_plugin.groups.write import rows_of

_KINDS = {
    "code": r"```|\b(?:python|javascript|typescript|java|c\+\+|c#|rust|golang|sql|html|css|bash|regex|api|latex)\b"
    r"|\b(?:write|implement|fix|debug|refactor)\b.{0,40}\b(?:function|code|program|script|class|query|algorithm)\b",
    "mathematics": r"\b(?:how many|how much|calculate|compute|solve|equation|integral|derivative|probability|percent"
    r"|percentage|prove|sum of|what is the value)\b|\d\s*[-+*/^=]\s*\d",
    "translation": r"\btranslat(?:e|ion)\b"
    r"|\b(?:in|into|to) (?:french|german|spanish|italian|chinese|japanese|arabic|hindi|russian|portuguese|korean)\b",
    "summarisation": r"\b(?:summari[sz]e|summary|tl;?dr|key points|main points|abstract of)\b",
    "rewriting": r"\b(?:rewrite|rephrase|paraphrase|edit|proofread|correct (?:the|this|my)|improve (?:the|this|my)"
    r"|shorten|simplify|make (?:it|this))\b",
    "classification": r"\b(?:classify|categori[sz]e|label|sentiment|which of the following|true or false"
    r"|multiple choice)\b",
    "extraction": r"\b(?:extract|identify (?:all|the)|find all|list (?:all|every) .{0,30}(?:in|from) the)\b",
    "creative writing": r"\b(?:poem|story|song|lyrics|haiku|sonnet|novel|screenplay|dialogue|joke|limerick|essay"
    r"|blog post|speech|letter|slogan|tagline|script for)\b",
    "brainstorming": r"\b(?:ideas?|brainstorm|suggest(?:ions?)?|recommend(?:ations?)?|give me (?:\w+ ){0,2}\w+s"
    r"|list (?:of|\w+))\b",
    "advice": r"\b(?:should i|how (?:do|can|should|to)|tips|advice|help me|best way)\b",
    "explanation": r"\b(?:explain|describe|why|what (?:is|are|was|were|does)|who|when|where|difference between"
    r"|tell me about)\b",
}
"""Patterns, searched in this order in the prompt in lower case. A rough guide, for English; the rest is `other`."""


def task_type(prompt: Any) -> str:
    """Guess the kind of task from the words of a prompt."""
    text = prompt_text(prompt)[:2000].lower()
    return next((kind for kind, pattern in _KINDS.items() if re.search(pattern, text)), "other")


def statistics(groups: Dataset, *, tokenizer: Any = None) -> dict[str, Any]:
    """Measure task types, responses per prompt, and lengths in tokens (without a tokenizer, UTF-8 bytes / 4).

    `task_entropy` is the entropy of the task types, in bits.
    """
    prompts: list[int] = []
    sizes: list[int] = []
    lengths: list[int] = []
    by_kind: dict[str, list[list[int]]] = {}
    for group in rows_of(groups.select_columns(["prompt", "responses"])):
        texts = [prompt_text(group["prompt"]), *map(response_text, group["responses"])]
        prompt, *responses = token_counts(texts, tokenizer)
        prompts.append(prompt)
        sizes.append(len(responses))
        lengths += responses
        by_kind.setdefault(task_type(group["prompt"]), []).append(responses)
    types = {
        kind: {
            "groups": len(own),
            "share": len(own) / len(sizes),
            "responses": sum(map(len, own)),
            "median_response_length": float(np.median(np.concatenate(own))),
        }
        for kind, own in sorted(by_kind.items(), key=lambda item: (-len(item[1]), item[0]))
    }
    return {
        "groups": len(sizes),
        "responses": len(lengths),
        "tokens": "counted" if tokenizer is not None else "estimated",
        "responses_per_prompt": _spread(sizes),
        "prompt_length": _spread(prompts),
        "response_length": _spread(lengths),
        "task_types": types,
        "task_entropy": entropy({kind: len(own) for kind, own in by_kind.items()}),
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    if not values:
        return {}
    quantiles = {f"p{percent}": float(np.percentile(values, percent)) for percent in (5, 50, 95, 100)}
    return {"mean": float(np.mean(values)), **quantiles}
