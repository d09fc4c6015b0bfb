"""Describe the files of a selection in its manifest, and find those that an earlier selection left."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mrt_plugin.groups.manifest import manifest_path, read_manifest
from mrt_plugin.groups.paths import Named, same_file
from mrt_plugin.groups.write import Written
from mrt_plugin.pipeline.exports import Exported


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
