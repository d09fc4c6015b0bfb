"""Multi-response training with TRL's `SFTTrainer`: its configuration and the trainer."""

import logging
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import set_seed
from transformers.trainer_utils import PredictionOutput
from trl import SFTConfig, SFTTrainer

from mrt_plugin.encoding import prepare_tokenizer
from mrt_plugin.groups import load_groups
from mrt_plugin.groups.overlap import refuse_overlap
from mrt_plugin.layout.collator import GroupedResponseCollator
from mrt_plugin.options import MultiResponseOptions, check_options, unused_options
from mrt_plugin.selection import get_selector
from mrt_plugin.trainer.card import simple
from mrt_plugin.trainer.mixin import MultiResponseTrainerMixin
from mrt_plugin.trainer.prepare import PrepareReport, is_prepared, prepare_groups
from mrt_plugin.trainer.run_facts import LoggedArguments, public

logger = logging.getLogger(__name__)

ACCEPTED: list[tuple[str, tuple[Any, ...], str]] = [
    ("packing", (False,), "groups are packed by row_packing=True and row_length."),
    ("eval_packing", (None, False), "groups are packed by row_packing=True and row_length."),
    ("padding_free", (False,), "use row_packing=True, which packs groups into rows without leaks."),
    ("completion_only_loss", (None, True), "only responses are trained; a prompt is no response to anything."),
    ("assistant_only_loss", (False,), "leave it out. Every assistant turn of a response is trained, nothing else."),
    ("loss_type", (None, "nll", "chunked_nll"), "use objective, which has dft, and loss_aggregation."),
    ("label_smoothing_factor", (0,), "the loss is the plain log-likelihood."),
    ("truncation_mode", ("keep_start",), "pairs over max_length are dropped, never cut."),
    ("dataset_kwargs", (None, {}), "groups are prepared here, and prepared ones are recognised by their columns."),
    ("dataset_text_field", ("text",), "source='fields:prompt=...,responses=...' reads columns of other names."),
    ("dataloader_drop_last", (False,), "it would drop held-out groups, and eval_loss is over all held-out tokens."),
    ("ddp_static_graph", (None, False), "the loss is computed from the head's input, not from the model's output."),
    ("batch_eval_metrics", (False,), "the logits that metrics need are never computed."),
]
"""Options of `SFTConfig`, the values accepted, and what to do instead of another value."""

REFUSED_ARGUMENTS = {
    "data_collator": "the collator is built from the options layout, row_length and row_packing.",
    "formatting_func": "groups are formatted by the tokenizer's chat template; format the data before.",
    "compute_loss_func": "choose objective and loss_aggregation instead.",
    "compute_metrics": "the logits that metrics would need never exist; eval_loss and token accuracy are logged.",
    "preprocess_logits_for_metrics": "the logits of a complete row never exist.",
}


