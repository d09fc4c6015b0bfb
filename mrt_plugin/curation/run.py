"""`curate`: apply rules in order, and account for every response."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from mrt_plugin.curation.config import RuleSpec, parse_rules
from mrt_plugin.curation.ledger import Entry, Ledger
from mrt_plugin.curation.rule import Group, GroupRule, PoolRule, Rule, Tools, Verdict
from mrt_plugin.engine import check_engine, map_batches
from mrt_plugin.groups.batches import pool_sizes
from mrt_plugin.groups.problems import GroupReport
from mrt_plugin.groups.rows import keep_responses, repeat_groups
from mrt_plugin.groups.write import whole_file
from mrt_plugin.options import Engine

logger = logging.getLogger(__name__)

BATCH = 64
"""Groups judged at a time."""

JUDGED = ("id", "prompt", "responses", "scores", "finish_reasons")
"""The columns that rules see."""

Event = tuple[int, str, str, int | None]
"""The number of a rule, the action, the reason, and the response's index as it came in; None for the group."""


@dataclass
class Curated:
    """The groups that are left, and where they come from."""

    groups: Dataset
    ledger: Ledger
    row: list[int]
    """For each group, its position in the dataset that came in."""
    origin: list[list[int]]
    """For each group, the index that each of its responses had there."""
    changed: dict[tuple[int, int], Any]
    """The changed responses, by (position among the groups left, index among its responses left)."""
    events: list[tuple[int, Event]] = field(default_factory=list)
    """All decisions but the keeping, with the group's position in the dataset that came in."""


def curate(
    groups: Dataset,
    rules: str | Sequence[RuleSpec],
    *,
    tokenizer: Any = None,
    seed: int = 0,
    num_proc: int | None = None,
    engine: Engine = "local",
    ledger: Ledger | None = None,
) -> Curated:
    """Apply rules in order.

    The result is the same for any number of processes, on Ray, and for any order of the rows, but for that order.

    Args:
        groups: as `load_groups` gives them; a column `finish_reasons` (a string or None per response) is used.
        rules: names, `{name: options}`, or rule objects, in the order in which they are applied; or `default`.
        tokenizer: the run's, for the rules that count tokens or encode.
        seed: of what is drawn.
        num_proc: processes.
        engine: where rules on single groups run: `local`, or on `ray`. Rules that compare groups run here.
        ledger: one to go on with, for instance `Ledger([reading_entry(report)])` with the report of `read_groups`, so
            that it starts with the rows of the file. It is not changed.

    Raises:
        ValueError: if a rule or an option is unknown, a rule cannot work as asked, or nothing is left.

    Example:

    ```python
    from mrt_plugin import load_groups
    from mrt_plugin.curation import curate

    curated = curate(load_groups("pool.jsonl"), ["format", "truncation", {"refusals": {"action": "drop"}}])
    curated.groups, curated.ledger.lines()
    ```
    """
    parsed = parse_rules(rules)
    check_engine(engine)
    tools = Tools(tokenizer, seed, num_proc)
    for rule in parsed:
        rule.check_tools(tools)
    run = _Run(groups, tools, ledger or Ledger())
    for whole, several in groupby(parsed, key=lambda rule: isinstance(rule, PoolRule)):
        for part in [[rule] for rule in several] if whole else [list(several)]:
            if not len(run.groups):
                break
            if whole:
                run.pool_rule(part[0])  # type: ignore[arg-type]
            else:
                run.group_rules(part, engine)  # type: ignore[arg-type]
    return run.finish()


def reading_entry(*reports: GroupReport) -> Entry:
    """The entry for reading files: what was there, and what was dropped for being empty.

    What a source leaves out on purpose is not counted as having come in; the entry names it.
    """
    entry = Entry("reading", 0, 0)
    for report in reports:
        empty, bare = report.empty_responses, report.groups_without_responses
        entry.groups_in += report.groups + bare.count
        entry.responses_in += report.responses + empty.count
        entry.groups_dropped += bare.count
        entry.responses_dropped += empty.count
        found = [("drop: empty", empty), ("drop: no response", bare)]
        for reason, tally in [*found, *((f"left out: {what}", tally) for what, tally in report.left_out.items())]:
            if tally.count:
                entry.reasons[reason] += tally.count
                entry.examples.setdefault(reason, []).append(f"{report.source}: {tally.first}")
    return entry


