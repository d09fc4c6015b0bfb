"""Read rows, as dicts with their place, from a file, the hub or a dataset in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict, Features, IterableDataset, LargeList, List, load_dataset, load_from_disk

from mrt_plugin.groups.batches import BYTES
from mrt_plugin.groups.delimited import delimited_rows
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.write import check_name

Row = tuple[str, dict[str, Any]]
"""A row with its place: `line N` from 1 in JSONL, `row N` from 0 elsewhere."""

DEEPEST = 100
"""The deepest nesting of lists and objects. Python's own limit depends on the depth of the call stack."""


def open_source(source: Any, split: str = "train", subset: str | None = None) -> tuple[Problems, Iterator[Row]]:
    """Return the rows of a file, the hub or a dataset, and where to report problems. Reads no row yet."""
    if isinstance(source, DatasetDict):
        if split not in source:
            Problems("the dataset").fail(f"it has no split {split!r}: choose one of {', '.join(source)}.")
        source = source[split]
    if isinstance(source, Dataset | IterableDataset):
        return Problems("the dataset"), _dataset_rows(source)
    if not isinstance(source, str | Path):
        Problems("load_groups").fail(f"{type(source).__name__} cannot be read: give a path, a hub id or a Dataset.")

    check_name(source)
    problems, path = Problems(str(source)), Path(source).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if path.is_file():
        if reader is None:
            problems.fail(f"the file type is unknown: it must end in one of {', '.join(_READERS)}.")
        return problems, reader(path, problems)
    if reader is not None:
        problems.fail(f"there is no such file (looked in {path.absolute().parent}).")
    return problems, _loaded_rows(str(source), split, subset, problems)


def _line_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """Read JSONL: one object per line. Blank lines are skipped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                row = _parse(text)
            except UnicodeDecodeError as problem:
                problems.add(place, None, f"not UTF-8 text at byte {problem.start + 1} of the line: convert the file.")
            except ValueError as problem:
                problems.add(place, None, f"{problem}: mend the line.")
            else:
                if isinstance(row, dict):
                    yield place, row
                else:
                    problems.add(place, None, "not a JSON object: each line is one object with named columns.")


def _json_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """Read JSON: a list of objects. A file that starts with an object is read as JSONL, often also named `.json`."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _line_rows(path, problems)
        return
    try:
        rows = _parse(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as problem:
        problems.fail(f"not UTF-8 text at byte {problem.start + 1}: convert the file.", problem)
    except ValueError as problem:
        problems.fail(f"{problem}: mend the file.", problem)
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            yield f"row {number}", row
        else:
            problems.add(f"row {number}", None, "not a JSON object: the list holds one object per row.")


def _parse(text: str) -> Any:
    """Parse JSON to a value that every later step can traverse and write. Raises ValueError with the problem."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        row = f"line {problem.lineno} column" if "\n" in text.strip() else "character"
        raise ValueError(f"not JSON at {row} {problem.colno} ({problem.msg})") from problem
    except RecursionError:
        too_deep = True
    except ValueError as problem:  # Python parses no integer of more than 4,300 digits
        raise ValueError("JSON with a whole number of thousands of digits") from problem
    else:
        level = [value] if text.count("[") + text.count("{") > DEEPEST else []
        for _ in range(DEEPEST):
            nested = [item for item in level if isinstance(item, dict | list)]
            level = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
        too_deep = any(isinstance(item, dict | list) for item in level)
    if too_deep:
        raise ValueError("JSON nested too deeply to be a group")
    return value


def _parquet_rows(path: Path, problems: Problems) -> Iterator[Row]:
    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        features = Features.from_arrow_schema(file.schema_arrow)
    except (pyarrow.ArrowException, OSError) as problem:
        problems.fail(f"not a Parquet file ({problem}): write it again.", problem)
    number, parts = 0, [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    size = sum(part.total_byte_size for part in parts) // max(1, file.metadata.num_rows)
    for batch in file.iter_batches(batch_size=min(256, BYTES // max(1, size) + 1)):
        for row in batch.to_pylist():
            yield f"row {number}", _without_filler(features.decode_example(row), features)
            number += 1


_READERS = {
    ".jsonl": _line_rows,
    ".ndjson": _line_rows,
    ".json": _json_rows,
    ".parquet": _parquet_rows,
    ".csv": delimited_rows,
    ".tsv": delimited_rows,
}


def _dataset_rows(dataset: Dataset | IterableDataset) -> Iterator[Row]:
    features = dataset.features
    for number, row in enumerate(dataset.with_format(None)):
        yield f"row {number}", row if features is None else _without_filler(row, features)


def _loaded_rows(name: str, split: str, subset: str | None, problems: Problems) -> Iterator[Row]:
    """Read a directory written by `save_to_disk`, or anything that `load_dataset` finds by this name."""
    try:
        if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "state.json").is_file():
            dataset = load_from_disk(name)
        else:
            dataset = load_dataset(name, subset, split=split)
    except Exception as problem:  # the hub client raises dozens of types; each becomes one message with its cause
        what = f"no such file, and it could not be loaded as a dataset, from the hub or a folder (split {split!r})"
        problems.fail(f"{what}: {type(problem).__name__}: {problem}", problem)
    yield from open_source(dataset, split)[1]


def _without_filler(row: dict[str, Any], features: Features) -> dict[str, Any]:
    """Remove None that Arrow adds to give all structs of a column the same keys. JSON columns are kept as written."""
    return {key: _drop_none(value, features[key]) for key, value in row.items()}


def _drop_none(value: Any, feature: Any) -> Any:
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _drop_none(item, feature[key]) for key, item in value.items() if item is not None}
    if isinstance(feature, List | LargeList) and isinstance(value, list):
        return [_drop_none(item, feature.feature) for item in value]
    return value
