"""The schema of a recipe's `mrt:` block, derived from `mrt_plugin.options`."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from mrt_plugin.curation import parse_rules
from mrt_plugin.extension import is_extension
from mrt_plugin.groups.adapters import parse_source
from mrt_plugin.options import DataOptions, MultiResponseOptions, SelectionOptions, names_of

DATASET_KEYS = ("path", "name", "split", "type", "ds_type", "data_files", "revision")
"""Keys by which an override is matched to a dataset entry."""

_SHARED = names_of(SelectionOptions, DataOptions)
DATASET_OPTIONS = ("curation", "prompt_format", "turn_context", *(name for name in _SHARED if name != "score_cache"))
"""Options that may differ between the datasets of a run."""

OUTSIDE = "selector"
"""The dataset type whose selector is the option `selector`, from outside the package. Others name it themselves."""


def _fields(*, per_dataset: bool) -> dict[str, Any]:
    hints = get_type_hints(MultiResponseOptions)
    found: dict[str, Any] = {"curation": (list[Any] | str | None, None)}
    for item in fields(MultiResponseOptions):
        if item.name in DATASET_OPTIONS or not per_dataset:
            hint, default, limits = hints[item.name], item.default, asdict(item.metadata["bounds"])
            if per_dataset or item.name == "selector":
                hint, default = hint | None, None
            found[item.name] = (hint, Field(default, **limits))
    return found


_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_KEYS: dict[str, Any] = dict.fromkeys(DATASET_KEYS, (str | list[str] | None, None))
DatasetOverride = create_model("DatasetOverride", __config__=_STRICT, **_KEYS, **_fields(per_dataset=True))
MrtBlock = create_model(
    "MrtBlock",
    __config__=_STRICT,
    **_fields(per_dataset=False),
    max_length=(int | None, Field(None, ge=2)),  # of a pair, by default sequence_len
    # With val_set_size: prompts whose character 5-grams have at least this Jaccard similarity stay on one side. By
    # default 0.8 where there is curation; without it the split goes by prompt alone.
    held_out_threshold=(float | None, Field(None, gt=0, le=1)),
    datasets=(list[DatasetOverride] | None, Field(None)),  # type: ignore[valid-type]
)


def parse_block(block: Any) -> dict[str, Any]:
    """Return the `mrt:` block with its defaults filled in, or raise ValueError that names every mistake."""
    block = {} if block is None else block
    if not isinstance(block, dict):
        raise ValueError(f"mrt: must hold options, one `name: value` per line, not {block!r}.")
    try:
        parsed = MrtBlock.model_validate(plain(block))
    except ValidationError as error:
        raise ValueError(listed("The mrt: block of the recipe:", map(_readable, error.errors()))) from None
    options = parsed.model_dump(exclude_none=True)
    for holder in (options, *options.get("datasets", [])):
        if "source" in holder:
            parse_source(holder["source"])
        if not is_extension(holder.get("selector", "file.py:name")):
            raise ValueError(
                f"mrt.selector: {holder['selector']!r} is not an option here: the dataset names it, "
                f"`type: mrt_plugin.axolotl.{holder['selector']}`. Only your own `file.py:name` or "
                f"`package.module:name` is written here, for datasets of `type: mrt_plugin.axolotl.{OUTSIDE}`."
            )
        if "curation" in holder:
            parse_rules(holder["curation"])
    return options


def plain(value: Any) -> Any:
    """Convert Axolotl's DictDefault, which has every attribute that pydantic looks for, to plain dicts and lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def listed(head: str, problems: Iterable[str]) -> str:
    """Return one problem as it is, and several as a list below `head`."""
    first, *others = problems
    return "\n  ".join([head, first, *others]) if others else first


def _readable(error: Any) -> str:
    place = "mrt." + ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{place}: {error['msg']} (found {error['input']!r})."
    name = str(error["loc"][-1])
    inside = "datasets" in error["loc"]
    known = [*DATASET_KEYS, *DATASET_OPTIONS] if inside else list(MrtBlock.model_fields)
    if inside and name in MrtBlock.model_fields:
        return f"{place} cannot differ between datasets: set mrt.{name}."
    guess = get_close_matches(name, known, n=1)
    return f"{place} is not an option" + (f": did you mean {guess[0]}?" if guess else f". Known: {', '.join(known)}.")


class MultiResponseArgs(BaseModel):
    mrt: dict[str, Any] | None = None

    @field_validator("mrt", mode="before")
    @classmethod
    def _check(cls, value: Any) -> dict[str, Any]:
        return parse_block(value)


def options_of(block: dict[str, Any], **changes: Any) -> MultiResponseOptions:
    given = {**block, **changes}
    if given.get("selector") == OUTSIDE:
        if "selector" not in block:
            raise ValueError(f"type: mrt_plugin.axolotl.{OUTSIDE} needs `selector: file.py:name` under `mrt:`.")
        given["selector"] = block["selector"]
    return MultiResponseOptions(**{name: given[name] for name in names_of(MultiResponseOptions) if name in given})
