"""Check the dataset entries of a recipe, and mark them with how to prepare them."""

import copy
import json
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mrt_plugin.axolotl.args import DATASET_KEYS, DATASET_OPTIONS, options_of
from mrt_plugin.axolotl.dataset_types import PREFIX, find_strategy, meant
from mrt_plugin.axolotl.fingerprint import entry_fingerprint
from mrt_plugin.options import check_options, unused_options
from mrt_plugin.places import check_data
from mrt_plugin.selection import SELECTORS

logger = logging.getLogger(__name__)

ORDINARY = "ordinary"

OWN_KEYS = {*DATASET_KEYS, "trust_remote_code", "shards", "shards_idx"}
"""Keys of an entry that a grouped dataset supports."""


@dataclass(frozen=True)
class Mark:
    """How to prepare an entry, stored as text in its `conversation` field.

    These dataset types do not use that field otherwise. It reaches the dataset's `load`, and it is part of the name of
    the prepared dataset. So a changed fingerprint gives a new dataset.
    """

    part: str
    """`train`, `held_out` (from val_set_size) or `test` (from test_datasets)."""
    share: float
    """Share of prompts that is held out; 0 if all prompts are on one side."""
    fingerprint: str
    options: dict[str, Any] = field(default_factory=dict)
    """Options of this dataset alone, from mrt.datasets."""
    file: str | None = None
    """A JSON file that `load_groups` reads in place of Axolotl's rows."""
    wrapped: dict[str, Any] | None = None
    """For a dataset of Axolotl's own types: the entry as the user wrote it."""

    def as_text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, entry: Any) -> "Mark | None":
        """Return the mark of an entry, or None if the plugin has not seen the entry."""
        text = entry.get("conversation")
        return cls(**json.loads(text)) if text else None


def mark_entries(cfg: Any, block: dict[str, Any], recipe_fingerprint: str) -> None:
    """Mark every dataset of a recipe, in place, and turn `val_set_size` into held-out datasets.

    Axolotl would split prepared rows after its cache, so parts of one group could end up on both sides. Instead,
    held-out prompts are found by the hash of the prompt while a dataset is prepared, once for each side.
    """
    entries = [_plain(entry) for entry in cfg.get("datasets") or []]
    tests = [_plain(entry) for entry in cfg.get("test_datasets") or []]
    for place, entry in [*_named("datasets", entries), *_named("test_datasets", tests)]:
        _check_entry(place, entry)
    if not any(selector_of(entry) for entry in entries):
        raise ValueError(
            "The plugin is loaded but no dataset is grouped: give one `type: mrt_plugin.axolotl.<selector>`, with one "
            f"of {', '.join(SELECTORS)}, or remove the plugin."
        )
    for place, entry in _named("test_datasets", tests):
        if selector_of(entry) not in (None, "all"):
            raise ValueError(f"{place}: every held-out response is scored; write `type: {PREFIX}all`.")

    share = _share(cfg.get("val_set_size"))
    if share and tests:
        raise ValueError("val_set_size and test_datasets cannot both be set: remove one.")
    options = _match_overrides(block.get("datasets") or [], [*entries, *tests])
    keys = [
        entry_fingerprint(entry, place, recipe_fingerprint)
        for part in (entries, tests)
        for place, entry in enumerate(part)
    ]
    marked = list(zip(entries, options, keys, strict=False))
    for (place, entry), own in zip(_named("datasets", entries), options, strict=False):
        _check_own_options(place, entry, block, own)
    _warn_unused(block, entries, options)
    cfg["datasets"] = [_mark(entry, Mark("train", share, key, own)) for entry, own, key in marked]
    if share:
        cfg["val_set_size"] = 0
        cfg["test_datasets"] = [
            _mark(_held_out(entry), Mark("held_out", share, key, own)) for entry, own, key in marked
        ]
    elif tests:
        cfg["test_datasets"] = [
            _mark(entry, Mark("test", 0.0, key, own))
            for entry, own, key in zip(tests, options[len(entries) :], keys[len(entries) :], strict=True)
        ]


def selector_of(entry: dict[str, Any]) -> str | None:
    """Return the selector that an entry's type names, or None for Axolotl's own types."""
    kind = entry.get("type")
    return kind.removeprefix(PREFIX) if isinstance(kind, str) and kind.startswith(PREFIX) else None


def _plain(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"datasets: an entry must hold `path:` and `type:`, not {entry!r}.")
    return copy.deepcopy(dict(entry))


