"""CodeContests (deepmind/code_contests): programming problems with human solutions in several languages."""

from collections.abc import Generator
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Adapter, Converted, LeftOut, Mismatch

LANGUAGES = {"python2": 1, "cpp": 2, "python3": 3, "java": 4}
"""The dataset's own language numbers. 0 is an unknown language."""

Language = Literal["python3", "python2", "cpp", "java", "any"]


class Solutions(TypedDict):
    language: list[int]
    solution: list[str]


class ContestRow(TypedDict):
    description: str
    solutions: Solutions
    incorrect_solutions: NotRequired[Solutions | None]


def convert(row: ContestRow, *, language: Language = "python3", incorrect: bool = False) -> Converted:
    """Yield one group: the problem and its solutions in one language.

    With `incorrect`, incorrect solutions are included. A correct solution then has score 1 and an incorrect one 0.
    """
    correct = yield from _in_language(row["solutions"], "solutions", language)
    group: dict[str, Any] = {"prompt": row["description"], "responses": correct}
    if incorrect:
        wrong = yield from _in_language(
            row.get("incorrect_solutions") or {"language": [], "solution": []}, "incorrect_solutions", language
        )
        group |= {"responses": correct + wrong, "scores": [1.0] * len(correct) + [0.0] * len(wrong)}
    yield group


def _in_language(solutions: Solutions, name: str, language: Language) -> Generator[LeftOut, None, list[str]]:
    if len(solutions["language"]) != len(solutions["solution"]):
        raise Mismatch(name, f"{len(solutions['language'])} languages for {len(solutions['solution'])} solutions.")
    chosen = []
    for number, text in zip(solutions["language"], solutions["solution"], strict=True):
        if language == "any" or number == LANGUAGES[language]:
            chosen.append(text)
        else:
            yield LeftOut(f"solutions in another language than {language}")
    return chosen


CODE_CONTESTS = Adapter(
    "code_contests",
    "CodeContests: problems with their correct solutions in one language; on request incorrect ones, scored 0",
    ContestRow,
    convert,
    {"prompt": "description", "responses": "solutions"},
)
