"""Select from pool files, write a file that is ready to train on and its manifest, and make it again from that."""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

import mrt_plugin
from mrt_plugin.curation.config import parse_rules
from mrt_plugin.curation.held_out import SplitReport, measure_leakage, split_held_out
from mrt_plugin.curation.ledger import Entry, Ledger
from mrt_plugin.curation.mix import Mix, check_proportions, combine
from mrt_plugin.curation.run import curate, reading_entry, write_events
from mrt_plugin.curation.statistics import statistics
from mrt_plugin.extension import load_function
from mrt_plugin.groups import GroupReport, read_groups
from mrt_plugin.groups.adapters import parse_source, source_files
from mrt_plugin.groups.batches import batch_size, pool_sizes
from mrt_plugin.groups.manifest import manifest_path, read_manifest, write_manifest
from mrt_plugin.groups.paths import Named, check_paths
from mrt_plugin.groups.rows import PER_RESPONSE
from mrt_plugin.groups.write import Written, check_ending, rows_of, sha256_of, write_groups, write_rows
from mrt_plugin.options import SelectionOptions, check_options, names_of
from mrt_plugin.pipeline.exports import RANKED, Exported, check_export, check_scores, export
from mrt_plugin.pipeline.job import PoolFile, SelectJob
from mrt_plugin.pipeline.manifest import file_entry, left_over
from mrt_plugin.scoring.cache import cache_file
from mrt_plugin.scoring.embedders import load_embedder
from mrt_plugin.scoring.judge import is_judge, judge_files, parse_judge
from mrt_plugin.scoring.scores import scorer_list, scorer_name
from mrt_plugin.selection.registry import get_selector
from mrt_plugin.selection.run import run_selection
from mrt_plugin.versions import libraries


def written_by(job: SelectJob) -> list[Named]:
    return [
        ("--output", job.output),
        ("the manifest", manifest_path(job.output)),
        ("--held-out-output", job.held_out_path),
        *((f"--export {kind}", path) for kind, path in job.exports.items()),
        ("--decisions", job.decisions),
        ("the score cache", cache_file(job.score_cache)),
    ]


def check_job_paths(job: SelectJob) -> None:
    """Raise ValueError if an output would overwrite another output or an input, or leave an old file behind."""
    scorers = scorer_list(job.scorer or [])
    named = [item for item in [*scorers, job.embedder] if isinstance(item, str)]
    rules = [path for rule in parse_rules(job.curation) for path in rule.dependencies()]
    code = [path for file in job.pools for path in source_files(file.source)]
    code += [path for scorer in scorers for path in judge_files(scorer)]
    inputs: list[Named] = [("the pool", file.path) for file in job.pools]
    inputs += [("the input", path) for path in [*job.also_read, job.selector, *named, *rules, *code]]
    check_paths(written_by(job), inputs, models=named)
    stale = left_over(job.output, written_by(job)).held_out
    if stale is not None and not job.overwrite:
        what = (
            f"{stale} holds the groups that an earlier run held out of {job.output}, and this run would train on them"
        )
        remedy = "Hold them out again, write to another --output, or remove them with --overwrite."
        raise ValueError(f"{what}. {remedy}")


def _check(job: SelectJob) -> None:
    """Raise early for errors that would otherwise appear only at the end of the job."""
    check_job_paths(job)
    get_selector(job.selector)
    check_options(job)
    for kind, path in job.exports.items():
        check_export(kind, path)
    for path in filter(None, [job.output, job.held_out_output]):
        check_ending(path)
    if job.proportions is not None:
        check_proportions([file.name for file in job.pools], job.proportions, job.max_repeats)
    elif job.total is not None:
        raise ValueError("a total needs proportions: give each pool's share.")
    for source in filter(None, [file.source for file in job.pools]):
        parse_source(source)
    for scorer in scorer_list(job.scorer or []):
        if isinstance(scorer, str) and is_judge(scorer):
            parse_judge(scorer)
        elif isinstance(scorer, str) and ":" in scorer:
            load_function(scorer)


@dataclass(frozen=True)
class SelectResult:
    """The result of `select_file`; `summary` is for people, `statistics` of the `pool` and the `selected` groups."""

    output: Written
    manifest: Path
    ledger: Ledger
    summary: list[str]
    held_out: Written | None
    exports: list[Exported]
    statistics: dict[str, Any] | None


def select_file(job: SelectJob, progress: Callable[[str], object] = lambda stage: None) -> SelectResult:
    """Read pools, hold prompts out, curate, mix, select, and write the result with its manifest.

    Every file appears complete or not at all, the manifest last. The same job gives the same bytes with any number of
    processes, on Ray, and when repeated after a kill at any point. `progress` is called with the name of each stage.

    Raises:
        DataError, ValueError: name the problem and the remedy.
        OSError: names the file that cannot be written.

    Example:

    ```python
    from pathlib import Path
    from mrt_plugin.pipeline import PoolFile, SelectJob, select_file
    from mrt_plugin.pipeline.files import remake

    pools = [PoolFile("pool.jsonl")]
    result = select_file(SelectJob("diverse_best_k", k=4, pools=pools, output=Path("chosen.jsonl"), seed=7))
    remake(result.manifest, Path("again.jsonl"))  # the same bytes
    ```
    """
    _check(job)
    return _Execution(job, progress).write()


