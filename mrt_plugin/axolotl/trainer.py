"""Axolotl's trainer for groups: its packing, its number of steps, and the rows that each step trains.

The plugin leaves the number of steps to Trainer, as Axolotl 0.19.0 ends runs on small data early. It packs by a
function of the seed and the epoch, as Axolotl's packing drops rows.
"""

import logging
import math
import shlex
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from axolotl.core.trainers import AxolotlTrainer
from axolotl.utils.samplers.multipack import allocate_sequentially, pack_parallel
from datasets import Dataset
from torch.utils.data import BatchSampler
from transformers import TrainerCallback, TrainerState

from mrt_plugin.axolotl.checks import check_lengths
from mrt_plugin.groups.overlap import refuse_overlap
from mrt_plugin.layout.beginnings import common_beginnings, shared_paths
from mrt_plugin.trainer.layout_choice import draw_batches
from mrt_plugin.trainer.mixin import MultiResponseTrainerMixin
from mrt_plugin.trainer.prefix_order import PrefixTree
from mrt_plugin.trainer.prepare import beginnings_of, is_prepared, row_tokens
from mrt_plugin.trainer.redraw import epoch_begun

logger = logging.getLogger(__name__)

SAMPLED = 1000
"""Rows from which the number of groups in a packed row is estimated."""

Bins = list[list[int]]
"""For each packed row, or bin: the indices of the rows in it."""


