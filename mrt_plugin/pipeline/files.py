"""Select from pool files, and write a file that is ready to train on, with its manifest."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

import mrt_plugin
from mrt_plugin.curation.config import RuleSpec, parse_rules
from mrt_plugin.curation.held_out import SHARE, THRESHOLD, SplitReport, split_held_out
from mrt_plugin.curation.leakage import measure_leakage
from mrt_plugin.curation.ledger import Entry, Ledger
from mrt_plugin.curation.mix import Mix, check_proportions, combine
from mrt_plugin.curation.rule import CurationRule
from mrt_plugin.curation.run import Curated, curate, reading_entry, write_events
from mrt_plugin.curation.statistics import statistics
from mrt_plugin.engine import check_engine
from mrt_plugin.extension import load_function
from mrt_plugin.groups import GroupReport, load_groups, read_groups
from mrt_plugin.groups.adapters import check_source, source_files
from mrt_plugin.groups.batches import pool_sizes
from mrt_plugin.groups.paths import Named, check_paths
from mrt_plugin.groups.rows import PER_RESPONSE
from mrt_plugin.groups.write import Written, check_ending, rows_of, sha256_of, write_rows
from mrt_plugin.options import Engine, MultiResponseOptions, WeightSource, check_options
from mrt_plugin.pipeline.exports import Exported, check_export, export
from mrt_plugin.pipeline.manifest import left_over, manifest_path, relative_name, write_manifest
from mrt_plugin.scoring.cache import cache_file
from mrt_plugin.scoring.scores import Scorer, scorer_list, scorer_name
from mrt_plugin.scoring.weights import softmax_weights
from mrt_plugin.selection.registry import get_selector
from mrt_plugin.selection.report import SelectionReport
from mrt_plugin.selection.run import score_and_select
from mrt_plugin.versions import libraries, python_version

_OPTIONS = {item.name for item in fields(MultiResponseOptions)}


@dataclass(frozen=True)
class PoolFile:
    """A pool to select from.

    Example:

    >>> PoolFile("pool.jsonl").path
    'pool.jsonl'
    """

    path: str
    source: str | None = None
    """The public format of the pool, as for `load_groups`."""

    @property
    def name(self) -> str:
        """Its name in `proportions`: the file's name without its ending."""
        return Path(self.path).stem


@dataclass(frozen=True)
class SelectJob:
    """All inputs of `mrt select`. The result depends on neither `num_proc` nor `engine`.

    Example:

    ```python
    from pathlib import Path

    from mrt_plugin.pipeline import PoolFile, SelectJob

    job = SelectJob([PoolFile("pool.jsonl")], Path("chosen.jsonl"), {"selector": "best_k", "k": 2})
    ```
    """

    pools: Sequence[PoolFile]
    output: Path
    selection: dict[str, Any]
    """`selector`, and the options of `mrt_plugin.select` that decide what is kept: `k`, `seed`, `embedder`, ..."""
    scorer: Scorer | Sequence[Scorer] | None = None
    weights: WeightSource = "column"
    weight_temperature: float = 1.0
    score_cache: str | Path | None = None
    curation: str | Sequence[RuleSpec] | None = None
    tokenizer: Any = None
    held_out: float | None = None
    """The share of prompts written to `held_out_output` with all their responses, before any curation."""
    held_out_output: Path | None = None
    """By default `NAME.held_out.jsonl` in the output's folder."""
    held_out_threshold: float = 0.8
    proportions: dict[str, float] | None = None
    """The shares of the pools in the result, by pool name."""
    total: int | None = None
    max_repeats: int = 4
    exports: dict[str, Path] = field(default_factory=dict)
    """Files for other trainers, by kind: `sft`, `dpo`."""
    decisions: Path | None = None
    """A file for every decision of the curation, for people to read."""
    with_statistics: bool = False
    overwrite: bool = False
    """Remove files that an earlier run with this `output` wrote next to it and this run does not write again."""
    also_read: Sequence[str | Path] = ()
    """Other input files, such as a file of rules. They are never overwritten."""
    num_proc: int | None = None
    engine: Engine = "local"

    @property
    def held_out_path(self) -> Path | None:
        """The file of the held-out groups, or None if there are none."""
        if self.held_out is None:
            return None
        return self.held_out_output or self.output.with_suffix(f".held_out{self.output.suffix}")

    def written(self) -> list[Named]:
        """Return every file that the job writes."""
        return [
            ("--output", self.output),
            ("the manifest", manifest_path(self.output)),
            ("--held-out-output", self.held_out_path),
            *((f"--export {kind}", path) for kind, path in self.exports.items()),
            ("--decisions", self.decisions),
            ("the score cache", cache_file(self.score_cache)),
        ]

    def check_paths(self) -> None:
        """Raise ValueError if an output would overwrite another output or an input, or leave an old file behind."""
        scorers = [] if self.scorer is None else scorer_list(self.scorer)
        named = [item for item in [*scorers, self.selection.get("embedder")] if isinstance(item, str)]
        rules = [path for rule in parse_rules(self.curation) for path in rule.dependencies()]
        inputs: list[Named] = [("the pool", file.path) for file in self.pools]
        code = [path for file in self.pools for path in source_files(file.source)]
        inputs += [("the input", path) for path in [*self.also_read, *named, *rules, *code]]
        check_paths(self.written(), inputs, models=named)
        stale = left_over(self.output, self.written())
        if stale is not None and not self.overwrite:
            raise ValueError(
                f"{stale} holds the groups that an earlier run held out of {self.output}, and this run would train on "
                "them. Hold them out again, write to another --output, or remove them with --overwrite."
            )

    @property
    def seed(self) -> int:
        """The seed of all random draws."""
        return int(self.selection.get("seed", 0))


