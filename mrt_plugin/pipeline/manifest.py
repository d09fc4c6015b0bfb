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
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from mrt_plugin.groups.paths import Named, same_file
from mrt_plugin.groups.write import Written, whole_file
from mrt_plugin.pipeline.exports import Exported

FORMAT = "mrt-selection/1"


def manifest_path(output: str | Path) -> Path:
    """Return the path of a selection's manifest."""
    return Path(f"{Path(output)}.manifest.jsonl")


def file_entry(written: Written | Exported, output: Path) -> dict[str, Any]:
    """Describe a file in the manifest. Its name is relative to the selection's folder."""
    folder = os.path.relpath(written.path.parent.resolve(), output.parent.resolve())
    counts = {name: value for name, value in asdict(written).items() if name != "path"}
    return {"name": Path(folder, written.path.name).as_posix(), **counts}


@dataclass(frozen=True)
class LeftOver:
    """The files of an earlier selection of the same name that exist and are not written again."""

    held_out: Path | None
    exports: list[Path]


def left_over(output: Path, written: Iterable[Named]) -> LeftOver:
    manifest, again = manifest_path(output), [path for _, path in written if path is not None]
    header = read_manifest(manifest)[0] if manifest.is_file() else {}

    def old(entries: Iterable[dict[str, Any]]) -> list[Path]:
        paths = [output.parent / entry["name"] for entry in entries]
        return [path for path in paths if path.is_file() and not any(same_file(path, other) for other in again)]

    held_out = header.get("held_out_output")
    return LeftOver(next(iter(old([held_out] if held_out else [])), None), old(header.get("exports", [])))


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
