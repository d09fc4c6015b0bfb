"""Base classes of curation rules."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from pydantic import BaseModel, ConfigDict, PrivateAttr

from mrt_plugin.extension import extension_files, load_extension
from mrt_plugin.groups.messages import response_text

Action = Literal["drop", "change", "flag"]
DropOrFlag = Literal["drop", "flag"]


@dataclass(frozen=True)
class Decision:
    """What a rule decides about a response or about a group. Anything without a decision is kept as it is."""

    action: Action
    reason: str
    """A few words to count by: the same for every response of its kind."""
    response: int | None = None
    """Index in the group as the rule sees it. None for the group itself, which can be dropped or flagged."""
    new: Any = None
    """The response to put in its place, for `change`."""


@dataclass
class GroupView:
    """A group as a rule sees it, without what earlier rules dropped."""

    id: str
    prompt: Any
    responses: list[Any]
    scores: list[float] | None = None
    finish_reasons: list[str | None] | None = None
    """Why generation stopped (`stop`, `length`, ...), if it was recorded."""

    @cached_property
    def texts(self) -> list[str]:
        return [response_text(response) for response in self.responses]


@dataclass(frozen=True)
class Tools:
    """What rules may need besides the data."""

    tokenizer: Any = None
    seed: int = 0
    num_proc: int | None = None


class CurationRule(BaseModel, ABC):
    """A rule and its options. The docstring of a subclass is its entry in the docs."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    _extension: str | None = PrivateAttr(None)

    @property
    def name(self) -> str:
        """The class's name in snake case, or the name under which a user's own rule was loaded."""
        return self._extension or re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()

    def reads(self) -> list[Path]:
        """Return the files that the decisions depend on, besides the data and the rule's code. By default none."""
        return []

    def dependencies(self) -> list[Path]:
        """Return the files that it reads, and a user's own code."""
        return [*(extension_files(self._extension) if self._extension else []), *self.reads()]

    def check_tools(self, tools: Tools) -> None:
        """Raise ValueError if the rule cannot work with these tools."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Other processes load a user's class again: pickle finds no class that came from a file.
        if self._extension is None:
            return super().__reduce_ex__(protocol)
        return load_rule, (self._extension, dict(self))


def load_rule(extension: str, options: dict[str, Any]) -> CurationRule:
    """Make a user's own rule, named `file.py:Class` or `package.module:Class`. Raise ValueError if there is none."""
    kind = load_extension(extension)
    if not (isinstance(kind, type) and issubclass(kind, CurationRule)):
        raise ValueError(f"{extension!r} is no curation rule: write a subclass of GroupRule or PoolRule.")
    rule = kind(**options)
    rule._extension = extension
    return rule


class GroupRule(CurationRule):
    """A rule that looks at one group at a time. It can run in any number of processes."""

    @abstractmethod
    def judge(self, group: GroupView, tools: Tools) -> Iterable[Decision]:
        """Yield at most one decision for each response, or one for the group."""


@dataclass
class PoolDecisions:
    """What a rule decides about the groups of a dataset, by position: reasons, and numbers of additional copies."""

    dropped: dict[int, str] = field(default_factory=dict)
    flagged: dict[int, str] = field(default_factory=dict)
    repeated: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What the ledger says about the decisions as a whole."""


class PoolRule(CurationRule):
    """A rule that compares groups with each other. Its decisions must not depend on their order."""

    @abstractmethod
    def judge_pool(self, groups: Dataset, tools: Tools) -> PoolDecisions:
        """Return the decisions on all groups."""