class _Run:
    """The groups that are left so far, with their origin, and the ledger."""

    def __init__(self, groups: Dataset, tools: Tools, ledger: Ledger) -> None:
        self.groups = groups
        self.tools = tools
        self.ledger = Ledger(list(ledger.entries))
        self.ids = groups["id"][:]
        self.row = list(range(len(groups)))
        self.origin = [list(range(size)) for size in pool_sizes(groups)]
        self.changed: dict[tuple[int, int], Any] = {}
        self.events: list[tuple[int, Event]] = []

    def group_rules(self, rules: list[GroupRule], engine: Engine) -> None:
        """Rules that look at single groups: one pass for all of them."""
        entries = [self._open(rules[0])] + [Entry(rule.name, 0, 0) for rule in rules[1:]]
        names = [name for name in JUDGED if name in self.groups.features]
        decided = map_batches(
            self.groups.select_columns(names),
            judge_batch,
            {"rules": rules, "tools": self.tools},
            DECISION,
            batch_size=BATCH,
            description=f"Curating ({', '.join(rule.name for rule in rules)})",
            num_proc=self.tools.num_proc,
            engine=engine,
        )
        kept: list[list[int]] = decided["kept"][:]
        new: dict[tuple[int, int], Any] = {}
        sizes = [len(origin) for origin in self.origin]
        for place, (changes, events) in enumerate(zip(decided["changes"][:], decided["events"][:], strict=True)):
            if changes:
                new.update(((place, index), response) for index, response in json.loads(changes))
            if events:
                self._account(place, sizes, [tuple(event) for event in json.loads(events)], entries)  # type: ignore[misc]
        for before, entry in pairwise(entries):
            entry.groups_in, entry.responses_in = before.groups_out, before.responses_out
        self.ledger.entries += entries
        self._keep(kept, new)

    def _account(self, place: int, sizes: list[int], events: list[Event], entries: list[Entry]) -> None:
        """Enter what happened to one group."""
        left = sizes[place]
        for number, action, reason, index in events:
            entry, name = entries[number], self.ids[self.row[place]]
            source = None if index is None else self.origin[place][index]
            entry.count(action, reason, name if source is None else f"{name} [{source}]")
            self.events.append((self.row[place], (len(self.ledger.entries) + number, action, reason, source)))
            if action == "flag":
                entry.flagged += 1
            elif action == "change":
                entry.responses_changed += 1
            elif index is None:
                entry.groups_dropped += 1
                entry.responses_dropped_with_group += left
            else:
                entry.responses_dropped += 1
                left -= 1
                if not left:
                    entry.groups_dropped += 1

    def _keep(self, kept: list[list[int]], new: dict[tuple[int, int], Any]) -> None:
        """Go on with these responses of each group, and these changes."""
        places = [place for place, stay in enumerate(kept) if stay]
        if new or any(len(stay) < len(self.origin[place]) for place, stay in enumerate(kept) if stay):
            self.groups = keep_responses(self.groups, kept, new)
        self.changed = {**self.changed, **new}
        self.changed = {
            (position, index): self.changed[place, old]
            for position, place in enumerate(places)
            for index, old in enumerate(kept[place])
            if (place, old) in self.changed
        }
        self.origin = [[self.origin[place][old] for old in kept[place]] for place in places]
        self.row = [self.row[place] for place in places]
        if len(places) < len(self.groups):
            self.groups = self.groups.select(places)

    def pool_rule(self, rule: PoolRule) -> None:
        """A rule that compares groups."""
        entry = self._open(rule)
        verdict = rule.judge_pool(self.groups, self.tools)
        number = len(self.ledger.entries)
        for action, found in (("drop", verdict.dropped), ("flag", verdict.flagged)):
            for place, reason in found.items():
                entry.count(action, reason, self.ids[self.row[place]])
                self.events.append((self.row[place], (number, action, reason, None)))
        entry.flagged = len(verdict.flagged)
        entry.groups_dropped = len(verdict.dropped)
        entry.responses_dropped_with_group = sum(len(self.origin[place]) for place in verdict.dropped)
        entry.groups_added = sum(verdict.repeated.values())
        entry.responses_added = sum(times * len(self.origin[place]) for place, times in verdict.repeated.items())
        self.ledger.entries.append(entry)
        places = [
            place
            for place in range(len(self.groups))
            if place not in verdict.dropped
            for _ in range(1 + verdict.repeated.get(place, 0))
        ]
        if len(places) != len(self.groups) or verdict.repeated:
            self.groups = repeat_groups(self.groups, places)
            self._move(places)

    def _move(self, places: list[int]) -> None:
        by_group: dict[int, dict[int, Any]] = {}
        for (place, index), response in self.changed.items():
            by_group.setdefault(place, {})[index] = response
        self.changed = {
            (position, index): response
            for position, place in enumerate(places)
            for index, response in by_group.get(place, {}).items()
        }
        self.row = [self.row[place] for place in places]
        self.origin = [self.origin[place] for place in places]

    def _open(self, rule: Rule) -> Entry:
        return Entry(rule.name, len(self.groups), sum(map(len, self.origin)))

    def finish(self) -> Curated:
        """Count what is there, check the sums, and refuse an empty result."""
        groups, ledger = self.groups, self.ledger
        ledger.groups_out = len(groups)
        ledger.responses_out = sum(pool_sizes(groups))
        ledger.responses_changed = len(self.changed)
        ledger.responses_unchanged = sum(map(len, self.origin)) - len(self.changed)
        ledger.check()
        if not len(groups):
            raise ValueError("curation leaves no group. " + " ".join(f"{line}." for line in ledger.lines()))
        for line in ledger.lines():
            logger.info(line)
        return Curated(groups, ledger, self.row, self.origin, self.changed, self.events)