class EpochPacking(BatchSampler):
    """Packs all rows in every epoch, each into as many batches as the longest epoch needs: Trainer assumes that
    all epochs are equal."""

    def __init__(
        self,
        sizes: np.ndarray,
        cfg: Any,
        batch_size: int,
        epoch: Callable[[], int] = lambda: 0,
        families: tuple[np.ndarray, np.ndarray] | None = None,
        tree: PrefixTree | None = None,
    ) -> None:
        self._sizes = np.asarray(sizes, dtype=np.int32)
        none: np.ndarray = np.zeros_like(self._sizes)
        self._families, self._shared = families or (none, none)
        self._tree = tree
        self._cfg, self._epoch = cfg, epoch
        self.batch_size = None  # type: ignore[assignment]  # read by accelerate: batches differ in bins
        self.drop_last = False
        # The number of batches of the longest epoch, a multiple of the number of processes.
        self._length = epoch_number = 0
        processes, end = cfg.world_size, max(1, math.ceil(cfg.num_epochs))
        taken = (cfg.max_steps or 0) * cfg.gradient_accumulation_steps * processes
        while self._length * epoch_number < taken if taken else epoch_number < end:
            batches = math.ceil(len(self._pack(epoch_number)) / batch_size)
            self._length = max(self._length, math.ceil(batches / processes) * processes)
            epoch_number += 1

    def _pack(self, epoch: int) -> Bins:
        """Return the bins of an epoch. A bin has rows of one family, which pays for its common beginning once."""
        cfg, rng = self._cfg, np.random.default_rng([self._cfg.seed, epoch])
        if self._tree is not None:
            return self._tree.bins(self._sizes, check_lengths(cfg, cfg.mrt)[1], rng, self._spread)
        order = np.arange(len(self._sizes)) if cfg.curriculum_sampling else rng.permutation(len(self._sizes))
        if cfg.sample_packing_sequentially or cfg.curriculum_sampling:  # the order of the rows counts more
            return self._pack_family(order, 0)
        families = np.unique(self._families)
        bins: Bins = []
        for family in families:
            members = order[self._families[order] == family]
            bins += self._pack_family(members, int(self._shared[members[0]]))
        return bins if len(families) == 1 else [bins[place] for place in rng.permutation(len(bins))]

    def _pack_family(self, order: np.ndarray, shared: int) -> Bins:
        cfg, (_, capacity) = self._cfg, check_lengths(self._cfg, self._cfg.mrt)
        sizes, capacity = self._sizes[order] - np.int32(shared), capacity - shared
        if cfg.sample_packing_sequentially:
            bins, _, _ = allocate_sequentially(sizes, rank=0, bin_capacity=capacity, num_ranks=1)
        else:
            bins = self._spread(sizes, capacity)
        return [[int(order[place]) for place in chosen] for chosen in bins]

    def _spread(self, sizes: np.ndarray, capacity: int) -> Bins:
        cfg = self._cfg
        bins: Bins = pack_parallel(
            sizes,
            capacity,
            group_size=cfg.sample_packing_group_size,
            bin_size=cfg.sample_packing_bin_size,
            num_processes=min(4, cfg.dataset_num_proc or 1, math.ceil(len(sizes) / cfg.sample_packing_group_size)),
            mp_start_method=cfg.sample_packing_mp_start_method or "fork",
        )
        return bins

    def batches(self, epoch: int) -> list[Bins]:
        """Return the batches of an epoch, over all processes."""
        bins = self._pack(epoch)
        while len(bins) < self._length:
            fullest = max(range(len(bins)), key=lambda index: len(bins[index]))
            half = len(bins[fullest]) // 2
            bins[fullest : fullest + 1] = [bins[fullest][:half], bins[fullest][half:]]
        edges = [len(bins) * place // self._length for place in range(self._length + 1)]
        return [bins[begin:end] for begin, end in pairwise(edges)]

    def __iter__(self) -> Iterator[Bins]:  # type: ignore[override]
        return iter(self.batches(self._epoch()))

    def __len__(self) -> int:
        return self._length


def pack_epochs(
    dataset: Dataset,
    layout: str,
    cfg: Any,
    batch_size: int,
    epoch: Callable[[], int] = lambda: 0,
    tree: PrefixTree | None = None,
) -> EpochPacking:
    """Return the packing of prepared rows. A group that expands to more tokens than a row has fills a row.

    `tree` holds the rows by their common beginnings, if it is known already; it is used with `group_by_prefix`.
    """
    sizes, families = np.minimum(row_tokens(dataset, layout), check_lengths(cfg, cfg.mrt)[1]), None
    if layout != "shared_prefix":
        tree = None
    elif cfg.mrt["group_by_prefix"]:
        tree = tree or PrefixTree(shared_paths(beginnings_of(dataset)))
    else:
        families = common_beginnings(beginnings_of(dataset))
    return EpochPacking(sizes, cfg, batch_size, epoch, families, tree)


def foresee_steps(cfg: Any, dataset: Dataset, layout: str) -> int:
    """Return the number of optimizer steps that `axolotl train` takes on prepared rows."""
    if cfg.max_steps:
        return int(cfg.max_steps)
    if cfg.sample_packing:
        batches = len(pack_epochs(dataset, layout, cfg, cfg.micro_batch_size)) // cfg.world_size
    else:
        batches = math.ceil(len(dataset) / (cfg.micro_batch_size * cfg.world_size))
    return math.ceil(cfg.num_epochs * math.ceil(batches / cfg.gradient_accumulation_steps))


def foresee_batches(cfg: Any, dataset: Dataset) -> list[list[int]]:
    """Return the prepared rows of each packed row of the first epoch, or of each micro-batch."""
    if not cfg.sample_packing:
        tree = PrefixTree(shared_paths(beginnings_of(dataset))) if cfg.mrt["group_by_prefix"] else None
        return draw_batches(len(dataset), cfg.micro_batch_size, tree, in_order=bool(cfg.curriculum_sampling))
    batches = pack_epochs(dataset, "shared_prefix", cfg, cfg.micro_batch_size).batches(0)
    return [chosen for batch in batches for chosen in batch]


class Announcement(TrainerCallback):
    """Logs before the first step how much of the data the run trains."""

    def __init__(self, rows: int, packing: Callable[[], EpochPacking | None]) -> None:
        self._rows, self._packing = rows, packing

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        batches = len(kwargs["train_dataloader"])
        per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
        whole, rest = divmod(state.max_steps, per_epoch)
        part = rest * args.gradient_accumulation_steps
        epochs = whole + part / batches
        fewer = epochs < args.num_train_epochs
        packing, taken = self._packing(), part * args.world_size
        reached = min(self._rows, taken * args.per_device_train_batch_size)
        if packing is not None:  # fillers have larger indices
            rows = [index for batch in packing.batches(0)[:taken] for chosen in batch for index in chosen]
            reached = sum(index < self._rows for index in rows)
        never = 0 if whole else self._rows - reached
        logger.log(
            logging.WARNING if fewer else logging.INFO,
            f"This run trains {epochs:.4g} of {args.num_train_epochs:g} epochs, {never} of {self._rows} rows never: "
            f"{state.max_steps} steps, {per_epoch} in an epoch."
            f"{' Raise or remove max_steps to train the rest.' if fewer else ''}",
        )


class MultiResponseAxolotlTrainer(MultiResponseTrainerMixin, AxolotlTrainer):  # type: ignore[misc]
    """`AxolotlTrainer` for groups. Axolotl builds it when the plugin is loaded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        datasets: Any = (self.train_dataset, self.eval_dataset)
        for dataset in datasets:
            if dataset is None or (is_prepared(dataset) and not dataset.data.column("shared_lengths").null_count):
                continue
            raise ValueError(
                "A dataset of the recipe is tokenized already (column input_ids), so Axolotl did not hand it to the "
                "plugin. Give its text, with a dataset type of Axolotl or of this plugin."
            )
        refuse_overlap(self.train_dataset, self.eval_dataset)
        # The plugin provides both: the training arguments have its mixin, and the collators are of its class.
        options: Any = self.args
        collators: list[Any] = [self.data_collator, self.eval_data_collator]
        self.set_up_groups(options, collators)
        self._packing: EpochPacking | None = None
        rows: Any = self.train_dataset
        self.add_callback(Announcement(len(rows), lambda: self._packing))

    def how_it_ran(self) -> dict[str, Any]:
        cfg: Any = self.axolotl_cfg
        recipe = Path(cfg.axolotl_config_path).name if cfg.axolotl_config_path else "recipe.yaml"
        return {"command": f"axolotl train {shlex.quote(recipe)}", "tool": "axolotl"}

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        cfg: Any = self.axolotl_cfg
        if not cfg.sample_packing:
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        self._packing = pack_epochs(
            rows, self.layout, cfg, self._train_batch_size, lambda: epoch_begun(self.state), self._prefix_tree
        )
        return self._packing

    def trains_in_order(self) -> bool:
        arguments: Any = self.args
        return bool(arguments.curriculum_sampling) or super().trains_in_order()

    def groups_per_batch(self, rows: Any) -> int:
        arguments: Any = self.args
        if not arguments.sample_packing:
            return super().groups_per_batch(rows)
        sample = rows.select(range(0, len(rows), -(-len(rows) // SAMPLED)))
        shared = common_beginnings(beginnings_of(sample))[1]
        room = arguments.row_length - int(np.median(shared))
        mean = (row_tokens(sample, "shared_prefix") - shared).mean()
        return int(super().groups_per_batch(rows) * max(1, room // mean))
