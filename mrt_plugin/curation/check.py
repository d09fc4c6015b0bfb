"""`check`: the user's own test of correctness or of following the instruction."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from mrt_plugin.curation.rule import DropOrFlag, Group, GroupRule, Tools, Verdict
from mrt_plugin.extension import load_function


class Check(GroupRule):
    """Drops the responses that a function of yours does not accept. It is called as `function(prompt, response)` with
    both as the data has them, and answers True or False, or a string that says what is wrong (empty: nothing). There
    is no default: only you know what is right. With `keep_one`, a group in which nothing passes keeps its responses,
    flagged; without, it is dropped, since nothing right can be learned from it.
    """

    name: ClassVar[str] = "check"

    function: str | Callable[[Any, Any], bool | str] = Field(
        description="`package.module:function`, `path/to/file.py:function`, or in Python the function itself."
    )
    action: DropOrFlag = Field("drop", description="`drop` or `flag`.")
    keep_one: bool = Field(False, description="Flag instead of dropping where nothing in a group passes.")

    @field_validator("function")
    @classmethod
    def _find(cls, function: Any) -> Any:
        if isinstance(function, str):
            load_function(function)
        return function

    def reads(self) -> list[Path]:
        """Where the function is written."""
        function = load_function(self.function) if isinstance(self.function, str) else self.function
        file = inspect.getsourcefile(function)
        return [Path(file)] if file else []

    def judge(self, group: Group, tools: Tools) -> Iterable[Verdict]:
        """One call per response."""
        function = load_function(self.function) if isinstance(self.function, str) else self.function
        failed = {}
        for index, response in enumerate(group.responses):
            problem = _ask(function, group, index, response)
            if problem:
                failed[index] = problem
        spare = self.keep_one and len(failed) == len(group.responses)
        for index, problem in failed.items():
            yield Verdict("flag" if spare or self.action == "flag" else "drop", problem, index)


def _ask(function: Callable[[Any, Any], Any], group: Group, index: int, response: Any) -> str:
    try:
        answer = function(group.prompt, response)
    except Exception as problem:
        problem.add_note(f"The check was looking at response {index} of group {group.id}.")
        raise
    if isinstance(answer, str):
        return answer
    return "" if answer else "did not pass"
