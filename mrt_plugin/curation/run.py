"""Apply curation rules in order, and account for every response."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from mrt_plugin.curation.config import RuleSpec, parse_rules
from mrt_plugin.curation.ledger import Entry, Ledger
from mrt_plugin.curation.rule import Decision, GroupRule, GroupView, PoolRule, Tools
from mrt_plugin.engine import check_engine, map_batches
from mrt_plugin.groups.batches import pool_sizes
from mrt_plugin.groups.problems import GroupReport
from mrt_plugin.groups.rows import keep_responses, repeat_groups
from mrt_plugin.groups.write import whole_file
from mrt_plugin.options import Engine

logger = logging.getLogger(__name__)

JUDGED = ("id", "prompt", "responses", "scores", "finish_reasons")
"""The columns that rules see."""

JUDGEMENT = Features({"kept": List(Value("int64")), "changes": Value("string"), "events": Value("string")})

Event = tuple[int, str, str, int | None]
"""A rule's number, the action, the reason, and the original index of the response (None for the group)."""


@dataclass
class Curated:
    """The remaining groups, and their origin. `curate` applies one rule after the other to it."""

    groups: Dataset
    ledger: Ledger
    ids: list[str]
    """The ids of the original groups."""
    row: list[int]
    """For each group, its position in the original dataset."""
    origin: list[list[int]]
    """For each group, the original index of each of its responses."""
    changed: dict[tuple[int, int], Any]
    """The changed responses, by (position among the remaining groups, index among the remaining responses)."""
    events: list[tuple[int, Event]]
    """All decisions to drop, change or flag, with the group's position in the original dataset."""

    def _group_rules(self, rules: list[GroupRule], tools: Tools, engine: Engine) -> None:
        """Apply rules on single groups, in one pass over the data."""
        entries = [Entry(rule.name, len(self.groups), sum(map(len, self.origin))) for rule in rules]
        judged = map_batches(
            self.groups.select_columns([name for name in JUDGED if name in self.groups.features]),
            judge_batch,
            {"rules": rules, "tools": tools},
            JUDGEMENT,
            batch_size=64,
            description=f"Curating ({', '.join(rule.name for rule in rules)})",
            num_proc=tools.num_proc,
            engine=engine,
        )
        kept: list[list[int]] = judged["kept"][:]
        new: dict[tuple[int, int], Any] = {}
        for place, (changes, events) in enumerate(zip(judged["changes"][:], judged["events"][:], strict=True)):
            new.update(((place, index), response) for index, response in json.loads(changes))
            self._account(place, json.loads(events), entries)
        for before, entry in pairwise(entries):
            entry.groups_in, entry.responses_in = before.groups_out, before.responses_out
        self.ledger.entries += entries
        places = [place for place, stay in enumerate(kept) if stay]
        if new or any(len(kept[place]) < len(self.origin[place]) for place in places):
            self.groups = keep_responses(self.groups, kept, new)
        self.changed.update(new)
        self._take(places, kept)

    def _account(self, place: int, events: Sequence[Event], entries: list[Entry]) -> None:
        """Count and record the decisions of one pass on one group."""
        row, origin = self.row[place], self.origin[place]
        left = len(origin)
        for number, action, reason, index in events:
            entry, source = entries[number], None if index is None else origin[index]
            entry.count(action, reason, self.ids[row] if source is None else f"{self.ids[row]} [{source}]")
            self.events.append((row, (len(self.ledger.entries) + number, action, reason, source)))
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
                entry.groups_dropped += not left

    def _pool_rule(self, rule: PoolRule, tools: Tools) -> None:
        entry = Entry(rule.name, len(self.groups), sum(map(len, self.origin)))
        found = rule.judge_pool(self.groups, tools)
        for action, reasons in (("drop", found.dropped), ("flag", found.flagged)):
            for place, reason in reasons.items():
                self._account(place, [(0, action, reason, None)], [entry])
        entry.notes = found.notes
        entry.groups_added = sum(found.repeated.values())
        entry.responses_added = sum(times * len(self.origin[place]) for place, times in found.repeated.items())
        self.ledger.entries.append(entry)
        stay = (place for place in range(len(self.groups)) if place not in found.dropped)
        places = [place for place in stay for _ in range(1 + found.repeated.get(place, 0))]
        self._take(places, [range(len(responses)) for responses in self.origin])

    def _take(self, places: list[int], kept: Sequence[Sequence[int]]) -> None:
        """Continue with the groups at some places, and of each the responses that are kept."""
        self.changed = self.changed and {
            (position, index): self.changed[place, old]
            for position, place in enumerate(places)
            for index, old in enumerate(kept[place])
            if (place, old) in self.changed
        }
        self.origin = [[self.origin[place][old] for old in kept[place]] for place in places]
        self.row = [self.row[place] for place in places]
        if places != list(range(len(self.groups))):
            self.groups = repeat_groups(self.groups, places)


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
    """Apply rules in order. The result does not depend on the order of the rows, the processes or the engine.

    Args:
        groups: groups as from `load_groups`. A column `finish_reasons` (a string or None per response) is used.
        rules: names, `{name: options}`, or rule objects, in the order in which they are applied; or `default`.
        tokenizer: the run's tokenizer, for the rules that count tokens or encode.
        seed: the seed of random draws.
        num_proc: the number of processes.
        engine: `local`, or `ray` for the rules on single groups. Rules that compare groups always run here.
        ledger: a ledger to continue, for instance `Ledger([reading_entry(report)])` with the report of `read_groups`.
            It is not modified.

    Raises:
        ValueError: if a rule or an option is unknown, a rule cannot work as asked, or no group remains.

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
    origin = [list(range(size)) for size in pool_sizes(groups)]
    entries = list(ledger.entries) if ledger else []
    run = Curated(groups, Ledger(entries), groups["id"][:], list(range(len(groups))), origin, {}, [])
    for _, part in groupby(parsed, key=lambda rule: id(rule) if isinstance(rule, PoolRule) else None):
        together = list(part)
        if not len(run.groups):
            break
        if isinstance(together[0], PoolRule):
            run._pool_rule(together[0], tools)
        else:
            run._group_rules(together, tools, engine)  # type: ignore[arg-type]
    left, changed = sum(pool_sizes(run.groups)), len(run.changed)
    unchanged = sum(map(len, run.origin)) - changed
    run.ledger = Ledger(entries, len(run.groups), left, unchanged, changed)
    run.ledger.check()
    if not len(run.groups):
        raise ValueError("curation leaves no group. " + " ".join(f"{line}." for line in run.ledger.lines()))
    for line in run.ledger.lines():
        logger.info(line)
    return run


def reading_entry(*reports: GroupReport) -> Entry:
    """Return the ledger's entry for reading files. What a source leaves out on purpose is named, not counted."""
    entry = Entry("reading", 0, 0)
    for report in reports:
        empty, bare = report.empty_responses, report.groups_without_responses
        entry.groups_in += report.groups + bare.count
        entry.responses_in += report.responses + empty.count
        entry.groups_dropped += bare.count
        entry.responses_dropped += empty.count
        left_out = [("left out", what, tally) for what, tally in report.left_out.items()]
        for action, reason, tally in [("drop", "empty", empty), ("drop", "no response", bare), *left_out]:
            if tally.count:
                entry.count(action, reason, f"{report.source}: {tally.first}", tally.count)
    return entry


