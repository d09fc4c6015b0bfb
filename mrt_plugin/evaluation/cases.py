"""Read the cases of an evaluation: prompts, each with its reference responses, if any."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrt_plugin.groups import load_groups, prompt_key
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.messages import response_text
from mrt_plugin.groups.sources import open_source
from mrt_plugin.groups.write import rows_of
from mrt_plugin.sampling.prompts import read_prompts


@dataclass
class Case:
    """One prompt of an evaluation, with its reference responses and their scores, if the data has any."""

    id: str
    prompt: Any
    """A string, or a list of messages. So is each reference."""
    references: list[Any] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [response_text(reference) for reference in self.references]

    @property
    def right(self) -> list[str]:
        """Return the texts of the references to check against: those with the highest score, or all without scores."""
        if not self.scores:
            return self.texts
        best = max(self.scores)
        return [text for text, score in zip(self.texts, self.scores, strict=True) if score == best]


def read_cases(
    data: Any, *, split: str = "train", source: str | None = None, max_prompts: int | None = None, seed: int = 0
) -> list[Case]:
    """Read prompts with or without references, each prompt once.

    Args:
        data: anything that `load_groups` or `mrt sample` reads: groups, flat rows, prompts alone, or a `.txt` file
            with one prompt per line. A row with empty `responses` is a prompt without references.
        split: split to read from the hub or a `DatasetDict`.
        source: name of a public format.
        max_prompts: maximum number of prompts, drawn by a hash of (seed, id); their order is kept.
        seed: seed of the draw.

    Raises:
        DataError: with each problem's row, column and remedy; also for data without prompts.

    Example:

    ```python
    from mrt_plugin.evaluation import read_cases

    cases = read_cases("held_out.jsonl", max_prompts=100)
    cases[0].prompt, cases[0].texts
    ```
    """
    cases: dict[str, Case] = {}
    have = [True]  # whether each row has a reference
    if source is None and isinstance(data, str | Path) and Path(data).suffix == ".txt":
        have = [False]
    elif source is None:
        have = [_has_reference(row) for _, row in open_source(data, split)[1]]
    if any(have):
        for group in rows_of(load_groups(data, split=split, source=source)):
            case = cases.setdefault(prompt_key(group["prompt"]), Case(group["id"], group["prompt"]))
            case.references += group["responses"]
            case.scores += group.get("scores") or []
    if not have or not all(have):  # reading no rows reports their problem
        for name, prompt in read_prompts(data, split=split)[0]:
            cases.setdefault(prompt_key(prompt), Case(name, prompt))
    found = list(cases.values())
    if max_prompts is None or max_prompts >= len(found):
        return found
    order = sorted(found, key=lambda case: digest(b"evaluate", str(seed).encode(), case.id.encode()))
    chosen = {id(case) for case in order[:max_prompts]}
    return [case for case in found if id(case) in chosen]


def _has_reference(row: Mapping[str, Any]) -> bool:
    if "prompt" not in row:
        messages = row.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        return isinstance(last, dict) and last.get("role") == "assistant"
    responses = row.get("responses", row.get("completion"))
    return any(bool(response) for response in responses) if isinstance(responses, list) else bool(responses)