@dataclass
class SelectResult:
    """The result of `select_file`."""

    output: Written
    manifest: Path
    ledger: Ledger
    summary: list[str]
    """Lines for people to read."""
    held_out: Written | None = None
    exports: list[Exported] = field(default_factory=list)
    statistics: dict[str, Any] | None = None
    """Statistics of the `pool` and of the `selected` groups."""


def select_file(job: SelectJob) -> SelectResult:
    """Read pools, hold prompts out, curate, mix, select, and write the result with its manifest.

    Every file appears complete or not at all, the manifest last. The same job gives the same bytes with any number of
    processes, on Ray, and when repeated after a kill at any point.

    Raises:
        DataError, ValueError: name the problem and the remedy.
        OSError: names the file that cannot be written.

    Example:

    ```python
    from pathlib import Path
    from mrt_plugin.pipeline import PoolFile, SelectJob, select_file
    from mrt_plugin.pipeline.remake import remake

    job = SelectJob([PoolFile("pool.jsonl")], Path("chosen.jsonl"), {"selector": "diverse_best_k", "k": 4, "seed": 7})
    result = select_file(job)
    remake(result.manifest, Path("again.jsonl"))  # the same bytes
    ```
    """
    job.check_paths()
    rules = parse_rules(job.curation)
    _check(job)
    pools = read_pools(job.pools)
    ledger = Ledger([reading_entry(*pools.reports)])
    train, held_out, split = pools.groups, None, None
    if job.held_out is not None:
        train, held_out, split = split_held_out(
            pools.groups, job.held_out, seed=job.seed, threshold=job.held_out_threshold, num_proc=job.num_proc
        )
        ledger.entries.append(_held_out_entry(pools.groups, held_out))
    curated = curate(
        train,
        [*rules, *_mixing(job, pools)],
        tokenizer=job.tokenizer,
        seed=job.seed,
        num_proc=job.num_proc,
        engine=job.engine,
        ledger=ledger,
    )
    picks, report = _score_and_select(job, curated)
    report.log()
    summary = [report.summary(), *report.remarks]
    ledger = _with_selection(curated, picks)
    if held_out is not None and split is not None:
        leakage = measure_leakage(
            curated.groups, held_out, threshold=job.held_out_threshold, num_proc=job.num_proc
        ).summary()
        summary += [split.summary(), leakage]

    features = Features(curated.groups.features)
    if job.weights == "softmax":
        features["weights"] = List(Value("float64"))
    if "dpo" in job.exports and "scores" not in features:
        raise ValueError("pairs for DPO need scores, and the groups have none: leave the export out, or score them.")
    temperature = job.weight_temperature if job.weights == "softmax" else None
    stale = left_over(job.output, job.written())
    if stale is not None:
        stale.unlink()
        summary.append(f"{stale} was of an earlier run: removed.")
    written = write_rows(kept_rows(curated.groups, picks, temperature), features, job.output)
    exported = [
        export(kept_rows(curated.groups, picks, temperature), kind, path) for kind, path in job.exports.items()
    ]
    aside = None
    if held_out is not None and job.held_out_path is not None:
        aside = write_rows(rows_of(held_out), held_out.features, job.held_out_path)
    if job.decisions is not None:
        write_events(job.decisions, train, curated)
    header = _header(job, rules, pools, written, aside, list(features), ledger, split)
    manifest = manifest_path(job.output)
    write_manifest(manifest, header, _lines(pools, train, curated, picks, temperature, held_out))
    found = None
    if job.with_statistics:
        found = {
            "pool": statistics(pools.groups, tokenizer=job.tokenizer),
            "selected": statistics(load_groups(job.output), tokenizer=job.tokenizer),
        }
    return SelectResult(written, manifest, ledger, summary, aside, exported, found)


