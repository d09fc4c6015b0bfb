"""Read the cases of an evaluation (prompts with references, if any), and check whether responses to them are right."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from mrt_plugin.extension import load_function
from mrt_plugin.groups import load_groups, prompt_key
from mrt_plugin.groups.keys import digest
from mrt_plugin.groups.messages import normalised, response_text
from mrt_plugin.groups.sources import open_source
from mrt_plugin.groups.write import rows_of
from mrt_plugin.sampling.run import read_prompts

NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


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


@dataclass(frozen=True)
class Checker:
    """Check whether a response to a case is right; None if the case has nothing to compare with."""

    name: str
    check: Callable[[Case, str], bool | None]

    def __call__(self, case: Case, response: str) -> bool | None:
        return self.check(case, response)


def load_checker(checker: str | Callable[[Any, str, list[Any]], Any]) -> Checker:
    """Load a checker by name.

    Args:
        checker: `exact`: the response equals a reference, ignoring case, white space and compatibility forms of
            characters. `numeric`: its last number equals the last number of a reference (as in `A: 18`, `#### 18.0`,
            `\\boxed{18}`). Otherwise `package.module:function`, `file.py:function` or a function of (prompt, response,
            references) that returns whether the response is right. If the data has scores, `exact` and `numeric` use
            only the references with the highest score of their prompt.

    Raises:
        ValueError: for an unknown name, and at the check for a function that fails or returns another value.

    Example:

    >>> check = load_checker("numeric")
    >>> check(Case("1", "What is 6 x 200?", ["#### 1,200"]), "6 times 200 is 1200.00.")
    True
    """
    if checker == "exact":
        return Checker("exact", _exact)
    if checker == "numeric":
        return Checker("numeric", _numeric)
    if isinstance(checker, str) and ":" not in checker:
        raise ValueError(f"checker={checker!r} is unknown: choose exact, numeric, or a function as module:function.")
    name = checker if isinstance(checker, str) else getattr(checker, "__qualname__", type(checker).__name__)
    function = load_function(checker) if isinstance(checker, str) else checker

    def call(case: Case, response: str) -> bool:
        try:
            right = function(case.prompt, response, case.references)
        except Exception as error:  # user code may raise any exception
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"The checker {name} failed on prompt {case.id}: {what}") from error
        if right not in (True, False):  # also accepts 0, 1 and NumPy booleans
            raise ValueError(f"The checker {name} gave {right!r} for prompt {case.id}: it must give True or False.")
        return bool(right)

    return Checker(name, call)


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text, without thousands separators."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def _exact(case: Case, response: str) -> bool | None:
    return normalised(response) in {normalised(text) for text in case.right} if case.references else None


def _numeric(case: Case, response: str) -> bool | None:
    wanted = {number for text in case.right if (number := last_number(text)) is not None}
    return last_number(response) in wanted if wanted else None
