"""`load_groups`: read a file, hub id or dataset into a checked dataset of groups."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, Features, Json, List, Value

from mrt_plugin.groups.adapters import native_source, parse_source
from mrt_plugin.groups.batches import chunked
from mrt_plugin.groups.origin import remember_origin
from mrt_plugin.groups.problems import GroupReport, Problems
from mrt_plugin.groups.regroup import scratch_folder
from mrt_plugin.groups.shapes import GroupChecker, read_raw_groups
from mrt_plugin.groups.sources import open_source
from mrt_plugin.groups.write import CHUNK, arrow_table, scratch_file, spelled

logger = logging.getLogger(__name__)


def load_groups(data: Any, *, split: str = "train", subset: str | None = None, source: str | None = None) -> Dataset:
    """Read and check prompts with several responses each, and log what was dropped.

    Args:
        data: a JSONL, JSON, CSV, TSV or Parquet file, a directory written by `save_to_disk`, a hub id, or a
            `datasets.Dataset`. A group has `prompt`, `responses`, and optionally `scores`, `weights`,
            `finish_reasons`, `id`, `category`. A flat row has `prompt` and `completion`, or `messages` (the prompt
            ends with the last user message), and optionally `score`, `weight`, `finish_reason`. Flat rows are
            regrouped by prompt, in bounded memory. ShareGPT (`conversations`) and Alpaca rows are read too.
        split: the split of a hub dataset or a `DatasetDict`. Files have none. A hub id is downloaded.
        subset: the subset (configuration) of a hub dataset, by default its default.
        source: the public format of the rows (see docs/sources.md), such as `nectar` or `code_contests:language=cpp`,
            or a function of yours as `file.py:name` or `package.module:name`. By default one of the formats above.

    Returns:
        A dataset stored on disk. Its columns are `id` (string), `prompt` (string or list of messages) and `responses`
        (list of strings, or of lists of messages). If given, it also has `scores` and `weights` (lists of floats) and
        `finish_reasons` (list of strings, None where unknown) and `category` (string), which curation can mix by.

    Raises:
        DataError: with up to 20 problems, each with its row, column and remedy.
        ValueError: for an unknown `source` (lists the known ones) or an unknown option of it.

    Example:

    ```python
    from mrt_plugin import load_groups

    groups = load_groups("pool.jsonl")
    groups[0]["prompt"], groups[0]["responses"]
    # ('What is 2 + 2?', ['4', 'Four.', '2 + 2 = 4'])
    ```
    """
    return read_groups(data, split=split, subset=subset, source=source)[0]


def read_groups(
    data: Any, *, split: str = "train", subset: str | None = None, source: str | None = None
) -> tuple[Dataset, GroupReport]:
    """Read groups as `load_groups` does, and also return the counts of what was read, kept and dropped."""
    if source is not None:
        parse_source(source)
    problems, rows = open_source(data, split, subset)
    report = GroupReport(problems.source)
    if source is None:
        first = list(islice(rows, 1))
        rows, source = chain(first, rows), native_source(first[0][1]) if first else None
    # After the first problem the later groups are still checked, but not written.
    checked = map(GroupChecker(problems, report).check, read_raw_groups(rows, source, problems, report))
    path = _store((group for group in checked if group is not None and not problems.found), problems)
    if path is None:
        dropped = report.groups_without_responses.count
        if dropped:
            problems.fail(f"all {dropped:,} groups were dropped, since none has a response that is not empty.")
        if report.left_out:
            counts = ", ".join(f"{tally.count:,} {what}" for what, tally in report.left_out.items())
            problems.fail(f"nothing is left of it. Left out: {counts}.")
        problems.fail("it is empty: write at least one row.")
    logger.info(report.summary())
    for line in report.notes():
        logger.warning(line)
    groups = Dataset.from_file(str(path))
    remember_origin(groups, data)
    return groups, report


def _store(groups: Iterator[dict[str, Any]], problems: Problems) -> Path | None:
    """Write the groups to a file of the datasets cache, or return None if there are none. Raise any problems."""
    first = next(groups, None)
    if first is None:
        problems.raise_any()
        return None
    features = _features(first)
    folder = scratch_folder()
    state = hashlib.blake2b(repr(features).encode(), digest_size=16)
    with scratch_file(folder) as file:
        with pyarrow.ipc.new_stream(file, features.arrow_schema) as writer:
            rows = ({name: spelled(value) for name, value in group.items()} for group in chain([first], groups))
            for chunk in chunked(rows, CHUNK):
                for row in chunk:
                    state.update(json.dumps(row).encode())
                writer.write_table(arrow_table(chunk, features))
        problems.raise_any()
        file.flush()
        # Named by its content: equal data keeps its fingerprint, and changed data is never mistaken for the old.
        path = folder / f"{state.hexdigest()}.arrow"
        if not path.exists():
            os.replace(file.name, path)
    return path


def _features(group: dict[str, Any]) -> Features:
    """Return the columns. Messages are stored as JSON: Arrow would give all the same fields and fill in None."""
    messages, text, numbers = List(Json()), Value("string"), List(Value("float64"))
    features = {
        "id": text,
        "category": text,
        "prompt": text if isinstance(group["prompt"], str) else messages,
        "responses": List(text if isinstance(group["responses"][0], str) else messages),
        "scores": numbers,
        "weights": numbers,
        "finish_reasons": List(text),
    }
    return Features({name: features[name] for name in group})