def _check(job: SelectJob) -> None:
    """Raise early for errors that would otherwise appear only at the end of the job."""
    get_selector(job.selection["selector"])
    known = {name: value for name, value in job.selection.items() if name in _OPTIONS}
    check_options(MultiResponseOptions(**known, weights=job.weights, weight_temperature=job.weight_temperature))
    check_engine(job.engine)
    for kind, path in job.exports.items():
        check_export(kind, path)
    for path in [job.output, *filter(None, [job.held_out_output])]:
        check_ending(path)
    if job.proportions is None and job.total is not None:
        raise ValueError("a total needs proportions: give each pool's share.")
    if job.held_out is not None:
        SHARE.check("held_out", job.held_out)
        THRESHOLD.check("held_out_threshold", job.held_out_threshold)
    if job.proportions is not None:
        check_proportions([file.name for file in job.pools], job.proportions, job.max_repeats)
    for file in job.pools:
        if file.source is not None:
            check_source(file.source)
    for scorer in scorer_list(job.scorer or []):
        if isinstance(scorer, str) and ":" in scorer:
            load_function(scorer)


@dataclass
class Pools:
    """The groups of all pools, and the origin of each."""

    groups: Dataset
    reports: list[GroupReport]
    owner: list[int]
    """The index of each group's pool."""
    source_id: list[str]
    """The id of each group in its pool."""
    sha256: list[str | None]
    """The SHA-256 of each pool's file as it was read. None for a pool that is not a file."""