def refused_options(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the options with a value that is not accepted, and what to do instead. TRL drops options in minor
    releases, so one that the installed release does not have is not looked at."""
    return [(name, reason) for name, accepted, reason in ACCEPTED if name in values and values[name] not in accepted]


@dataclass
class MultiResponseSFTConfig(LoggedArguments, MultiResponseOptions, SFTConfig):
    """`trl.SFTConfig` with the options of `mrt_plugin.options.MultiResponseOptions`.

    Batch sizes count groups. `max_length` limits one prompt with one response. A longer pair is dropped, counted and
    reported. It is never cut, because a cut response teaches the model to stop mid-sentence. Options of `SFTConfig`
    that a grouped trainer does not support raise an error that names them.

    Raises:
        ValueError: naming the option and what to do.

    Example:

    ```python
    from mrt_plugin import MultiResponseSFTConfig

    args = MultiResponseSFTConfig(
        output_dir="out", selector="random_k", k=4, max_length=2048, row_length=8192, per_device_train_batch_size=2
    )
    ```
    """

    def __post_init__(self) -> None:
        check_options(self)
        get_selector(self.selector)
        for message in unused_options(self).values():
            logger.warning(message)
        given = self.liger_kernel_config
        kernels: dict[str, Any] = given if isinstance(given, dict) else {}  # still text if it is from a command line
        without = dict.fromkeys(("cross_entropy", "fused_linear_cross_entropy"), False)
        refused = refused_options(vars(self))
        if self.train_sampling_strategy == "group_by_length":
            refused.append(("train_sampling_strategy", "packing makes even rows; use 'random' or 'sequential'."))
        if any(map(kernels.get, without)):
            reason = f"{' and '.join(without)} replace a loss that never runs here. Leave them out; the others stay."
            refused.append(("liger_kernel_config", reason))
        for name, reason in refused:
            raise ValueError(f"MultiResponseSFTConfig does not take {name}={getattr(self, name)!r}: {reason}")
        if self.row_length is None:
            self.row_length = self.max_length
        if self.row_length is not None and (self.max_length is None or self.row_length < self.max_length):
            raise ValueError(
                f"row_length={self.row_length} is below max_length={self.max_length}: a row must take at least one "
                "pair. Raise row_length or lower max_length."
            )
        # TRL's chunked loss patches the model's forward. Ours is computed in chunks anyway and needs no labels.
        self.loss_type = "nll"
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.use_liger_kernel:
            # Liger's fused loss is on by default and replaces the model's forward. Its layer kernels stay on.
            self.liger_kernel_config = {**kernels, **without}


NOT_PUBLISHED = re.compile(
    "output_dir|logging_dir|run_name|project|report_to|disable_tqdm|resume_from_checkpoint|score_cache|local_rank|"
    "log_level.*|hub_.*|push_to_hub.*|trackio_.*|deepspeed|fsdp.*|accelerator_config|ddp_.*|.*token|"
    "debug|do_eval|loss_type|dataloader_pin_memory"  # derived from others
)
"""Arguments of the machine, the place and the account of a run, which a model card leaves out."""


def changed_settings(args: Any) -> dict[str, Any]:
    """Return the arguments that differ from their defaults and can be published, as they would be written."""
    found, values = {}, args.to_dict()
    for item in fields(args):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        default = default.value if isinstance(default, Enum) else default
        value = public(values[item.name])
        if value != default and simple(value) and not NOT_PUBLISHED.fullmatch(item.name):
            found[item.name] = value
    return found


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
        for name, reason in REFUSED_ARGUMENTS.items():
            if kwargs.get(name) is not None:
                raise ValueError(f"MultiResponseSFTTrainer does not take {name}: {reason}")
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
        set_seed(args.seed)  # TRL draws an adapter's first weights before transformers' trainer sets the seed
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self._train_groups = None
        self.data_collator = GroupedResponseCollator(
            self._tokenizer,
            row_length=args.row_length,
            packing=args.row_packing,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )
        self.set_up_groups(args, [self.data_collator])
        prepared = self.prepare_reports.get("train")  # missing if the rows were prepared before
        self.know_data([prepared.data] if prepared is not None and prepared.data is not None else [])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `SFTTrainer` does, and the model card, which TRL writes with checkpoints and pushes alone."""
        super().save_model(output_dir, _internal_call)
        folder, pushed = Path(self.args.output_dir or "."), self.args.push_to_hub and not _internal_call
        if not _internal_call and not pushed and (output_dir is None or Path(output_dir) == folder):
            self.create_model_card(model_name=folder.resolve().name)

    def how_it_ran(self) -> dict[str, Any]:
        return {**super().how_it_ran(), "settings": changed_settings(self.args)}

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Compute the loss on groups, as `evaluate` takes them. There are no predictions."""
        prepared = self._prepare_dataset(test_dataset, self.processing_class, self.args, False, None, "test")
        return super().predict(prepared, *args, **kwargs)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Dataset:
        dataset = self._checked(dataset, args)
        if is_prepared(dataset):
            return dataset
        training = dataset is self._train_groups
        if not training and dataset_name != "eval":
            dataset_name = f"eval_{dataset_name}"
        prepare_tokenizer(self._tokenizer)
        with args.main_process_first(desc=f"preparing the {dataset_name} groups"):
            prepared, self.prepare_reports[dataset_name] = prepare_groups(
                dataset,
                self._tokenizer,
                args,
                max_length=args.max_length,
                seed=args.seed if args.data_seed is None else args.data_seed,
                num_proc=args.dataset_num_proc,
                description=dataset_name,
                held_out=not training,
            )
        return prepared.shuffle(seed=args.seed) if training and args.shuffle_dataset else prepared

    def _checked(self, dataset: Any, args: MultiResponseSFTConfig) -> Dataset:
        """Return prepared rows and groups seen before unchanged, and anything else as validated groups."""
        source = args.source
        if isinstance(dataset, Dataset):
            if is_prepared(dataset) or dataset._fingerprint in self._known:
                return dataset
            if {"id", "prompt", "responses"} <= set(dataset.column_names):
                source = None
        groups = load_groups(dataset, source=source)
        self._known.add(groups._fingerprint)
        return groups
