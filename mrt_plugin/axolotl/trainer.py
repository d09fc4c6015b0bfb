"""Axolotl's trainer for groups."""

from typing import Any

from axolotl.core.trainers import AxolotlTrainer
from datasets import Dataset

from mrt_plugin.axolotl.steps import Announcement, EpochPacking, row_sizes
from mrt_plugin.groups.overlap import refuse_overlap
from mrt_plugin.trainer.mixin import MultiResponseTrainerMixin
from mrt_plugin.trainer.prepare import is_prepared
from mrt_plugin.trainer.redraw import epoch_begun


class MultiResponseAxolotlTrainer(MultiResponseTrainerMixin, AxolotlTrainer):  # type: ignore[misc]
    """`AxolotlTrainer` for groups. Axolotl builds it when the plugin is loaded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for dataset in (self.train_dataset, self.eval_dataset):
            if dataset is not None:
                _check_rows(dataset)
        refuse_overlap(self.train_dataset, self.eval_dataset)
        # The plugin provides both: the training arguments have its mixin, and the collators are of its class.
        options: Any = self.args
        collators: list[Any] = [self.data_collator, self.eval_data_collator]
        self.set_up_groups(options, collators)
        self._packing: EpochPacking | None = None
        rows: Any = self.train_dataset
        self.add_callback(Announcement(len(rows), lambda: self._packing))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Return a sampler that packs every row in every epoch, if `sample_packing` is set.

        Axolotl's own sampler does not guarantee this.
        """
        cfg: Any = self.axolotl_cfg
        if not cfg.sample_packing:
            return super()._get_train_sampler(train_dataset)
        sizes = row_sizes(self.train_dataset if train_dataset is None else train_dataset, self.layout, cfg)
        self._packing = EpochPacking(sizes, cfg, self._train_batch_size, epoch=lambda: epoch_begun(self.state))
        return self._packing


def _check_rows(dataset: Dataset) -> None:
    """Check that the rows were prepared by the plugin.

    Raises:
        ValueError: if a dataset of the run was tokenized before Axolotl read it.
    """
    if is_prepared(dataset) and not dataset.data.column("prefix_length").null_count:
        return
    raise ValueError(
        "A dataset of the recipe is tokenized already (columns input_ids, attention_mask, labels), so Axolotl did not "
        "hand it to the plugin. Give its text, with a dataset type of Axolotl or of this plugin."
    )