def read_pools(files: Sequence[PoolFile]) -> Pools:
    """Read pools and concatenate them.

    Raises:
        ValueError: if two have the same name, they are not compatible, or one changes while it is read.
    """
    names = [file.name for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two pools are called {twice}: rename one of the files.")
    digests = [_file_digest(file.path) for file in files]
    read = [read_groups(file.path, source=file.source) for file in files]
    changed = next(
        (file for file, digest in zip(files, digests, strict=True) if _file_digest(file.path) != digest), None
    )
    if changed is not None:
        raise ValueError(f"{changed.path} changed while it was read: run again when nothing writes to it.")
    together, _ = combine({file.name: groups for file, (groups, _) in zip(files, read, strict=True)})
    return Pools(
        together,
        [report for _, report in read],
        [number for number, (groups, _) in enumerate(read) for _ in range(len(groups))],
        [name for groups, _ in read for name in groups["id"]],
        digests,
    )


def kept_rows(
    groups: Dataset, picks: Sequence[Sequence[int]], temperature: float | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the groups with only the picked responses. With a temperature, the weights are a softmax of the scores."""
    for row, picked in zip(rows_of(groups), picks, strict=True):
        kept = {
            name: [value[index] for index in picked] if name in PER_RESPONSE else value for name, value in row.items()
        }
        yield kept if temperature is None else {**kept, "weights": softmax_weights(kept["scores"], temperature)}


def _score_and_select(job: SelectJob, curated: Curated) -> tuple[list[list[int]], SelectionReport]:
    """Return the picks. Afterwards the groups hold the scores that were used."""
    chosen = score_and_select(
        curated.groups,
        scorer=job.scorer,
        num_proc=job.num_proc,
        engine=job.engine,
        score_cache=job.score_cache,
        **job.selection,
    )
    curated.groups = chosen.groups
    if job.weights == "softmax" and "scores" not in curated.groups.column_names:
        raise ValueError("weights='softmax' needs scores: give a column `scores`, or a `scorer`.")
    return chosen.picks, chosen.report


def _mixing(job: SelectJob, pools: Pools) -> list[CurationRule]:
    if job.proportions is None:
        return []
    names = [file.name for file in job.pools]
    owners = {name: names[owner] for name, owner in zip(pools.groups["id"], pools.owner, strict=True)}
    return [Mix(owners=owners, proportions=job.proportions, total=job.total, max_repeats=job.max_repeats)]


def _held_out_entry(groups: Dataset, held_out: Dataset) -> Entry:
    entry = Entry("held out", len(groups), sum(pool_sizes(groups)))
    entry.groups_dropped, entry.responses_dropped_with_group = len(held_out), sum(pool_sizes(held_out))
    entry.reasons["drop: held out"] = len(held_out)
    return entry


def _with_selection(curated: Curated, picks: Sequence[Sequence[int]]) -> Ledger:
    """Return the ledger with the selection as its last entry, checked again."""
    before = curated.ledger
    kept = sum(map(len, picks))
    entry = Entry("selection", len(picks), before.responses_out, responses_dropped=before.responses_out - kept)
    if entry.responses_dropped:
        entry.reasons["drop: not selected"] = entry.responses_dropped
    changed = sum((place, index) in curated.changed for place, picked in enumerate(picks) for index in picked)
    ledger = Ledger([*before.entries, entry], len(picks), kept, kept - changed, changed)
    ledger.check()
    return ledger


def _header(
    job: SelectJob,
    rules: Sequence[CurationRule],
    pools: Pools,
    written: Written,
    aside: Written | None,
    columns: list[str],
    ledger: Ledger,
    split: SplitReport | None,
) -> dict[str, Any]:
    """Return the manifest's first line. It does not depend on when, where or in how many processes the job ran."""
    options = {name: _named(value) for name, value in job.selection.items()}
    versions = {library.name: library.found for library in libraries() if library.found is not None}
    return {
        "mrt_plugin": mrt_plugin.__version__,
        "pools": [
            {"path": file.path, "source": file.source, "sha256": digest}
            for file, digest in zip(job.pools, pools.sha256, strict=True)
        ],
        "selection": options,
        "scorers": [] if job.scorer is None else [scorer_name(scorer) for scorer in scorer_list(job.scorer)],
        "weights": job.weights if job.weights == "column" else {job.weights: job.weight_temperature},
        "tokenizer": getattr(job.tokenizer, "name_or_path", None),
        "curation": [
            {rule.name: {name: _named(value) for name, value in rule.model_dump().items()}} for rule in rules
        ],
        "mix": job.proportions
        and {"proportions": job.proportions, "total": job.total, "max_repeats": job.max_repeats},
        "held_out": split and split.as_dict(),
        "columns": columns,
        "output": _file_entry(written, job.output),
        "held_out_output": aside and _file_entry(aside, job.output),
        "ledger": ledger.as_dict(),
        "versions": {"python": python_version(), **versions},
    }


def _named(value: Any) -> Any:
    """Convert an option to JSON. A function becomes its name."""
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else value


def _file_entry(written: Written, output: Path) -> dict[str, Any]:
    return {
        "name": relative_name(written.path, output),
        "groups": written.groups,
        "responses": written.responses,
        "bytes": written.bytes,
        "sha256": written.sha256,
    }


def _file_digest(path: str) -> str | None:
    return sha256_of(path) if Path(path).is_file() else None


def _lines(
    pools: Pools,
    train: Dataset,
    curated: Curated,
    picks: Sequence[Sequence[int]],
    temperature: float | None,
    held_out: Dataset | None,
) -> Iterator[dict[str, Any]]:
    """Yield the manifest's line for each group: its origin and what was kept."""
    place_of = {name: place for place, name in enumerate(pools.groups["id"])}
    train_ids = train["id"][:]
    columns = [name for name in ("id", "scores", "weights") if name in curated.groups.column_names]
    for position, (row, picked) in enumerate(zip(rows_of(curated.groups.select_columns(columns)), picks, strict=True)):
        line = _origin(pools, place_of[train_ids[curated.row[position]]], row["id"])
        line["kept"] = [curated.origin[position][index] for index in picked]
        for name in columns[1:]:
            line[name] = [row[name][index] for index in picked]
        if temperature is not None:
            line["weights"] = softmax_weights(line["scores"], temperature)
        changed = {
            str(number): curated.changed[position, index]
            for number, index in enumerate(picked)
            if (position, index) in curated.changed
        }
        yield {**line, "changed": changed} if changed else line
    if held_out is not None:
        for row in rows_of(held_out.select_columns(["id"])):
            yield {**_origin(pools, place_of[row["id"]], row["id"]), "part": "held_out"}


def _origin(pools: Pools, place: int, name: str) -> dict[str, Any]:
    line: dict[str, Any] = {"id": name}
    if pools.source_id[place] != name:
        line["from"] = pools.source_id[place]
    if len(pools.reports) > 1:
        line["input"] = pools.owner[place]
    return line
