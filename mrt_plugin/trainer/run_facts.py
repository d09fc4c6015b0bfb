"""Collect what a run knows about itself, for experiment trackers and the model card: data, selection, loss, layout."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from datasets import Dataset

from mrt_plugin.groups.batches import pool_sizes
from mrt_plugin.groups.manifest import manifest_path, read_manifest
from mrt_plugin.groups.origin import Origin, origin_of
from mrt_plugin.groups.write import content_sha256
from mrt_plugin.options import MultiResponseOptions, SelectionOptions, names_of, reads
from mrt_plugin.scoring.scores import scorer_list, scorer_name


@dataclass(frozen=True)
class Step:
    """The counts of one step of a selection, or of one curation rule, from its ledger."""

    rule: str
    groups_in: int
    responses_in: int
    groups_out: int
    responses_out: int

    @classmethod
    def of(cls, entry: dict[str, Any]) -> "Step":
        """Read an entry of `Ledger.as_dict`."""
        return cls(**{name: entry[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class SelectedBefore:
    """How `mrt select` made the training file, from its manifest."""

    manifest: str
    pools: dict[str, str | None]
    """The name of each pool, and its SHA-256; None for a pool from the hub."""
    selector: str
    k: int
    n: int | None
    seed: int
    steps: list[Step]
    """The last one is the selection itself."""


@dataclass(frozen=True)
class DataFacts:
    """A training dataset: the pool as the run read it, what it selected, and what it trains. None: not known."""

    name: str | None = None
    """The name of a file, or a hub id."""
    sha256: str | None = None
    """Of the file."""
    content: str | None = None
    """SHA-256 of the groups that the run selected from, as JSON lines: the same in whatever file they are."""
    groups: int | None = None
    responses: int | None = None
    least: int | None = None
    """N: the fewest responses of a group, before the selection; `median` and `most` likewise."""
    median: float | None = None
    most: int | None = None
    selector: str | None = None
    k: int | None = None
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """The other options of the selection that differ from their defaults."""
    trained_groups: int | None = None
    pairs: int | None = None
    dropped_pairs: int | None = None
    """Longer than max_length; `dropped_groups` had too few pairs left."""
    dropped_groups: int | None = None
    curation: list[Step] | None = None
    """The rules that the run applied itself, none if the list is empty."""
    before: SelectedBefore | None = None

    @property
    def kept(self) -> str | None:
        """Return K of N in words: `4 of 14`, `4 of 5 to 14`; None if N is not known."""
        if self.before is not None and self.selector == "all":
            last = self.before.steps[-1]
            pool = f"{last.responses_in / max(last.groups_in, 1):.4g}"
            return f"{self.before.k if self.before.selector != 'all' else 'all'} of {pool} on average"
        if self.least is None:
            return None
        pool = str(self.least) if self.least == self.most else f"{self.least} to {self.most}"
        if "n" in self.options:
            pool = f"{self.options['n']}, drawn from {pool}"
        kept = "all" if self.k is None else str(self.k)
        if self.options.get("allocation") == "adaptive":
            kept = "a number of its own"
        return f"{kept} of {pool}"


def describe_data(groups: Dataset, options: MultiResponseOptions, seed: int) -> DataFacts:
    """Return what is known of training groups before their selection: source, sizes, hash and options."""
    sizes, origin = pool_sizes(groups), origin_of(groups)
    plain = {name: getattr(SelectionOptions, name) for name in names_of(SelectionOptions)}
    given = {name: getattr(options, name) for name in plain if name not in ("selector", "k", "score_cache")}
    changed = {name: public(value) for name, value in given.items() if value != plain[name]}
    if options.scorer is not None:
        changed["scorer"] = ", ".join(str(public(scorer_name(scorer))) for scorer in scorer_list(options.scorer))
    if options.redraw == "epoch":
        changed["redraw"] = "epoch"
    facts = DataFacts(
        content=content_sha256(groups),
        groups=len(sizes),
        responses=sum(sizes),
        least=min(sizes),
        median=float(median(sizes)),
        most=max(sizes),
        selector=str(public(options.selector)),
        k=options.k if reads(options, "k") else None,
        seed=seed,
        options=changed,
        curation=[],
    )
    return facts if origin is None else from_file(facts, origin)


def from_file(facts: DataFacts, origin: Origin) -> DataFacts:
    """Add the file that the groups were read from, and the selection that made it, if its manifest is beside it."""
    named = replace(facts, name=str(public(origin.path)), sha256=origin.sha256)
    return replace(named, before=_selected_before(origin))


def _selected_before(origin: Origin) -> SelectedBefore | None:
    """Return what the manifest beside a file says, if it describes this content of the file."""
    manifest = manifest_path(Path(origin.path).expanduser())
    if origin.sha256 is None or not manifest.is_file():
        return None
    try:
        header = read_manifest(manifest)[0]
    except ValueError:  # of another version, or no manifest
        return None
    if header["output"]["sha256"] != origin.sha256:
        return None
    made = header["selection"]
    return SelectedBefore(
        manifest=manifest.name,
        pools={str(public(pool["path"])): pool["sha256"] for pool in header["pools"]},
        selector=str(public(made["selector"])),
        k=made["k"],
        n=made["n"],
        seed=made["seed"],
        steps=list(map(Step.of, header["ledger"]["entries"])),
    )


def public(value: Any) -> Any:
    """Return an option as it can be published: a function by its name, an absolute path without its folders."""
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    if isinstance(value, str) and Path(value.split(":")[0]).expanduser().is_absolute():
        return Path(value).name
    return value


@dataclass(frozen=True)
class RunFacts:
    """A run: its loss, its layout with the reason, and its data; `data` is empty if the run does not know it."""

    objective: str
    loss_aggregation: str
    layout: str
    layout_reason: str
    backend: str
    held_out_groups: int | None
    data: tuple[DataFacts, ...] = ()

    def logged(self) -> dict[str, Any]:
        """Return the facts as trackers log them: one level, plain values, `mrt/` before each name.

        Of several datasets the values are joined in the order of the datasets. What is not known is left out.
        """
        found: dict[str, Any] = {
            "version": metadata.version("mrt-plugin"),
            "objective": self.objective,
            "loss_aggregation": self.loss_aggregation,
            "layout": self.layout,
            "layout_reason": self.layout_reason,
            "backend": self.backend,
            "held_out_groups": self.held_out_groups,
        }
        parts = {
            "data": "name",
            "data_sha256": "sha256",
            "pool_hash": "content",
            "pool_groups": "groups",
            "pool_responses": "responses",
            "n_least": "least",
            "n_median": "median",
            "n_most": "most",
            "selector": "selector",
            "k": "k",
            "k_of_n": "kept",
            "selection_seed": "seed",
            "groups": "trained_groups",
            "pairs": "pairs",
            "dropped_pairs": "dropped_pairs",
            "dropped_groups": "dropped_groups",
        }
        for name, attribute in parts.items():
            found[name] = joined(getattr(one, attribute) for one in self.data)
        found["curation_in_run"] = joined(_in_words(one.curation) for one in self.data)
        found["selected_before"] = joined(
            one.before
            and f"{one.before.selector}, k={one.before.k}, seed={one.before.seed}: {_in_words(one.before.steps)}"
            for one in self.data
        )
        return {f"mrt/{name}": value for name, value in found.items() if value is not None}


def joined(values: Iterable[Any]) -> Any:
    """Return the value that all have, or all of them in one text; None if none is known."""
    found: Sequence[Any] = list(values)
    if all(value is None for value in found):
        return None
    if all(value == found[0] for value in found):
        return found[0]
    return ", ".join("not known" if value is None else str(value) for value in found)


def _in_words(steps: list[Step] | None) -> str | None:
    if steps is None:
        return None
    if not steps:
        return "none"
    words = (
        f"{step.rule} {step.responses_in} responses of {step.groups_in} groups in, {step.responses_out} of "
        f"{step.groups_out} out"
        for step in steps
    )
    return "; ".join(words)


class LoggedArguments:
    """Adds the run's facts to what trackers log of a trainer's arguments. Put it before the class of the arguments.

    transformers' callbacks (TensorBoard, Weights & Biases, Trackio, MLflow and others) log `args.to_dict()` when
    training begins.
    """

    # Not annotated, so that it is no field of the dataclasses that inherit it.
    run_facts = None  # type: RunFacts | None

    def to_dict(self) -> dict[str, Any]:
        arguments: dict[str, Any] = super().to_dict()  # type: ignore[misc]
        return arguments | (self.run_facts.logged() if self.run_facts is not None else {})
