"""A model to be evaluated: its name in tables, its path and its adapter."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mrt_plugin.places import check_model


@dataclass(frozen=True)
class NamedModel:
    """One of the models to compare."""

    name: str
    path: str | None
    """Folder or hub name of a base or merged model, or an endpoint's name for it. None if only samples are given."""
    adapter: str | None = None
    pool: str | None = None
    """A file of samples drawn from the model earlier."""

    @property
    def file_name(self) -> str:
        """The name in a form that is valid in file names."""
        return re.sub(r"[^\w.-]+", "_", self.name)


def parse_models(texts: Sequence[str], *, adapter: str | None = None, local: bool = True) -> list[NamedModel]:
    """Parse models from the command line: `PATH`, `BASE+ADAPTER`, or either after `NAME=`.

    A folder with an adapter and no model means that adapter on the base that its configuration names.

    Args:
        texts: one text per model.
        adapter: an adapter to apply to the only model.
        local: False for an endpoint's model names, which are used unchanged.

    Raises:
        ValueError: if two models have the same name, or an adapter has no base.

    Example:

    >>> parse_models(["path/to/base", "tuned=path/to/base+outputs/run"])[1]
    NamedModel(name='tuned', path='path/to/base', adapter='outputs/run', pool=None)
    """
    if adapter is not None and len(texts) != 1:
        raise ValueError(f"--adapter goes with one --model, and there are {len(texts)}: write --model BASE+ADAPTER.")
    models = [_parse(text, local) for text in texts]
    if adapter is not None:
        (only,) = models
        if only.adapter is not None:
            raise ValueError(f"{texts[0]} has an adapter already: leave out --adapter {adapter}.")
        models = [NamedModel(only.name if _named(texts[0]) else _short(only.path, adapter), only.path, adapter)]
    counts = [sum(model.name == other.name for other in models) for model in models]
    models = [
        model if count == 1 or _named(text) else NamedModel(text, model.path, model.adapter)
        for model, count, text in zip(models, counts, texts, strict=True)
    ]
    return check_names(models)


def check_folders(models: Sequence[NamedModel]) -> None:
    """Raise ValueError if the path of a model or an adapter does not hold one."""
    for model in models:
        if model.path is not None:
            check_model(model.path)
        if model.adapter is not None:
            check_model(model.adapter, "adapter_config.json")


def add_pools(models: Sequence[NamedModel], pools: Sequence[str]) -> list[NamedModel]:
    """Add files of samples to the models.

    `NAME=FILE` adds the file to the model of that name, or adds a model that has only samples. A `FILE` without a
    name adds a model named after the file.

    Raises:
        ValueError: if two models have the same name.
    """
    found = list(models)
    for text in pools:
        name, path = _split_name(text)
        name = name or Path(path).name.removesuffix(".jsonl").removesuffix(".samples")
        place = next((index for index, model in enumerate(found) if model.name == name), None)
        if place is None:
            found.append(NamedModel(name, None, None, path))
        elif found[place].pool is None:
            found[place] = NamedModel(name, found[place].path, found[place].adapter, path)
        else:
            raise ValueError(f"{name!r} has two files of samples: give one of them another name with NAME=FILE.")
    return check_names(found)


def check_names(models: Sequence[NamedModel]) -> list[NamedModel]:
    """Raise ValueError unless all names differ, also as file names."""
    seen: dict[str, NamedModel] = {}
    for model in models:
        if model.file_name in seen:
            raise ValueError(
                f"Two models are called {model.name!r}: tell them apart with NAME=, as in --model tuned={model.path}."
            )
        seen[model.file_name] = model
    return list(models)


def _parse(text: str, local: bool) -> NamedModel:
    name, rest = _split_name(text)
    if not local:
        return NamedModel(name or rest, rest)
    path, adapter, short = rest, None, ""
    if not Path(rest).exists() and "+" in rest:
        path, _, adapter = rest.rpartition("+")
    elif _is_adapter(Path(rest)):
        path, adapter, short = _base_of(rest), rest, Path(rest).name
    if not path or adapter == "":
        raise ValueError(f"--model {text}: write PATH, BASE+ADAPTER, or NAME=PATH.")
    return NamedModel(name or short or _short(path, adapter), path, adapter)


def _is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter and no model. Axolotl adds the base's config.json to that folder."""
    weights = [path for pattern in ("model*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern)]
    return (folder / "adapter_config.json").is_file() and not weights


def _base_of(adapter: str) -> str:
    base = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8")).get(
        "base_model_name_or_path"
    )
    if not base:
        raise ValueError(f"{adapter} is an adapter that does not say what it was trained on: write BASE+{adapter}.")
    return str(base)


def _named(text: str) -> bool:
    return bool(_split_name(text)[0])


def _split_name(text: str) -> tuple[str, str]:
    """Split off the name before `=`, if there is one and the complete text is not a path."""
    name, sign, rest = text.partition("=")
    return ("", text) if not sign or "/" in name or Path(text).exists() else (name, rest)


def _short(path: str | None, adapter: str | None) -> str:
    parts = [Path(part).name or part for part in (path, adapter) if part]
    return "+".join(parts)
