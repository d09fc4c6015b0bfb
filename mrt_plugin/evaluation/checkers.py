"""Check whether responses are right."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from mrt_plugin.evaluation.cases import Case
from mrt_plugin.extension import load_function
from mrt_plugin.groups.messages import normalised

NUMBER = re.compile(r"(?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


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
            raise ValueError(
                f"The checker {name} failed on prompt {case.id}: {type(error).__name__}: {error}"
            ) from error
        if right not in (True, False):  # also accepts 0, 1 and NumPy booleans
            raise ValueError(f"The checker {name} gave {right!r} for prompt {case.id}: it must give True or False.")
        return bool(right)

    return Checker(name, call)


def last_number(text: str) -> Decimal | None:
    """Return the last number in a text, without thousands separators.

    Example:

    >>> last_number("He pays 3 x $1,250.50 = $3,751.50.")
    Decimal('3751.50')
    """
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def _exact(case: Case, response: str) -> bool | None:
    return normalised(response) in {normalised(text) for text in case.right} if case.references else None


def _numeric(case: Case, response: str) -> bool | None:
    wanted = {number for text in case.right if (number := last_number(text)) is not None}
    return last_number(response) in wanted if wanted else None
