"""Read and write the manifest of a selection: the inputs, settings and choices needed to make the same file again.

A manifest is a JSON-lines file `NAME.manifest.jsonl` in the selection's folder. The first line describes how it was
made. Then follows one line per group, in the order of the file. So a manifest of millions of groups can be read line
by line. The fields of a group's line, all optional but `id`:

- `id`: the group's id.
- `kept`: the indices of the kept responses in the pool. Missing for a held-out group, which keeps all.
- `scores`, `weights`: those of the kept responses.
- `changed`: the responses that curation changed, by their position among the kept.
- `from`: the group's id in the input, if it differs.
- `input`: the number of the input, if there are several.
- `part`: `held_out` for a held-out group.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mrt_plugin.groups.write import whole_file

FORMAT = "mrt-selection/1"


def manifest_path(output: str | Path) -> Path:
    """Return the path of a selection's manifest."""
    return Path(f"{Path(output)}.manifest.jsonl")


def write_manifest(path: Path, header: dict[str, Any], groups: Iterable[dict[str, Any]]) -> None:
    """Write the header and one line per group. The file appears complete or not at all."""
    with whole_file(path) as file:
        for line in chain([{"format": FORMAT, **header}], groups):
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read_manifest(path: str | Path) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Return the header of a manifest, and its groups. ValueError for another kind of file, or another version."""
    lines = _lines(Path(path))
    try:
        header = next(lines, None)
    except ValueError:
        header = None
    if not isinstance(header, dict) or "format" not in header:
        raise ValueError(f"{path} is not the manifest of a selection: its first line has no `format`.")
    if header["format"] != FORMAT:
        raise ValueError(f"{path} has the format {header['format']!r}, and this version reads {FORMAT!r}.")
    return header, lines


def _lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
