"""Describe a complete selection job, from pool files to a file that is ready to train on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrt_plugin.options import Engine, SelectionOptions, option
from mrt_plugin.places import DATA_ENDINGS


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
    split: str = "train"
    """The split of a pool on the hub."""
    subset: str | None = None
    """The subset (configuration) of a pool on the hub."""

    @property
    def name(self) -> str:
        """Its name in `proportions`: the file's name without its ending, or the last part of a hub id."""
        path = Path(self.path)
        return path.stem if path.suffix.lower() in DATA_ENDINGS else path.name


@dataclass(kw_only=True)
class SelectJob(SelectionOptions):
    """The options of a selection, its inputs and its outputs. `mrt select` takes them by the same names.

    The result depends on neither `num_proc` nor `engine`.

    Example:

    ```python
    from pathlib import Path

    from mrt_plugin.pipeline import PoolFile, SelectJob

    job = SelectJob("best_k", k=2, pools=[PoolFile("pool.jsonl")], output=Path("chosen.jsonl"))
    ```
    """

    pools: Sequence[PoolFile]
    output: Path
    seed: int = option(0, "Another seed gives another choice.", ge=0)
    curation: Any = None
    """Rules, as for `mrt_plugin.curation.curate`."""
    tokenizer: Any = None
    """It counts tokens in rules and statistics."""
    held_out: float | None = option(
        None, "Share of prompts to hold out before any curation, by clusters of near-duplicates.", gt=0, lt=1
    )
    held_out_output: Path | None = option(
        None, "The file of the held-out prompts, with all their responses. Default: NAME.held_out.jsonl."
    )
    held_out_threshold: float = option(0.8, "Similarity from which prompts are near-duplicates.", gt=0, le=1)
    proportions: dict[str, float] | None = None
    """The shares of the pools in the result, by pool name."""
    total: int | None = option(None, "Groups of a mix. Default: as many as possible.", ge=1)
    max_repeats: int = option(4, "How often a mix may use a group.", ge=1)
    exports: dict[str, Path] = field(default_factory=dict)
    """Files for other trainers, by kind: `sft`, `dpo`, and `divpo`, whose pairs are from the complete pools."""
    decisions: Path | None = option(None, "JSONL file of all that curation dropped, changed or flagged.")
    stats: bool = option(False, "Show task types and lengths, before and after.")
    overwrite: bool = option(False, "Remove an earlier run's held-out file and exports that are not written again.")
    also_read: Sequence[str | Path] = ()
    """Other input files, such as a file of rules. They are never overwritten."""
    num_proc: int | None = option(None, "Processes; the result does not depend on it.", ge=1)
    engine: Engine = option("local", "local, or ray (needs mrt-plugin[ray]): the same result.")

    @property
    def held_out_path(self) -> Path | None:
        """The file of the held-out groups, or None if there are none."""
        if self.held_out is None:
            return None
        return self.held_out_output or self.output.with_suffix(f".held_out{self.output.suffix}")
