"""What a rule is: options with a name, that says which responses or groups to drop, change or flag."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from datasets import Dataset
from pydantic import BaseModel, ConfigDict

from mrt_plugin.groups.messages import response_text

Action = Literal["drop", "change", "flag"]
DropOrFlag = Literal["drop", "flag"]


@dataclass(frozen=True)
class Verdict:
    """What a rule decides about a response, or about a whole group. What has no verdict is kept as it is."""

    action: Action
    reason: str
    """A few words to count by: the same for every response of its kind."""
    response: int | None = None
    """Index in the group as the rule saw it; None for the whole group, which can be dropped or flagged."""
    new: Any = None
    """The response that takes its place, for `change`."""


@dataclass
class Group:
    """A group as a rule sees it: what earlier rules dropped is gone."""

    id: str
    prompt: Any
    responses: list[Any]
    scores: list[float] | None = None
    finish_reasons: list[str | None] | None = None
    """Why generation stopped, where that was recorded: `stop`, `length`, ..."""
    _texts: list[str] | None = field(default=None, repr=False)

    @property
    def texts(self) -> list[str]:
        """What each response says, as text."""
        if self._texts is None:
            self._texts = [response_text(response) for response in self.responses]
        return self._texts


@dataclass(frozen=True)
class Tools:
    """What rules may need besides the data."""

    tokenizer: Any = None
    seed: int = 0
    num_proc: int | None = None


class Rule(BaseModel, ABC):
    """The options of a rule; unknown ones are refused. The subclass's docstring is its entry in `docs/curation.md`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: ClassVar[str]

    def reads(self) -> list[Path]:
        """The files that the rule's decisions depend on, besides the data. By default none."""
        return []

    def check_tools(self, tools: Tools) -> None:
        """Raise ValueError if the rule cannot work with these tools. By default it can."""
        return


class GroupRule(Rule):
    """A rule that looks at one group at a time, and so runs in any number of processes."""

    @abstractmethod
    def judge(self, group: Group, tools: Tools) -> Iterable[Verdict]:
        """At most one verdict for each response, or one for the group."""


@dataclass
class PoolVerdict:
    """What a rule decides about the groups of a dataset, by their position in it."""

    dropped: dict[int, str] = field(default_factory=dict)
    flagged: dict[int, str] = field(default_factory=dict)
    repeated: dict[int, int] = field(default_factory=dict)
    """How many more times a group is to occur."""


class PoolRule(Rule):
    """A rule that compares groups with each other. Its decisions must not depend on their order."""

    @abstractmethod
    def judge_pool(self, groups: Dataset, tools: Tools) -> PoolVerdict:
        """The verdict on all groups."""
