"""Mix the groups of one dataset by category. A category is a column of the groups, or found by patterns."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml
from datasets import Dataset
from pydantic import Field, field_validator

from mrt_plugin.curation.mix import check_proportions, draw_mix, plan_mix
from mrt_plugin.curation.rule import PoolDecisions, PoolRule, Tools
from mrt_plugin.groups.messages import prompt_text

PRESET = {"reasoning": 0.35, "instructions": 0.30, "dialogue": 0.20, "code": 0.15}
"""The shares of a general assistant in practice guides to fine-tuning."""

DEFAULT_FILE = Path(__file__).with_name("categories.yaml")

UNKNOWN = "no category"


@dataclass(frozen=True)
class Category:
    """What puts a prompt into a category: any pattern, or so many user messages. With neither it takes the rest."""

    name: str
    patterns: tuple[re.Pattern[str], ...] = ()
    turns: int | None = None

    @property
    def takes_the_rest(self) -> bool:
        return not self.patterns and self.turns is None

    def matches(self, text: str, turns: int) -> bool:
        if self.takes_the_rest or (self.turns is not None and turns >= self.turns):
            return True
        return any(pattern.search(text) for pattern in self.patterns)


def read_categories(path: str | Path) -> tuple[Category, ...]:
    """Return the categories of a YAML file, in its order, or raise ValueError that names the problem."""
    path = Path(path)
    if not path.is_file():
        _refuse(path, "there is no such file")
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, _modified: int) -> tuple[Category, ...]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        _refuse(path, f"not YAML: {problem}")
    if not isinstance(found, dict) or not found:
        _refuse(path, "write a category per line, each with `patterns:` or `turns:`")
    categories = []
    for name, given in found.items():
        options: Any = {"patterns": given} if isinstance(given, list) else given or {}
        if not isinstance(options, dict) or set(options) - {"patterns", "turns"}:
            _refuse(path, f"{name}: give it a list of patterns, or `patterns:` and `turns:`")
        patterns, turns = options.get("patterns") or [], options.get("turns")
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            _refuse(path, f"{name}: `patterns` must be a list of strings")
        if turns is not None and (not isinstance(turns, int) or isinstance(turns, bool) or turns < 1):
            _refuse(path, f"{name}: `turns` must be a whole number from 1")
        try:
            compiled = tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)
        except re.error as problem:
            _refuse(path, f"{name}: {problem.pattern!r} is no regular expression: {problem}")
        categories.append(Category(str(name), compiled, turns))
    early = [one.name for one in categories[:-1] if one.takes_the_rest]
    if early:
        _refuse(path, f"{early[0]} takes all the rest, so that no later category gets a prompt: put it last")
    return tuple(categories)


def _refuse(path: Path, what: str) -> NoReturn:
    raise ValueError(f"{path}: {what}.")


def category_of(prompt: Any, categories: Sequence[Category]) -> str | None:
    """Return the first category that a prompt matches, or None."""
    text = prompt_text(prompt)
    turns = 1 if isinstance(prompt, str) else sum(message["role"] == "user" for message in prompt)
    return next((one.name for one in categories if one.matches(text, turns)), None)


def entropy(counts: Mapping[str, int]) -> float:
    """Return the entropy of a distribution given by counts, in bits. 0 for no counts.

    Example:

    >>> entropy({"code": 2, "reasoning": 1, "dialogue": 1})
    1.5
    """
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values() if count) + 0.0


class MixCategories(PoolRule):
    """Draws groups so that categories of prompts have given shares: by default 35 % reasoning, 30 % instructions, 20 %
    dialogue, 15 % code. Groups of other categories are dropped. The ledger has the entropy of the categories before
    and after. For copies and `max_repeats` see [Mixing](mixing.md).
    """

    shares: dict[str, float] = Field(default_factory=lambda: dict(PRESET), description="The share of each category.")
    by: str = Field(
        "default",
        description="`default` (our patterns), a YAML file of patterns, or `column`: the groups' `category`.",
    )
    total: int | None = Field(None, ge=1, description="The number of groups of the result; by default the most.")
    max_repeats: int = Field(4, ge=1, description="How often a group may occur.")

    @field_validator("shares")
    @classmethod
    def _positive(cls, shares: dict[str, float]) -> dict[str, float]:
        check_proportions(shares, shares, 1)
        return shares

    @field_validator("by")
    @classmethod
    def _readable(cls, by: str) -> str:
        if by not in ("default", "column"):
            read_categories(by)
        return by

    def reads(self) -> list[Path]:
        return [] if self.by == "column" else [DEFAULT_FILE if self.by == "default" else Path(self.by)]

    def judge_pool(self, groups: Dataset, tools: Tools) -> PoolDecisions:
        found = self.categories(groups)
        counts = Counter(found)
        wanted = [name for name, share in self.shares.items() if share > 0]
        if missing := [name for name in wanted if not counts[name]]:
            has = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common())
            raise ValueError(
                f"curation rule `mix_categories`: no group is of the category {' or '.join(missing)}; there are {has}"
                ". Add data, give other shares, or other rules with `by`."
            )
        takes = plan_mix(
            {name: counts[name] for name in self.shares}, self.shares, total=self.total, max_repeats=self.max_repeats
        )
        taken = Counter(draw_mix(groups["id"][:], found, takes, tools.seed))
        reasons = {name: f"{name} beyond its share" if takes.get(name) else f"{name} has no share" for name in counts}
        after = Counter({name: take for name, take in takes.items() if take})
        return PoolDecisions(
            dropped={place: reasons[name] for place, name in enumerate(found) if place not in taken},
            repeated={place: times - 1 for place, times in taken.items()},
            notes=[_line("before", counts), _line("after", after)],
        )

    def categories(self, groups: Dataset) -> list[str]:
        """Return the category of each group."""
        if self.by != "column":
            rules = read_categories(self.reads()[0])
            return [category_of(prompt, rules) or UNKNOWN for prompt in groups["prompt"]]
        if "category" not in groups.column_names:
            raise ValueError(
                "curation rule `mix_categories` with by: column needs groups with a column `category`. A source reads "
                "it from another column with the option category=NAME, as in 'sharegpt:category=domain'."
            )
        return [name or UNKNOWN for name in groups["category"]]


def _line(when: str, counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    shares = ", ".join(f"{name} {count / total:.1%}" for name, count in sorted(counts.items()))
    return f"categories {when}: {shares}; entropy {entropy(counts):.2f} bits"
