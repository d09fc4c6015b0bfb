"""Multi-response training with TRL's `SFTTrainer`."""

from typing import Any

from datasets import Dataset, DatasetDict
from transformers.trainer_utils import PredictionOutput
from trl import SFTTrainer

from mrt_plugin.encoding import prepare_tokenizer
from mrt_plugin.groups import load_groups
from mrt_plugin.groups.overlap import refuse_overlap
from mrt_plugin.layout.collator import GroupedResponseCollator
from mrt_plugin.trainer.config import MultiResponseSFTConfig
from mrt_plugin.trainer.mixin import MultiResponseTrainerMixin
from mrt_plugin.trainer.prepare import PrepareReport, is_prepared, prepare_groups


class MultiResponseSFTTrainer(MultiResponseTrainerMixin, SFTTrainer):
    """`trl.SFTTrainer` for groups: K of N responses per prompt, the prompt computed once.

    Takes what `SFTTrainer` takes. Selection applies to the training data only. In evaluation groups every response is
    scored, and `eval_loss` is the mean NLL over all their tokens.

    Args:
        model: a path, a hub id, a model or a PeftModel.
        args: the configuration; batch sizes count groups.
        train_dataset: groups (`mrt_plugin.load_groups`): columns `prompt`, `responses`, and optionally `scores`,
            `weights`, `id`.
        eval_dataset: groups, or a dict of them. Their prompts must not be in the training data.
        kwargs: `processing_class`, `peft_config`, `quantization_config`, `callbacks`, `optimizers` and the rest.

    Raises:
        DataError: if the data is not groups. It is raised before the model is loaded.
        ValueError: for arguments that a grouped trainer does not support and held-out prompts that are trained on.
            Also if `layout="shared_prefix"` cannot be proved exact for the model.

    Example:

    ```python
    from peft import LoraConfig
    from mrt_plugin import MultiResponseSFTConfig, MultiResponseSFTTrainer, load_groups

    trainer = MultiResponseSFTTrainer(
        model="path/or/name",
        args=MultiResponseSFTConfig(output_dir="out", selector="random_k", k=4),
        train_dataset=load_groups("pool.jsonl"),
        peft_config=LoraConfig(),
    )
    trainer.train()
    ```
    """

    def __init__(
        self,
        model: Any,
        args: MultiResponseSFTConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | DatasetDict | dict[str, Dataset] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = MultiResponseSFTConfig()
        if not isinstance(args, MultiResponseSFTConfig):
            raise TypeError(f"args must be a MultiResponseSFTConfig, not {type(args).__name__}: it has k and layout.")
        _refuse_arguments(kwargs)
        if train_dataset is None:
            raise ValueError("train_dataset is required: groups, as mrt_plugin.load_groups returns them.")
        self.prepare_reports: dict[str, PrepareReport] = {}
        self._known: set[str] = set()
        train_dataset = self._checked(train_dataset, args)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: self._checked(dataset, args) for name, dataset in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._checked(eval_dataset, args)
        refuse_overlap(train_dataset, eval_dataset)
        self._train_groups: Dataset | None = train_dataset
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self._train_groups = None
        self.data_collator = GroupedResponseCollator(
            self._tokenizer,
            row_length=args.row_length,
            packing=args.row_packing,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )
        self.set_up_groups(args, [self.data_collator])

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Compute the loss on groups, as `evaluate` takes them. There are no predictions."""
        prepared = self._prepare_dataset(test_dataset, self.processing_class, self.args, False, None, "test")
        return super().predict(prepared, *args, **kwargs)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Dataset:
        """Select, encode and lay out groups. A prepared dataset is returned unchanged."""
        dataset = self._checked(dataset, args)
        if is_prepared(dataset):
            return dataset
        training = dataset is self._train_groups
        if not training and dataset_name != "eval":
            dataset_name = f"eval_{dataset_name}"
        prepare_tokenizer(self._tokenizer)
        with args.main_process_first(desc=f"preparing the {dataset_name} groups"):
            prepared, report = prepare_groups(
                dataset,
                self._tokenizer,
                args,
                max_length=args.max_length,
                seed=args.seed if args.data_seed is None else args.data_seed,
                num_proc=args.dataset_num_proc,
                description=dataset_name,
                held_out=not training,
            )
        self.prepare_reports[dataset_name] = report
        if training and args.shuffle_dataset:
            prepared = prepared.shuffle(seed=args.seed)
        return prepared

    def _checked(self, dataset: Any, args: MultiResponseSFTConfig) -> Dataset:
        """Return prepared rows and groups seen before unchanged, and anything else as validated groups.

        `args.source` is the format of data that is not groups yet.
        """
        source = args.source
        if isinstance(dataset, Dataset):
            if is_prepared(dataset) or dataset._fingerprint in self._known:
                return dataset
            if {"id", "prompt", "responses"} <= set(dataset.column_names):
                source = None
        groups = load_groups(dataset, source=source)
        self._known.add(groups._fingerprint)
        return groups


def _refuse_arguments(kwargs: dict[str, Any]) -> None:
    reasons = {
        "data_collator": "the collator is built from the options layout, row_length and row_packing.",
        "formatting_func": "groups are formatted by the tokenizer's chat template; format the data before.",
        "compute_loss_func": "choose loss_aggregation instead.",
        "compute_metrics": "the logits that metrics would need never exist; eval_loss and token accuracy are logged.",
        "preprocess_logits_for_metrics": "the logits of a complete row never exist.",
    }
    for name, reason in reasons.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"MultiResponseSFTTrainer does not take {name}: {reason}")
