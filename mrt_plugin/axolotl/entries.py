"""Check the dataset entries of a recipe, and mark them with how to prepare them."""

import copy
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mrt_plugin.axolotl.args import DATASET_KEYS, DATASET_OPTIONS, OUTSIDE, options_of
from mrt_plugin.axolotl.dataset_types import PREFIX, find_strategy, meant
from mrt_plugin.axolotl.fingerprint import entry_fingerprint
from mrt_plugin.options import check_options, unused_options
from mrt_plugin.places import check_data
from mrt_plugin.selection import SELECTORS, get_selector

logger = logging.getLogger(__name__)

ORDINARY = "ordinary"
OWN_KEYS = {*DATASET_KEYS, "trust_remote_code", "shards", "shards_idx"}
"""Keys of an entry that a grouped dataset supports."""
INSTEAD = {
    "weight": "weight is the share of a dataset's rows that Axolotl keeps, at random, and groups are read whole. "
    "For one of N equal shares write `shards: N`. Weights of responses are a column of the data, `weights`: a list "
    "with a number per response (mrt.weights: column).",
}
"""Keys of an entry that a grouped dataset does not support, and what to write instead."""

_READ_HERE = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass(frozen=True)
class Mark:
    """How to prepare an entry: text in its otherwise unused field `conversation`, part of the dataset's name."""

    part: str
    """`train`, `held_out` (from val_set_size) or `test` (from test_datasets)."""
    share: float
    """Share of prompts that is held out; 0 if all prompts are on one side."""
    fingerprint: str
    options: dict[str, Any] = field(default_factory=dict)
    file: str | None = None
    """A JSON, CSV or TSV file that `load_groups` reads in place of Axolotl's rows."""
    wrapped: dict[str, Any] | None = None
    """For a dataset of Axolotl's own types: the entry as the user wrote it."""

    @classmethod
    def of(cls, entry: Any) -> "Mark | None":
        text = entry.get("conversation")
        return cls(**json.loads(text)) if text else None


@dataclass
class _Entry:
    """A dataset entry while the recipe is read: its place, for messages, its keys, and the options of it alone."""

    place: str
    keys: dict[str, Any]
    own: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def selector(self) -> str | None:
        """The selector that the type names, or None for Axolotl's own types."""
        kind = self.keys.get("type")
        return kind.removeprefix(PREFIX) if isinstance(kind, str) and kind.startswith(PREFIX) else None

    def marked(self, part: str, share: float) -> dict[str, Any]:
        """Return the entry as Axolotl reads it, for one part of its prompts."""
        keys = copy.deepcopy(self.keys)
        if part == "held_out":
            # If there are several splits, Axolotl would read `test` for a test dataset.
            keys["split"] = keys.get("split") or "train"
        mark = Mark(part, share, self.fingerprint, self.own)
        if self.selector is None:
            mark = replace(mark, wrapped=keys)
            keys = {**keys, "type": PREFIX + ORDINARY}
        else:
            if part == "held_out":  # every held-out response is scored
                keys["type"] = PREFIX + "all"
            path = Path(str(keys.get("path")))
            complete = keys.get("split") in (None, "train") and not keys.get("shards") and not keys.get("data_files")
            if complete and path.suffix.lower() in _READ_HERE and path.is_file():
                # Arrow requires one schema for all messages, its errors name no line, and it takes the answer `4` of a
                # CSV file for a number. So Axolotl reads lines of text, and `load_groups` reads the file again.
                if path.stat().st_size == 0:
                    raise ValueError(f"{keys['path']}: it is empty: write at least one row.")
                mark = replace(mark, file=str(keys["path"]))
                keys["ds_type"] = "text"
        return {**keys, "conversation": json.dumps(asdict(mark), sort_keys=True)}


def mark_entries(cfg: Any, block: dict[str, Any], recipe_fingerprint: str) -> None:
    """Mark every dataset of a recipe, in place, and turn `val_set_size` into held-out datasets, found by the hash
    of the prompt. (Axolotl would split prepared rows, so parts of one group could end up on both sides.)"""
    trained, tested = _read(cfg, "datasets"), _read(cfg, "test_datasets")
    for entry in (*trained, *tested):
        for problem in _entry_problems(entry.keys, entry.selector):
            raise ValueError(f"{entry.place}: {problem}")
    for entry in tested:
        if entry.selector not in (None, "all"):
            raise ValueError(f"{entry.place}: every held-out response is scored; write `type: {PREFIX}all`.")

    share = cfg.get("val_set_size") or 0.0
    if share and (not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share < 1):
        raise ValueError(f"val_set_size: {share!r} must be a share of the prompts between 0 and 1, 0.05 for instance.")
    if share and tested:
        raise ValueError("val_set_size and test_datasets cannot both be set: remove one.")
    _match_overrides(block.get("datasets") or [], [*trained, *tested])
    for part in (trained, tested):
        for number, entry in enumerate(part):
            entry.fingerprint = entry_fingerprint(entry.keys, number, recipe_fingerprint)
    _check_options(block, trained)
    cfg["datasets"] = [entry.marked("train", share) for entry in trained]
    if share:
        cfg["val_set_size"] = 0
        cfg["test_datasets"] = [entry.marked("held_out", share) for entry in trained]
    elif tested:
        cfg["test_datasets"] = [entry.marked("test", 0.0) for entry in tested]


