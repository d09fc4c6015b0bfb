"""Fingerprints of everything that a prepared dataset depends on and that Axolotl's cache (0.19.0) ignores: options of
plugins, the bytes of files, the seed. Without them Axolotl would silently reuse an old dataset."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from glob import glob
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

import mrt_plugin
from mrt_plugin.axolotl.dataset_types import find_strategy
from mrt_plugin.curation import parse_rules
from mrt_plugin.extension import extension_files, is_extension
from mrt_plugin.groups.adapters import source_files
from mrt_plugin.options import CHANGES_NO_ROWS
from mrt_plugin.scoring.embedders import SENTENCE_TRANSFORMERS_DEFAULT
from mrt_plugin.scoring.judge import is_judge, judge_files
from mrt_plugin.scoring.scores import scorer_list
from mrt_plugin.trainer.prepare import FORMAT

logger = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer*",
    "chat_template*",
    "additional_chat_templates/*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "tekken.json",
)

RECIPE_KEYS = (
    "base_model",
    "is_qwen_derived_model",
    "seed",
    "sequence_len",
    "sample_packing",
    "tokenizer_type",
    "tokenizer_use_fast",
    "tokenizer_legacy",
    "tokenizer_use_mistral_common",
    "added_tokens_overrides",
    "special_tokens",
    "tokens",
    "chat_template",
    "chat_template_jinja",
    "chat_template_kwargs",
    "default_system_message",
    "excess_length_strategy",
    "shuffle_merged_datasets",
    "shuffle_before_merging_datasets",
    "curriculum_sampling",
)
"""Fields of the recipe that the prepared data depends on."""


def recipe_fingerprint(cfg: Any, block: dict[str, Any]) -> str:
    """Return a fingerprint of the `mrt:` options, the recipe's fields that matter, and the tokenizer's content."""
    fields = {name: cfg.get(name) for name in RECIPE_KEYS}
    tokenizer = cfg.get("tokenizer_config") or cfg.get("base_model_config") or cfg.get("base_model")
    template = str(fields["chat_template_jinja"])  # a template, or the path of one
    in_file = "{" not in template and Path(template).is_file()
    holders = [block, *(block.get("datasets") or [])]
    files = [rule.dependencies() for holder in holders for rule in parse_rules(holder.get("curation"))]
    files += [source_files(holder.get("source")) for holder in holders]
    scoring = []  # the content behind the names of scorers, embedders and selectors
    for holder in holders:
        embedder = holder.get("embedder") or "lexical"
        embedder = SENTENCE_TRANSFORMERS_DEFAULT if embedder == "sentence-transformers" else embedder
        names = map(str, [*scorer_list(holder.get("scorer") or []), embedder, holder.get("selector", "lexical")])
        scoring.append([_named_content(name) for name in names if name != "lexical"])
    return _digest(
        {
            "mrt_plugin": mrt_plugin.__version__,
            "format": FORMAT,
            "options": {name: value for name, value in block.items() if name not in CHANGES_NO_ROWS},
            "curation": [_content(sorted(group)) for group in files],
            "recipe": fields,
            "tokenizer": _tokenizer_content(str(tokenizer), cfg.get("revision_of_model")),
            "chat_template": _content([Path(template)]) if in_file else template,
            "scoring": scoring,
        }
    )


def entry_fingerprint(entry: dict[str, Any], place: int, recipe: str) -> str:
    """Return a fingerprint of an entry, its data, the code of its type, its place (Axolotl's hash sorts the entries)
    and the recipe."""
    kind, name, files = entry.get("type"), str(entry.get("path")), local_files(entry)
    strategy = find_strategy(kind) if isinstance(kind, str) else None
    data: str | None = _content(files) if files else None
    if data is None:  # the commit on the hub that the revision points to
        revision = entry.get("revision")
        data = _known(f"The content of dataset {name}", lambda: str(HfApi().dataset_info(name, revision=revision).sha))
    code = strategy and f"{strategy} {_content(extension_files(strategy))}"
    content = {"recipe": recipe, "place": place, "entry": dict(entry), "content": data or "unknown", "code": code}
    return _digest(content)


def local_files(entry: dict[str, Any]) -> list[Path]:
    """Return the files on this machine that an entry reads, sorted; none if the data is elsewhere."""
    path = Path(str(entry.get("path")))
    if path.is_file():
        return [path]
    named = entry.get("data_files") or []
    patterns = [named] if isinstance(named, str) else named
    if patterns:
        files = {Path(name) for pattern in patterns for name in glob(pattern, recursive=True)}
        return sorted(file for file in files if file.is_file())
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []


def _known(what: str, read: Callable[[], str]) -> str | None:
    """Return what `read` finds on the hub, or None for any error: what loads it next reports the error."""
    try:
        return read()
    except Exception as error:
        logger.info("%s is not part of the cache's key: %s.", what, type(error).__name__)
        return None


def _tokenizer_content(name: str, revision: str | None) -> str:
    folder: str | None = name
    if not Path(name).is_dir():
        what, only = f"The content of tokenizer {name}", list(TOKENIZER_FILES)
        folder = _known(what, lambda: str(snapshot_download(name, revision=revision, allow_patterns=only)))
    if folder is None:
        return f"{name}@{revision}"
    return _content(
        sorted({file for pattern in TOKENIZER_FILES for file in Path(folder).glob(pattern) if file.is_file()})
    )


def _named_content(name: str) -> str:
    """Return the content of a user's code, a judge's files or a model's folder, or the model's commit on the hub."""
    if is_judge(name):
        return f"{name} {_content(judge_files(name))}"
    if is_extension(name):
        return f"{name} {_content(extension_files(name))}"
    if Path(name).is_dir():
        return _content(local_files({"path": name}))
    newest = _known(f"The newest commit of {name}", lambda: str(HfApi().model_info(name).sha))
    here = "The commit on this machine of"
    commit = newest or _known(f"{here} {name}", lambda: Path(snapshot_download(name, local_files_only=True)).name)
    return f"{name} {commit}" if commit else name


def _content(files: Iterable[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "blake2b").digest())
    return digest.hexdigest()


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