def judge_batch(batch: dict[str, list[Any]], *, rules: Sequence[GroupRule], tools: Tools) -> dict[str, list[Any]]:
    """Return the decisions of rules on a batch of groups. Stateless: each group is judged separately.

    The result has the columns of `JUDGEMENT`: the indices of the kept responses, and as JSON the changed responses
    `[[index, response], ...]` and the events `[[rule, action, reason, index], ...]`.
    """
    answer: dict[str, list[Any]] = {name: [] for name in JUDGEMENT}
    for values in zip(*batch.values(), strict=True):
        kept, changes, events = _judge(GroupView(**dict(zip(batch, values, strict=True))), rules, tools)
        answer["kept"].append(kept)
        answer["changes"].append(json.dumps(sorted(changes.items()), ensure_ascii=False))
        answer["events"].append(json.dumps(events, ensure_ascii=False))
    return answer


def _judge(
    group: GroupView, rules: Sequence[GroupRule], tools: Tools
) -> tuple[list[int], dict[int, Any], list[Event]]:
    """Return the indices of the kept responses, the changed responses by index, and all events of one group."""
    kept = list(range(len(group.responses)))
    changes: dict[int, Any] = {}
    events: list[Event] = []
    for number, rule in enumerate(rules):
        decisions: dict[int | None, Decision] = {}
        for decision in rule.judge(group, tools):
            decisions.setdefault(decision.response, decision)
        on_group = decisions.pop(None, None)
        if on_group is not None:
            events.append((number, on_group.action, on_group.reason, None))
            if on_group.action == "drop":
                return [], {}, events
        if not decisions:
            continue
        for index, decision in sorted(decisions.items()):  # type: ignore[type-var]
            events.append((number, decision.action, decision.reason, kept[index]))  # type: ignore[index]
            if decision.action == "change":
                changes[kept[index]] = decision.new  # type: ignore[index]
        stay = [index for index in range(len(kept)) if index not in decisions or decisions[index].action != "drop"]
        group = GroupView(
            group.id,
            group.prompt,
            [changes.get(kept[index], group.responses[index]) for index in stay],
            group.scores and [group.scores[index] for index in stay],
            group.finish_reasons and [group.finish_reasons[index] for index in stay],
        )
        kept = [kept[index] for index in stay]
        if not kept:
            break
    return kept, {index: response for index, response in changes.items() if index in kept}, events


def write_events(path: Path | str, groups: Dataset, curated: Curated) -> None:
    """Write every decision as one JSON line, with its response. `groups` is the dataset before curation."""
    with whole_file(path) as file:
        for row, (number, action, reason, index) in curated.events:
            group, rule = groups[row], curated.ledger.entries[number].rule
            line = {"id": group["id"], "rule": rule, "action": action, "reason": reason, "response": index}
            line["prompt"] = group["prompt"]
            line |= {} if index is None else {"text": group["responses"][index]}
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