@dataclass(frozen=True)
class Pools:
    """The groups of all pools, the index of each group's pool, its id there, and the hashes of files as read."""

    groups: Dataset
    reports: list[GroupReport]
    owner: list[int]
    source_id: list[str]
    sha256: list[str | None]


def read_pools(files: Sequence[PoolFile]) -> Pools:
    """Read pools and concatenate them. ValueError if one changes while it is read."""
    names = [file.name for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two pools are called {twice}: rename one of the files.")
    digests = [sha256_of(file.path) if Path(file.path).is_file() else None for file in files]
    read = [read_groups(file.path, split=file.split, subset=file.subset, source=file.source) for file in files]
    for file, digest in zip(files, digests, strict=True):
        if digest is not None and sha256_of(file.path) != digest:
            raise ValueError(f"{file.path} changed while it was read: run again when nothing writes to it.")
    together, _ = combine({name: groups for name, (groups, _) in zip(names, read, strict=True)})
    owner = [number for number, (groups, _) in enumerate(read) for _ in range(len(groups))]
    source_id = [name for groups, _ in read for name in groups["id"]]
    return Pools(together, [report for _, report in read], owner, source_id, digests)


class _Execution:
    """A job on its way from the pools to the selection, and to the files."""

    held_out: Dataset | None = None
    split: SplitReport | None = None

    def __init__(self, job: SelectJob, progress: Callable[[str], object]) -> None:
        self.progress = progress
        progress("reading the pools")
        self.job, self.rules, self.pools = job, parse_rules(job.curation), read_pools(job.pools)
        pools, ledger = self.pools, Ledger([reading_entry(*self.pools.reports)])
        workers: dict[str, Any] = {"num_proc": job.num_proc, "engine": job.engine}
        self.train = pools.groups
        if job.held_out is not None:
            progress("holding prompts out")
            self.train, self.held_out, self.split = split_held_out(
                pools.groups, job.held_out, seed=job.seed, threshold=job.held_out_threshold, num_proc=job.num_proc
            )
            entry = Entry("held out", len(pools.groups), sum(pool_sizes(pools.groups)))
            entry.groups_dropped = entry.reasons["drop: held out"] = len(self.held_out)
            entry.responses_dropped_with_group = sum(pool_sizes(self.held_out))
            ledger.entries.append(entry)
        rules = list(self.rules)
        if job.proportions is not None:
            owners = {name: job.pools[owner].name for name, owner in zip(pools.groups["id"], pools.owner, strict=True)}
            rules.append(Mix(owners=owners, proportions=job.proportions, total=job.total, max_repeats=job.max_repeats))
        progress("curating")
        self.curated = curate(self.train, rules, tokenizer=job.tokenizer, seed=job.seed, ledger=ledger, **workers)
        progress("selecting")
        self.chosen = run_selection(self.curated.groups, job, seed=job.seed, **workers)
        self.chosen.report.log()
        self.selected = self.chosen.apply()
        before, changed, picks = self.curated.ledger, self.curated.changed, self.chosen.picks
        kept = sum(map(len, picks))
        entry = Entry("selection", len(picks), before.responses_out, responses_dropped=before.responses_out - kept)
        if entry.responses_dropped:
            entry.reasons["drop: not selected"] = entry.responses_dropped
        still = sum((place, index) in changed for place, picked in enumerate(picks) for index in picked)
        self.ledger = Ledger([*before.entries, entry], len(picks), kept, kept - still, still)
        self.ledger.check()

    def write(self) -> SelectResult:
        """Write all files, the manifest last."""
        job, aside, found = self.job, None, None
        if any(kind in job.exports for kind in RANKED):
            check_scores(self.selected.features)
        summary = [self.chosen.report.summary(), *self.chosen.report.remarks]
        if self.held_out is not None and self.split is not None:
            self.progress("looking for held-out prompts among the others")
            threshold, num_proc = job.held_out_threshold, job.num_proc
            leakage = measure_leakage(self.curated.groups, self.held_out, threshold=threshold, num_proc=num_proc)
            summary += [self.split.summary(), leakage.summary()]
        stale = left_over(job.output, written_by(job))
        for path in [*filter(None, [stale.held_out]), *(stale.exports if job.overwrite else [])]:
            path.unlink()
            summary.append(f"{path} was of an earlier run: removed.")
        summary += [
            f"{path} is the export of an earlier run to {job.output}, not of this selection. Write it again with "
            "--export, or remove it: --overwrite does."
            for path in stale.exports
            if not job.overwrite
        ]
        self.progress("writing")
        output = write_groups(self.selected, job.output)
        embedder = load_embedder(job.embedder, score_cache=job.score_cache) if "divpo" in job.exports else None
        # What is rare is a question about the complete pool.
        sources = {kind: self.chosen.groups if kind == "divpo" else self.selected for kind in job.exports}
        exports = [export(rows_of(sources[kind]), kind, path, embedder=embedder) for kind, path in job.exports.items()]
        if self.held_out is not None and job.held_out_path is not None:
            aside = write_groups(self.held_out, job.held_out_path)
        if job.decisions is not None:
            write_events(job.decisions, self.train, self.curated)
        manifest = manifest_path(job.output)
        write_manifest(manifest, self._header(output, aside, exports), self._lines())
        if job.stats:
            parts = {"pool": self.pools.groups, "selected": self.selected}
            found = {name: statistics(groups, tokenizer=job.tokenizer) for name, groups in parts.items()}
        return SelectResult(output, manifest, self.ledger, summary, aside, exports, found)

    def _header(self, output: Written, aside: Written | None, exports: Sequence[Exported]) -> dict[str, Any]:
        """Return the manifest's first line. It does not depend on when, where or in how many processes the job ran."""
        job = self.job
        elsewhere = ("scorer", "score_cache", "weights", "weight_temperature")
        decisive = [name for name in (*names_of(SelectionOptions), "seed") if name not in elsewhere]
        pools = zip(job.pools, self.pools.sha256, strict=True)
        versions = {library.name: library.found for library in libraries() if library.found is not None}
        return {
            "mrt_plugin": mrt_plugin.__version__,
            "pools": [{**_pool_entry(file), "sha256": digest} for file, digest in pools],
            "selection": {name: _named(getattr(job, name)) for name in decisive},
            "scorers": [scorer_name(scorer) for scorer in scorer_list(job.scorer or [])],
            "weights": job.weights if job.weights == "column" else {job.weights: job.weight_temperature},
            "tokenizer": getattr(job.tokenizer, "name_or_path", None),
            "curation": [
                {rule.name: {name: _named(value) for name, value in rule.model_dump().items()}} for rule in self.rules
            ],
            "mix": job.proportions and {name: getattr(job, name) for name in ("proportions", "total", "max_repeats")},
            "held_out": self.split and asdict(self.split),
            "columns": list(self.selected.features),
            "output": file_entry(output, job.output),
            "held_out_output": aside and file_entry(aside, job.output),
            "exports": [file_entry(item, job.output) for item in exports],
            "ledger": self.ledger.as_dict(),
            "versions": {"python": platform.python_version(), **versions},
        }

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield the manifest's line for each group: its origin and what was kept."""
        curated, train_ids = self.curated, self.train["id"][:]
        place_of = {name: place for place, name in enumerate(self.pools.groups["id"])}

        def origin(place: int, name: str) -> dict[str, Any]:
            line: dict[str, Any] = {"id": name}
            if self.pools.source_id[place] != name:
                line["from"] = self.pools.source_id[place]
            if len(self.pools.reports) > 1:
                line["input"] = self.pools.owner[place]
            return line

        columns = [name for name in ("id", "scores", "weights") if name in self.selected.column_names]
        rows = rows_of(self.selected.select_columns(columns))
        for position, (row, picked) in enumerate(zip(rows, self.chosen.picks, strict=True)):
            line = origin(place_of[train_ids[curated.row[position]]], row.pop("id"))
            line["kept"] = [curated.origin[position][index] for index in picked]
            line.update(row)
            given = [(str(number), curated.changed.get((position, index))) for number, index in enumerate(picked)]
            changed = {number: response for number, response in given if response is not None}
            yield line | {"changed": changed} if changed else line
        for name in [] if self.held_out is None else self.held_out["id"]:
            yield {**origin(place_of[name], name), "part": "held_out"}


def _pool_entry(file: PoolFile) -> dict[str, Any]:
    """Return a pool's options for the manifest. Files have no splits."""
    entry = asdict(file)
    if Path(file.path).is_file():
        del entry["split"], entry["subset"]
    return entry


def _named(value: Any) -> Any:
    """Convert an option to JSON. A function becomes its name."""
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else value


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
    recorded = header["pools"]
    if len(paths) != len(recorded):
        raise ValueError(f"the selection was made from {len(recorded)} pools; {len(paths)} are given.")
    for path, pool in zip(paths, recorded, strict=True):
        if pool["sha256"] is None:
            continue
        if not Path(path).is_file():
            raise ValueError(f"the pool {path} is not there: say where it is (`mrt select POOL --from-manifest ...`).")
        if sha256_of(path) != pool["sha256"]:
            raise ValueError(f"{path} is not the file that was selected from: its content has changed since.")
    options = ("source", "split", "subset")
    given = [{name: pool[name] for name in options if name in pool} for pool in recorded]
    return [PoolFile(path, **known) for path, known in zip(paths, given, strict=True)]


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
