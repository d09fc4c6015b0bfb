"""The manifest of a selection: what was chosen from what and how, enough to make the same file again.

A JSON-lines file beside the selection, `NAME.manifest.jsonl`. The first line says how it was made; then comes a line
for every group in the order of the file, so that a manifest of millions of groups can be read a line at a time.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mrt_plugin.groups.paths import Named, same_file
from mrt_plugin.groups.write import whole_file

FORMAT = "mrt-selection/1"


def manifest_path(output: str | Path) -> Path:
    """Where the manifest of a selection lies.

    Example:

    >>> manifest_path("data/chosen.jsonl").name
    'chosen.jsonl.manifest.jsonl'
    """
    output = Path(output)
    return output.with_name(f"{output.name}.manifest.jsonl")


def relative_name(path: Path, output: Path) -> str:
    """What a manifest calls a file: its path from the folder of the selection."""
    return Path(os.path.relpath(path.parent.resolve(), output.parent.resolve()), path.name).as_posix()


def left_over(output: Path, written: Iterable[Named]) -> Path | None:
    """The held-out file of an earlier selection of the same name, if it is there and is not written again.

    Raises:
        ValueError: if there is something else in the manifest's place.
    """
    manifest = manifest_path(output)
    made = read_manifest(manifest)[0]["held_out_output"] if manifest.is_file() else None
    if made is None:
        return None
    path = output.parent / made["name"]
    again = any(same_file(path, other) for _, other in written if other is not None)
    return path if path.is_file() and not again else None


def write_manifest(path: Path, header: dict[str, Any], groups: Iterable[dict[str, Any]]) -> None:
    """Write the header and a line per group; the file appears complete or not at all.

    A group's line has its `id`, the `kept` indices in the pool it came from, and where there are any its `scores`,
    `weights`, and the responses that curation `changed`, by their place among the kept. `from` is its id in the input
    where that is another, `input` the number of the input where there are several, `part` is `held_out` for a held-out
    group.
    """
    with whole_file(path) as file:
        file.write(_line({"format": FORMAT, **header}))
        for group in groups:
            file.write(_line(group))


def read_manifest(path: str | Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """The header of a manifest, and its groups.

    Raises:
        ValueError: if the file is no manifest, or one of another version.
    """
    path = Path(path)
    with path.open(encoding="utf-8") as file:
        try:
            header = json.loads(file.readline())
        except ValueError:
            header = None
    if not isinstance(header, dict) or "format" not in header:
        raise ValueError(f"{path} is not the manifest of a selection: its first line has no `format`.")
    if header["format"] != FORMAT:
        raise ValueError(f"{path} has the format {header['format']!r}, and this version reads {FORMAT!r}.")
    return header, _groups(path)


def _groups(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        next(file)
        for line in file:
            yield json.loads(line)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
