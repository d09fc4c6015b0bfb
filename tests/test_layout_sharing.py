"""What sharing saves, level by level, against a count by the definition."""

from collections import Counter

import pytest
from helpers.trees import random_forest, visible_by_definition

from mrt_plugin.bench.shapes import TurnShape, draw_groups
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import GroupRow, build_group_row, sequences_of
from mrt_plugin.layout.packing import fill_rows
from mrt_plugin.layout.sharing import LEVELS, Sharing, measure_sharing
from mrt_plugin.layout.tree import build_tree


def by_definition(batches: list[list[GroupRow]], row_length: int | None, packing: bool) -> tuple[int, dict[str, int]]:
    """The tokens of complete sequences, and those saved on each level, from sets of beginnings."""
    every = []
    for row in (row for batch in batches for row in batch):
        for sequence in sequences_of(row):
            ids = (*sequence.input_ids.tolist(), -1)
            every.append({ids[: place + 2] for place in range(len(ids) - 1)})
    common = set.intersection(*every) if sum(map(len, batches)) > 1 else set()
    expanded, saved = 0, Counter(dict.fromkeys(LEVELS, 0))
    for batch in batches:
        groups = [sequences_of(row) for row in batch]
        for row in fill_rows(groups, row_length, packing=packing):
            owners = [(group, batch[group]["segment_responses"][place]) for group, place in row]
            ids = [groups[group][place].input_ids.tolist() for group, place in row]
            expanded += sum(map(len, ids))
            nodes, paths = visible_by_definition(ids)
            for beginning, node in nodes.items():
                members = [owner for owner, path in zip(owners, paths, strict=True) if node in path]
                group = members[0][0]
                untrained = min(sequence.trained.tolist().index(True) for sequence in groups[group])
                if beginning in common:
                    level = "system"
                elif len({group for group, _ in members}) > 1:
                    level = "document"
                elif len(set(members)) == 1:
                    level = "turns"
                elif set(members) == {owner for owner in owners if owner[0] == group} and len(beginning) <= untrained:
                    level = "prompt"
                else:
                    level = "responses"
                saved[level] += len(members) - 1
    return expanded, dict(saved)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("row_length", "packing"), [(None, False), (30, True), (30, False), (500, True)])
def test_the_levels_are_those_of_the_definition(seed, row_length, packing):
    rows = random_forest(f"sharing {seed}", groups=5, vocabulary=[9, 96][seed % 2])
    system = [5, 6, 7, 8] if seed % 3 else []
    rows = [_after(system, row, turns=1 + seed % 2) for row in rows]
    numbers = list(range(len(rows)))
    batches = [numbers[:3], numbers[3:]] if len(rows) > 3 else [numbers]
    found = measure_sharing(rows.__getitem__, batches, row_length=row_length, packing=packing)
    expanded, saved = by_definition([[rows[number] for number in batch] for batch in batches], row_length, packing)
    assert (found.groups, found.expanded, found.saved) == (len(rows), expanded, saved)
    groups = [[sequences_of(rows[number]) for number in batch] for batch in batches]
    trees = [
        build_tree([batch[group][place] for group, place in row])
        for batch in groups
        for row in fill_rows(batch, row_length, packing=packing)
    ]
    assert found.shared == sum(len(tree.input_ids) for tree in trees)


def _after(text: list[int], row: GroupRow, turns: int) -> GroupRow:
    """The group after a text, with so many of its sequences in each response."""
    pairs = [
        Pair([*text, *sequence.input_ids.tolist()], [False] * len(text) + sequence.trained.tolist())
        for sequence in sequences_of(row)
    ]
    return build_group_row([pairs[start : start + turns] for start in range(0, len(pairs), turns)])


def test_each_level_has_the_tokens_that_its_texts_have():
    """Two documents of two questions each, and two answers with equal first words, after a system text."""
    system, documents = list(range(100, 110)), [list(range(200, 220)), list(range(300, 320))]
    rows = []
    for number in range(4):
        prompt = [*system, *documents[number // 2], *range(400 + 10 * number, 405 + 10 * number)]
        answers = [[30, 31, 32, end] for end in (40, 41)]
        rows.append(build_group_row([Pair(prompt + answer, [False] * 35 + [True] * 4) for answer in answers]))
    found = measure_sharing(rows.__getitem__, [[0, 1, 2, 3]], row_length=1000, packing=True)
    assert found.expanded == 8 * 39
    # The token before two texts part is in both: 9 of the system text, 20 with its last for each document, 5 of each
    # prompt but the last, which begins each answer, and 3 shared tokens of two answers with the prompt's last.
    assert found.saved == {"system": 9 * 7, "document": 2 * 20 * 3, "prompt": 4 * 5, "turns": 0, "responses": 4 * 3}
    assert found.shared == 9 + 2 * 20 + 4 * (5 + 3 + 2 * 2)
    assert found.describe() == "document 38.5 %, system 20.2 %, prompt 6.4 %, responses 3.8 %"
    assert Sharing(1, 10, dict.fromkeys(LEVELS, 0)).describe() == "nothing"


def test_the_turns_of_a_conversation_share_their_earlier_turns():
    (pairs,) = draw_groups(TurnShape(3, user=10, thinking=7, answer=4), 1, 1000)
    row = build_group_row([pairs])
    found = measure_sharing([row].__getitem__, [[0]], row_length=None, packing=True)
    # Three sequences share 10 - 1 tokens, two of them 10 + 4 + 10 - 1.
    assert found.saved == {"system": 0, "document": 0, "prompt": 0, "turns": 9 + 23, "responses": 0}
    assert found.describe() == f"turns {100 * 32 / (21 + 35 + 49):.1f} %"


def test_one_group_has_no_system_text():
    rows = random_forest("alone", groups=1)
    found = measure_sharing(rows.__getitem__, [[0]], row_length=None, packing=True)
    assert found.saved["system"] == found.saved["document"] == 0
