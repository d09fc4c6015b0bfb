"""Beginnings that many groups share."""

import numpy as np

from mrt_plugin.layout.beginnings import BLOCK, common_beginnings


def test_families_have_the_longest_common_beginning_of_whole_blocks():
    rng = np.random.default_rng(0)
    system, document = rng.integers(3, 99, 2 * BLOCK + 5), rng.integers(3, 99, BLOCK)
    asked = [np.concatenate([system[: 2 * BLOCK], document, rng.integers(3, 99, 40)]) for _ in range(5)]
    others = [np.concatenate([system, rng.integers(3, 99, 90)]) for _ in range(5)]
    alone = [rng.integers(3, 99, 200) for _ in range(5)]
    families, shared = common_beginnings([*asked, *others, *alone])
    assert len(set(families[:5])) == len(set(families[5:10])) == 1
    assert families[0] != families[5]
    assert set(families[10:]) == {0}
    assert shared.tolist() == [3 * BLOCK - 1] * 5 + [2 * BLOCK - 1] * 5 + [0] * 5


def test_a_beginning_of_few_groups_does_not_count():
    """Twins among a hundred groups would keep each other company in every step."""
    rng = np.random.default_rng(0)
    twin = rng.integers(3, 99, 200)
    families, shared = common_beginnings([twin, twin, *(rng.integers(3, 99, 200) for _ in range(98))])
    assert not families.any()
    assert not shared.any()


def test_no_group_and_short_groups():
    assert [len(found) for found in common_beginnings([])] == [0, 0]
    assert common_beginnings([np.arange(5)] * 3)[1].tolist() == [0, 0, 0]
