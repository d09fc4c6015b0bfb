"""Fingerprints of everything that a prepared dataset depends on and that Axolotl's cache ignores.

Axolotl 0.19.0 names a prepared dataset by a hash of some fields of the recipe. The hash does not cover plugin options,
the bytes of the data file, the seed, or the tokenizer's files. So Axolotl would silently reuse an old dataset.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download

import mrt_plugin
from mrt_plugin.axolotl.dataset_types import find_strategy
from mrt_plugin.curation import parse_rules
from mrt_plugin.extension import extension_files
from mrt_plugin.groups.adapters import source_files
from mrt_plugin.options import WATCHING
from mrt_plugin.scoring.embedders import SENTENCE_TRANSFORMERS_DEFAULT
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
    return _digest(
        {
            "mrt_plugin": mrt_plugin.__version__,
            "format": FORMAT,
            "options": {name: value for name, value in block.items() if name not in WATCHING},
            "curation": _rules_content(block),
            "recipe": fields,
            "tokenizer": _tokenizer_content(str(tokenizer), cfg.get("revision_of_model")),
            "chat_template": _jinja_content(fields["chat_template_jinja"]),
            "scoring": [_scoring_content(holder) for holder in (block, *(block.get("datasets") or []))],
        }
    )


def entry_fingerprint(entry: dict[str, Any], place: int, recipe: str) -> str:
    """Return a fingerprint of one dataset entry.

    It covers the entry, its place among the others, the content of its data, the code of its type, and the recipe's
    fingerprint. The place counts because Axolotl's hash sorts the entries, but prepared rows keep their order.
    """
    kind = entry.get("type")
    strategy = find_strategy(kind) if isinstance(kind, str) else None
    return _digest(
        {
            "recipe": recipe,
            "place": place,
            "entry": dict(entry),
            "content": _data_content(entry),
            "code": strategy and _function_content(strategy),
        }
    )


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


def _data_content(entry: dict[str, Any]) -> str:
    files = local_files(entry)
    if files:
        return _content(files)
    name = str(entry.get("path"))
    try:  # for a dataset on the hub: the commit that its revision points to
        return str(HfApi().dataset_info(name, revision=entry.get("revision")).sha)
    except Exception as error:
        # No hub, no such dataset, or another kind of address. If Axolotl's loader cannot read it, it says so.
        logger.info("The content of dataset %s is not part of the cache's key: %s.", name, type(error).__name__)
        return "unknown"


def _tokenizer_content(name: str, revision: str | None) -> str:
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(TOKENIZER_FILES)))
        except Exception as error:
            # Axolotl loads the tokenizer next and reports what is wrong with it.
            logger.info("The content of tokenizer %s is not part of the cache's key: %s.", name, type(error).__name__)
            return f"{name}@{revision}"
    return _content(sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()}))


def _jinja_content(template: Any) -> str:
    """Return the content of `chat_template_jinja`, which may be a template or the path of one."""
    text = str(template)
    return text if "{" in text or not Path(text).is_file() else _content([Path(text)])


def _scoring_content(holder: dict[str, Any]) -> list[str]:
    """Return the content behind the names of scorers and of an embedder: a function's source, a model's files."""
    names = [str(name) for name in scorer_list(holder.get("scorer") or [])]
    embedder = holder.get("embedder")
    if embedder == "sentence-transformers":
        embedder = SENTENCE_TRANSFORMERS_DEFAULT
    return [
        *(_function_content(name) if ":" in name else _model_content(name) for name in names),
        *([] if embedder in (None, "lexical") else [_model_content(str(embedder))]),
    ]


def _function_content(name: str) -> str:
    """Return the content of a function's source files.

    These are the file or module given in the name, and the module that defines the function. What they import is not
    covered.
    """
    return f"{name} {_content(extension_files(name))}"


def _model_content(name: str) -> str:
    """Return the content of all files of a model's folder, or the commit of a model on the hub."""
    folder = Path(name)
    if folder.is_dir():
        return _content(sorted(file for file in folder.rglob("*") if file.is_file()))
    try:
        return f"{name} {HfApi().model_info(name).sha}"
    except Exception as error:
        logger.info("The newest commit of model %s is not known: %s.", name, type(error).__name__)
    try:  # the commit that is on this machine
        return f"{name} {Path(snapshot_download(name, local_files_only=True)).name}"
    except Exception as error:
        # No hub and no such model: loading it reports the error.
        logger.info("The content of model %s is not part of the cache's key: %s.", name, type(error).__name__)
        return name


def _rules_content(block: dict[str, Any]) -> list[str]:
    """Return the content of the files behind sources and curation rules: a user's code, a benchmark's prompts."""
    holders = [block, *block.get("datasets", [])]
    rules = [rule.dependencies() for holder in holders for rule in parse_rules(holder.get("curation"))]
    return [_content(sorted(files)) for files in (*rules, *(source_files(holder.get("source")) for holder in holders))]


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
