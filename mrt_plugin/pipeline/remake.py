"""Make the same selection again from its manifest and the pools, without scoring, embedding or choosing."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from mrt_plugin.groups.batches import batch_size
from mrt_plugin.groups.paths import check_paths
from mrt_plugin.groups.rows import PER_RESPONSE
from mrt_plugin.groups.write import Written, sha256_of, write_rows
from mrt_plugin.pipeline.files import PoolFile, Pools, read_pools
from mrt_plugin.pipeline.manifest import manifest_path, read_manifest

BATCH = 256
"""The most groups looked up at a time."""


def remake(
    manifest: str | Path, output: str | Path, *, held_out_output: str | Path | None = None, pools: Sequence[str] = ()
) -> list[Written]:
    """Write the selection that a manifest describes again, byte for byte.

    Args:
        manifest: a manifest written by `mrt select`.
        output: the file to write, with the same ending as the original.
        held_out_output: the file for the held-out groups, if there were any. By default they are not written.
        pools: the pool files, if they are not where the manifest says.

    Raises:
        ValueError: if a pool differs from the original, or the bytes would differ. Nothing is written then.

    Example:

    ```python
    remake("chosen.jsonl.manifest.jsonl", "again.jsonl")
    ```
    """
    header, lines = read_manifest(manifest)
    output = Path(output)
    if output.suffix != Path(header["output"]["name"]).suffix:
        raise ValueError(
            f"{output}: the selection was a {Path(header['output']['name']).suffix} file; so must this be."
        )
    beside = manifest_path(output)
    if beside.is_file() and read_manifest(beside)[0]["output"]["sha256"] != header["output"]["sha256"]:
        raise ValueError(f"{output} is another selection, which {beside} describes: write to another --output.")
    if held_out_output is not None and header["held_out_output"] is None:
        raise ValueError(f"{manifest} has no held-out groups.")
    check_paths(
        [("--output", output), ("--held-out-output", held_out_output)],
        [("the manifest", manifest), *(("the pool", path) for path in pools or [p["path"] for p in header["pools"]])],
    )
    read = read_pools(_pool_files(header, pools))
    features = _features(read.groups, header["columns"])
    chosen = (line for line in lines if line.get("part") != "held_out")
    try:
        files = [write_rows(_rows(chosen, read, features), features, output, sha256=header["output"]["sha256"])]
        if held_out_output is not None:
            aside = (line for line in read_manifest(manifest)[1] if line.get("part") == "held_out")
            files.append(
                write_rows(
                    _rows(aside, read, read.groups.features),
                    read.groups.features,
                    held_out_output,
                    sha256=header["held_out_output"]["sha256"],
                )
            )
    except KeyError as problem:
        raise ValueError(f"{manifest} names the group {problem}, which the pools do not have.") from None
    return files


def _pool_files(header: dict[str, Any], paths: Sequence[str]) -> list[PoolFile]:
    """Return the pools of the manifest, checked to be unchanged."""
    recorded = header["pools"]
    if paths and len(paths) != len(recorded):
        raise ValueError(f"the selection was made from {len(recorded)} pools; {len(paths)} are given.")
    files = []
    for number, pool in enumerate(recorded):
        path = paths[number] if paths else pool["path"]
        if pool["sha256"] is not None:
            if not Path(path).is_file():
                raise ValueError(
                    f"the pool {path} is not there: say where it is (`mrt select POOL --from-manifest ...`)."
                )
            if sha256_of(path) != pool["sha256"]:
                raise ValueError(f"{path} is not the file that was selected from: its content has changed since.")
        files.append(PoolFile(path, pool["source"]))
    return files


def _features(groups: Dataset, columns: Sequence[str]) -> Features:
    """Return the selection's columns: those of the pool, and scores from a scorer."""
    return Features({name: groups.features.get(name, List(Value("float64"))) for name in columns})


def _rows(lines: Iterable[dict[str, Any]], pools: Pools, features: Features) -> Iterator[dict[str, Any]]:
    """Yield the groups of some manifest lines, looked up in the pools."""
    places = {key: place for place, key in enumerate(zip(pools.owner, pools.source_id, strict=True))}
    rest, size = iter(lines), batch_size(pools.groups, BATCH)
    while batch := list(islice(rest, size)):
        found = pools.groups[[places[line.get("input", 0), line.get("from", line["id"])] for line in batch]]
        for number, line in enumerate(batch):
            row = {name: column[number] for name, column in found.items()}
            kept = line.get("kept", range(len(row["responses"])))
            taken = {name: [row[name][index] for index in kept] for name in PER_RESPONSE if name in row}
            for place, response in line.get("changed", {}).items():
                taken["responses"][int(place)] = response
            given = {name: line[name] for name in ("scores", "weights") if name in line}
            whole = {**row, **taken, **given, "id": line["id"]}
            yield {name: whole[name] for name in features}
