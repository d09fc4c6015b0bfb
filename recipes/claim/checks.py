"""Analyse the runs that were added afterwards: was the tuning fair to K = 1, and do its choices matter?"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from recipes.claim.analysis import LAYOUTS, SEVERAL, Curves, compare, finite
from recipes.claim.arms import ARMS
from recipes.claim.pricing import Price
from recipes.claim.records import key_of
from recipes.claim.run import CALM, SINGLE, TUNING_LENGTH, TUNING_SEEDS
from recipes.claim.train import Setting
from recipes.claim.tuning import Tuned

PLACES = (1, 2, 4, 8)
"""Numbers of pairs, in multiples of n, at which small steps are shown."""


def analyse_checks(
    tuning: Sequence[dict[str, Any]],
    records: Sequence[dict[str, Any]],
    checks: Sequence[dict[str, Any]],
    prices: dict[int, Price],
    n: int,
) -> dict[str, Any]:
    """Analyse the added runs.

    Args:
        tuning: runs on the tuning split.
        records: main runs.
        checks: the runs added afterwards.
        prices: prices by prompt length.
        n: number of prompts in the arm with K = 8.

    Returns:
        JSON-ready. `small_steps`: K = 1 at every setting tried. `long_prompts`: for each arm and place, the setting
        chosen at the tuning length and the best one at the longest prompts, both measured at the longest prompts.
        `one_rate`: by prompt length, the comparisons at equal cost with the settings of `CALM`. `single_pairs`: the
        same with K = 1 at `SINGLE`.
    """
    apart = [record for record in checks if key_of(record).seed in TUNING_SEEDS]
    short = Tuned([*tuning, *(record for record in apart if key_of(record).length == TUNING_LENGTH)])
    small = [
        {**asdict(setting), "kl": [short.mean_kl("k1", setting, place * n) for place in PLACES]}
        for setting in sorted(short.curves["k1"], key=lambda setting: (setting.pairs_per_step, setting.learning_rate))
    ]
    here, there = Tuned(tuning), Tuned(record for record in apart if key_of(record).length != TUNING_LENGTH)
    long = []
    for name in there.curves:
        for place in (ARMS[name].k, 8):
            first, second = here.best(name, place * n), there.best(name, place * n)
            kls = {which: there.mean_kl(name, s, place * n) for which, s in (("kl_here", first), ("kl_there", second))}
            long.append({"arm": name, "place": place, "here": asdict(first), "there": asdict(second), **kls})
    calm = {name: [setting] for name, setting in CALM.items()}
    single = {**here.chosen(n), "k1": [SINGLE]}
    return {
        "small_steps": small,
        "long_prompts": long,
        "one_rate": _again([*records, *checks], here, calm, prices, n),
        "single_pairs": _again([*records, *checks], short, single, prices, n),
    }


def _again(
    records: Sequence[dict[str, Any]],
    tuned: Tuned,
    settings: dict[str, list[Setting]],
    prices: dict[int, Price],
    n: int,
) -> dict[str, Any]:
    """Compare with K = 1 on more prompts at these settings, for each prompt length that was run."""
    found = {}
    for length, price in sorted(prices.items()):
        curves = Curves(records, tuned, settings, length)
        if curves.seeds:
            rows = [compare(curves, price, length, layout, k, "k1", n) for layout in LAYOUTS for k in SEVERAL]
            values = [finite(asdict(row)) for row in rows if row is not None]
            found[str(length)] = {"seeds": curves.seeds, "comparisons": values}
    return found