def _named(key: str, entries: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{key}[{index}] ({entry.get('path')})", entry) for index, entry in enumerate(entries)]


def _check_entry(place: str, entry: dict[str, Any]) -> None:
    try:
        check_data(str(entry.get("path")))
    except ValueError as problem:
        raise ValueError(f"{place}: {problem}") from None
    kind = entry.get("type")
    if not kind:
        raise ValueError(f"{place} has no type: write `type: {PREFIX}<selector>`, with one of {', '.join(SELECTORS)}.")
    if kind == "_synthetic":
        raise ValueError(f"{place}: synthetic data cannot be mixed with groups.")
    if isinstance(kind, str) and "mrt_plugin" in kind and selector_of(entry) not in SELECTORS:
        raise ValueError(
            f"{place}: type {kind!r} is unknown. Known: {', '.join(PREFIX + name for name in SELECTORS)}."
        )
    if entry.get("conversation"):
        raise ValueError(f"{place}: the key conversation is used by this plugin; remove it.")
    if selector_of(entry) is None:
        if isinstance(kind, str) and find_strategy(kind) is None:
            raise ValueError(
                f"{place}: type {kind!r} is neither one of Axolotl's nor a module with a function `load`.{meant(kind)}"
            )
        return
    unknown = [key for key, value in entry.items() if key not in OWN_KEYS and value is not None]
    for key in unknown:
        if key in DATASET_OPTIONS:
            raise ValueError(
                f"{place}: Axolotl drops {key} here. Write under mrt:  datasets: [{{path: {entry.get('path')}, "
                f"{key}: {entry[key]}}}]."
            )
        raise ValueError(
            f"{place}: {key} has no meaning for grouped data (columns prompt and responses, formatted by the "
            f"tokenizer's chat template). Remove it; the keys that have one are {', '.join(sorted(OWN_KEYS))}."
        )


def _check_own_options(place: str, entry: dict[str, Any], block: dict[str, Any], own: dict[str, Any]) -> None:
    selector = selector_of(entry)
    if selector is not None:
        try:
            check_options(options_of({**block, **own}, selector=selector))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None


def _warn_unused(block: dict[str, Any], entries: list[dict[str, Any]], options: list[dict[str, Any]]) -> None:
    """Warn of options without effect: those of `mrt:` that no dataset uses, and unused ones of a single dataset."""
    unused = []
    for entry, own in zip(entries, options, strict=False):
        selector = selector_of(entry)
        if selector is not None:
            found = unused_options(options_of({**block, **own}, selector=selector))
            unused.append({name: message for name, message in found.items() if name not in own})
            for message in (found[name] for name in own if name in found):
                logger.warning("mrt.datasets (%s): %s", entry.get("path"), message)
    for name, message in unused[0].items():
        if all(name in others for others in unused):
            logger.warning("mrt.%s", message)


def _share(value: Any) -> float:
    if not value:
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise ValueError(f"val_set_size: {value!r} must be a share of the prompts between 0 and 1, 0.05 for instance.")
    return float(value)


def _match_overrides(overrides: list[dict[str, Any]], entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the options of each entry, taken from the overrides whose keys all equal the entry's."""
    found: list[dict[str, Any]] = [{} for _ in entries]
    for override in overrides:
        keys = {name: value for name, value in override.items() if name in DATASET_KEYS}
        matched = [
            index
            for index, entry in enumerate(entries)
            if selector_of(entry) and all(entry.get(name) == value for name, value in keys.items())
        ]
        if not keys or not matched:
            raise ValueError(
                f"mrt.datasets: {override} matches no grouped dataset: its keys ({', '.join(DATASET_KEYS)}) must "
                "equal those of an entry of datasets."
            )
        for index in matched:
            own = {name: value for name, value in override.items() if name in DATASET_OPTIONS}
            twice = [name for name in own if name in found[index]]
            if twice:
                raise ValueError(f"mrt.datasets: {', '.join(twice)} of {entries[index].get('path')} is given twice.")
            found[index].update(own)
    return found


def _held_out(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the same entry for its held-out prompts. Every response of these is scored."""
    # If there are several splits, Axolotl would read `test` for a test dataset.
    held_out = {**copy.deepcopy(entry), "split": entry.get("split") or "train"}
    return {**held_out, "type": PREFIX + "all"} if selector_of(entry) else held_out


def _mark(entry: dict[str, Any], mark: Mark) -> dict[str, Any]:
    if selector_of(entry) is None:
        mark = replace(mark, wrapped=entry)
        entry = {**entry, "type": PREFIX + ORDINARY}
    elif _is_json_file(entry):
        # Arrow requires one schema for all messages, and its errors name no line. So Axolotl reads lines of text, and
        # `load_groups` reads the file again.
        if Path(str(entry["path"])).stat().st_size == 0:
            raise ValueError(f"{entry['path']}: it is empty: write at least one row.")
        mark = replace(mark, file=str(entry["path"]))
        entry = {**entry, "ds_type": "text"}
    return {**entry, "conversation": mark.as_text()}


def _is_json_file(entry: dict[str, Any]) -> bool:
    path = Path(str(entry.get("path")))
    whole = entry.get("split") in (None, "train") and not entry.get("shards") and not entry.get("data_files")
    return whole and path.suffix.lower() in (".json", ".jsonl", ".ndjson") and path.is_file()