DECISION = Features({"kept": List(Value("int64")), "changes": Value("string"), "events": Value("string")})


def judge_batch(batch: dict[str, list[Any]], *, rules: Sequence[GroupRule], tools: Tools) -> dict[str, list[Any]]:
    """The decisions of some rules about some groups, given and answered by columns: stateless, and each group for
    itself.

    Args:
        batch: the columns `id`, `prompt`, `responses` and, where there are any, `scores` and `finish_reasons`.
        rules: in their order.
        tools: what they may need.

    Returns:
        The columns of `DECISION`, one row per group: the indices of the responses that stay, and as JSON the changed
        responses `[[index, response], ...]` and the events `[[rule, action, reason, index], ...]`, empty for none.
    """
    answer: dict[str, list[Any]] = {"kept": [], "changes": [], "events": []}
    for place in range(len(batch["id"])):
        group = Group(**{name: column[place] for name, column in batch.items()})
        kept, changes, events = _judge(group, rules, tools)
        answer["kept"].append(kept)
        answer["changes"].append(json.dumps(sorted(changes.items()), ensure_ascii=False) if changes else "")
        answer["events"].append(json.dumps(events, ensure_ascii=False) if events else "")
    return answer


def _judge(group: Group, rules: Sequence[GroupRule], tools: Tools) -> tuple[list[int], dict[int, Any], list[Event]]:
    kept = list(range(len(group.responses)))
    changes: dict[int, Any] = {}
    events: list[Event] = []
    for number, rule in enumerate(rules):
        verdicts: dict[int | None, Verdict] = {}
        for verdict in rule.judge(group, tools):
            verdicts.setdefault(verdict.response, verdict)
        whole = verdicts.pop(None, None)
        if whole is not None:
            events.append((number, whole.action, whole.reason, None))
            if whole.action == "drop":
                return [], {}, events
        if not verdicts:
            continue
        for index, verdict in sorted(verdicts.items()):  # type: ignore[type-var]
            events.append((number, verdict.action, verdict.reason, kept[index]))  # type: ignore[index]
            if verdict.action == "change":
                changes[kept[index]] = verdict.new  # type: ignore[index]
        stay = [index for index in range(len(kept)) if index not in verdicts or verdicts[index].action != "drop"]
        group = Group(
            group.id,
            group.prompt,
            [changes.get(kept[index], group.responses[index]) for index in stay],
            group.scores and [group.scores[index] for index in stay],
            group.finish_reasons and [group.finish_reasons[index] for index in stay],
        )
        kept = [kept[index] for index in stay]
        changes = {index: response for index, response in changes.items() if index in kept}
        if not kept:
            break
    return kept, changes, events


def write_events(path: Path | str, groups: Dataset, curated: Curated) -> None:
    """Write every decision but the keeping as one JSON line each, with the response that it was about, for a person to
    read.

    Args:
        path: of the JSONL file.
        groups: the dataset that was curated.
        curated: what came of it.
    """
    names = [entry.rule for entry in curated.ledger.entries]
    with whole_file(path) as file:
        for row, (rule, action, reason, index) in curated.events:
            group = groups[row]
            line = {"id": group["id"], "rule": names[rule], "action": action, "reason": reason, "response": index}
            line["prompt"] = group["prompt"]
            if index is not None:
                line["text"] = group["responses"][index]
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
