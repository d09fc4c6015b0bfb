"""A model to be evaluated: its name in tables, its path and its adapter."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    given = [_split_name(text)[0] for text in texts]
    models = [_parse(text, local) for text in texts]
    if adapter is not None:
        (only,) = models
        if only.adapter is not None:
            raise ValueError(f"{texts[0]} has an adapter already: leave out --adapter {adapter}.")
        models = [NamedModel(given[0] or _short(only.path, adapter), only.path, adapter)]
    names = [model.name for model in models]
    return check_names(
        [
            model if name or names.count(model.name) == 1 else replace(model, name=text)
            for model, name, text in zip(models, given, texts, strict=True)
        ]
    )


def check_folders(models: Sequence[NamedModel]) -> None:
    """Raise ValueError if the path of a model or an adapter does not hold one."""
    for model in models:
        if model.path is not None:
            check_model(model.path)
        if model.adapter is not None:
            check_model(model.adapter, "adapter_config.json")


def add_pools(models: Sequence[NamedModel], pools: Sequence[str]) -> list[NamedModel]:
    """Add files of samples, each `NAME=FILE` or `FILE`, to the models of these names or as models of their own."""
    found = {model.name: model for model in models}
    for text in pools:
        name, path = _split_name(text)
        name = name or Path(path).name.removesuffix(".jsonl").removesuffix(".samples")
        model = found.get(name, NamedModel(name, None))
        if model.pool is not None:
            raise ValueError(f"{name!r} has two files of samples: give one of them another name with NAME=FILE.")
        found[name] = replace(model, pool=path)
    return check_names(list(found.values()))


def check_names(models: Sequence[NamedModel]) -> list[NamedModel]:
    """Raise ValueError unless all names differ, also as file names."""
    seen = set()
    for model in models:
        if model.file_name in seen:
            raise ValueError(
                f"Two models are called {model.name!r}: tell them apart with NAME=, as in --model tuned={model.path}."
            )
        seen.add(model.file_name)
    return list(models)


def _parse(text: str, local: bool) -> NamedModel:
    name, rest = _split_name(text)
    if not local:
        return NamedModel(name or rest, rest)
    path, adapter, short, folder = rest, None, "", Path(rest)
    weights = [file for pattern in ("model*.safetensors", "pytorch_model*.bin") for file in folder.glob(pattern)]
    if not folder.exists() and "+" in rest:
        path, _, adapter = rest.rpartition("+")
    elif (folder / "adapter_config.json").is_file() and not weights:
        # Axolotl adds the base's config.json to an adapter's folder, so weights alone tell it from a model's.
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not base:
            raise ValueError(f"{rest} is an adapter that does not say what it was trained on: write BASE+{rest}.")
        path, adapter, short = str(base), rest, folder.name
    if not path or adapter == "":
        raise ValueError(f"--model {text}: write PATH, BASE+ADAPTER, or NAME=PATH.")
    return NamedModel(name or short or _short(path, adapter), path, adapter)


def _split_name(text: str) -> tuple[str, str]:
    """Split off the name before `=`, if there is one and the complete text is not a path."""
    name, sign, rest = text.partition("=")
    return ("", text) if not sign or "/" in name or Path(text).exists() else (name, rest)


def _short(path: str | None, adapter: str | None) -> str:
    return "+".join(Path(part).name or part for part in (path, adapter) if part)
