"""Make a selection again from its manifest and the pools, without scoring, embedding or choosing."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Features, List, Value

from mrt_plugin.groups.batches import batch_size
from mrt_plugin.groups.paths import check_paths
from mrt_plugin.groups.rows import PER_RESPONSE
from mrt_plugin.groups.write import Written, sha256_of, write_rows
from mrt_plugin.pipeline.files import Pools, read_pools
from mrt_plugin.pipeline.job import PoolFile
from mrt_plugin.pipeline.manifest import manifest_path, read_manifest


def remake(
    manifest: str | Path, output: str | Path, *, held_out_output: str | Path | None = None, pools: Sequence[str] = ()
) -> list[Written]:
    """Write the selection that a manifest describes again, byte for byte. ValueError if the bytes would differ.

    `pools` are the pool files, if they are not where the manifest says. Held-out groups are written only if asked for.
    """
    header, _ = read_manifest(manifest)
    output, ending = Path(output), Path(header["output"]["name"]).suffix
    if output.suffix != ending:
        raise ValueError(f"{output}: the selection was a {ending} file; so must this be.")
    beside = manifest_path(output)
    if beside.is_file() and read_manifest(beside)[0]["output"]["sha256"] != header["output"]["sha256"]:
        raise ValueError(f"{output} is another selection, which {beside} describes: write to another --output.")
    if held_out_output is not None and header["held_out_output"] is None:
        raise ValueError(f"{manifest} has no held-out groups.")
    paths = list(pools) or [pool["path"] for pool in header["pools"]]
    inputs = [("the manifest", manifest), *(("the pool", path) for path in paths)]
    check_paths([("--output", output), ("--held-out-output", held_out_output)], inputs)
    read = read_pools(_pool_files(header, paths))
    # The columns are those of the pool, and the scores of a scorer.
    features = Features({name: read.groups.features.get(name, List(Value("float64"))) for name in header["columns"]})
    wanted: list[tuple[Path, str | None, Features, Any]] = [(output, None, features, header["output"])]
    if held_out_output is not None:
        wanted.append((Path(held_out_output), "held_out", read.groups.features, header["held_out_output"]))
    try:
        return [
            write_rows(_rows(manifest, part, read, columns), columns, path, sha256=entry["sha256"])
            for path, part, columns, entry in wanted
        ]
    except KeyError as problem:
        raise ValueError(f"{manifest} names the group {problem}, which the pools do not have.") from None


def _pool_files(header: dict[str, Any], paths: Sequence[str]) -> list[PoolFile]:
    """Return the pools of the manifest, checked to be unchanged."""
    recorded = header["pools"]
    if len(paths) != len(recorded):
        raise ValueError(f"the selection was made from {len(recorded)} pools; {len(paths)} are given.")
    for path, pool in zip(paths, recorded, strict=True):
        if pool["sha256"] is not None and not Path(path).is_file():
            raise ValueError(f"the pool {path} is not there: say where it is (`mrt select POOL --from-manifest ...`).")
        if pool["sha256"] is not None and sha256_of(path) != pool["sha256"]:
            raise ValueError(f"{path} is not the file that was selected from: its content has changed since.")
    return [PoolFile(path, pool["source"]) for path, pool in zip(paths, recorded, strict=True)]


def _rows(manifest: str | Path, part: str | None, pools: Pools, features: Features) -> Iterator[dict[str, Any]]:
    """Yield the groups of one part of a manifest, looked up in the pools."""
    places = {key: place for place, key in enumerate(zip(pools.owner, pools.source_id, strict=True))}
    lines = (line for line in read_manifest(manifest)[1] if line.get("part") == part)
    size = batch_size(pools.groups, 256)
    while batch := list(islice(lines, size)):
        found = pools.groups[[places[line.get("input", 0), line.get("from", line["id"])] for line in batch]]
        for number, line in enumerate(batch):
            row = {name: column[number] for name, column in found.items()}
            kept = line.get("kept", range(len(row["responses"])))
            row.update({name: [row[name][index] for index in kept] for name in PER_RESPONSE if name in row})
            for place, response in line.get("changed", {}).items():
                row["responses"][int(place)] = response
            row.update({name: line[name] for name in ("id", "scores", "weights") if name in line})
            yield {name: row[name] for name in features}