def _read(cfg: Any, key: str) -> list[_Entry]:
    entries = []
    for number, entry in enumerate(cfg.get(key) or []):
        if not isinstance(entry, dict):
            raise ValueError(f"datasets: an entry must hold `path:` and `type:`, not {entry!r}.")
        entries.append(_Entry(f"{key}[{number}] ({entry.get('path')})", copy.deepcopy(dict(entry))))
    return entries


def _entry_problems(keys: dict[str, Any], selector: str | None) -> Iterator[str]:
    try:
        check_data(str(keys.get("path")))
    except ValueError as problem:
        yield str(problem)
    kind = keys.get("type")
    if not kind:
        yield f"it has no type: write `type: {PREFIX}<selector>`, with one of {', '.join(SELECTORS)}."
    if kind == "_synthetic":
        yield "synthetic data cannot be mixed with groups."
    if isinstance(kind, str) and "mrt_plugin" in kind and selector not in (*SELECTORS, OUTSIDE):
        yield f"type {kind!r} is unknown.{meant(kind)} After {PREFIX} stands one of {', '.join(SELECTORS)}."
    if keys.get("conversation"):
        yield "the key conversation is used by this plugin; remove it."
    if selector is None:
        if isinstance(kind, str) and find_strategy(kind) is None:
            yield f"type {kind!r} is neither one of Axolotl's nor a module with a function `load`.{meant(kind)}"
        return
    for key in (key for key, value in keys.items() if key not in OWN_KEYS and value is not None):
        if key in DATASET_OPTIONS:
            own = f"{{path: {keys.get('path')}, {key}: {keys[key]}}}"
            yield f"Axolotl drops {key} here. Write under mrt:  datasets: [{own}]."
        if key in INSTEAD:
            yield INSTEAD[key]
        yield f"{key} has no meaning for groups. Remove it; the keys that have one are {', '.join(sorted(OWN_KEYS))}."


def _check_options(block: dict[str, Any], entries: list[_Entry]) -> None:
    """Check the options of grouped datasets, and warn of options without effect: in `mrt:`, those of no dataset."""
    if "selector" in block and all(entry.selector != OUTSIDE for entry in entries):
        raise ValueError(f"mrt.selector: no dataset has `type: {PREFIX}{OUTSIDE}`, the type that uses this option.")
    unused = []
    for entry in (entry for entry in entries if entry.selector is not None):
        try:
            options = options_of({**block, **entry.own}, selector=entry.selector)
            check_options(options)
            get_selector(options.selector)
        except ValueError as error:
            raise ValueError(f"{entry.place}: {error}") from None
        found = unused_options(options)
        unused.append({name: message for name, message in found.items() if name not in entry.own})
        for message in (found[name] for name in entry.own if name in found):
            logger.warning("mrt.datasets (%s): %s", entry.keys.get("path"), message)
    for name, message in unused[0].items() if unused else ():
        if all(name in others for others in unused):
            logger.warning("mrt.%s", message)


def _match_overrides(overrides: list[dict[str, Any]], entries: list[_Entry]) -> None:
    """Give each entry the options of the overrides whose keys all equal the entry's."""
    for override in overrides:
        keys = {name: value for name, value in override.items() if name in DATASET_KEYS}
        own = {name: value for name, value in override.items() if name in DATASET_OPTIONS}
        grouped = [entry for entry in entries if entry.selector]
        matched = [entry for entry in grouped if all(entry.keys.get(name) == keys[name] for name in keys)]
        if not keys or not matched:
            keys_that_match = ", ".join(DATASET_KEYS)
            raise ValueError(f"mrt.datasets: {override} matches no grouped dataset by its keys ({keys_that_match}).")
        for entry in matched:
            twice = [name for name in own if name in entry.own]
            if twice:
                raise ValueError(f"mrt.datasets: {', '.join(twice)} of {entry.keys.get('path')} is given twice.")
            entry.own.update(own)
