"""The TRL configuration of a multi-response run."""

import logging
from dataclasses import dataclass
from typing import Any

from trl import SFTConfig

from mrt_plugin.options import MultiResponseOptions, check_options, unused_options
from mrt_plugin.selection import get_selector

logger = logging.getLogger(__name__)


@dataclass
class MultiResponseSFTConfig(MultiResponseOptions, SFTConfig):
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
        refuse_collisions(self)
        if self.row_length is None:
            self.row_length = self.max_length
        if self.row_length is not None and (self.max_length is None or self.row_length < self.max_length):
            raise ValueError(
                f"row_length={self.row_length} is below max_length={self.max_length}: a row must take at least one "
                "prompt with one response. Raise row_length or lower max_length."
            )
        # TRL's chunked loss patches the model's forward. Ours is computed in chunks anyway and needs no labels.
        self.loss_type = "nll"
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.use_liger_kernel:
            # Liger's fused loss is on by default and replaces the model's forward. Its layer kernels stay on.
            without = {"cross_entropy": False, "fused_linear_cross_entropy": False}
            self.liger_kernel_config = {**liger_options(self), **without}


def liger_options(config: SFTConfig) -> dict[str, Any]:
    """Return the kernels that `liger_kernel_config` names: none if it is still unparsed command-line text."""
    given = config.liger_kernel_config
    return given if isinstance(given, dict) else {}


def refuse_collisions(config: SFTConfig) -> None:
    """Refuse options of `SFTConfig` that would be silently ignored.

    Raises:
        ValueError: naming the first such option and what to do.
    """
    refused: list[tuple[bool, str]] = [
        (config.packing, "packing=True: groups are packed by row_packing=True and row_length."),
        (bool(config.eval_packing), "eval_packing=True: groups are packed by row_packing=True and row_length."),
        (config.padding_free, "padding_free=True: use row_packing=True, which packs groups into rows without leaks."),
        (
            config.completion_only_loss is False,
            "completion_only_loss=False: only responses are trained on, since a prompt is not a response to anything.",
        ),
        (
            config.assistant_only_loss,
            "assistant_only_loss=True: leave it out. Every assistant turn of a response is trained, and nothing else.",
        ),
        (
            config.loss_type not in (None, "nll", "chunked_nll"),
            f"loss_type={config.loss_type!r}: use loss_aggregation; the loss is the negative log-likelihood.",
        ),
        (config.label_smoothing_factor != 0, "label_smoothing_factor: the loss is the plain log-likelihood."),
        (config.truncation_mode != "keep_start", "truncation_mode: pairs over max_length are dropped, never cut."),
        (
            config.train_sampling_strategy == "group_by_length",
            "train_sampling_strategy='group_by_length': packing makes even rows; use 'random' or 'sequential'.",
        ),
        (
            bool(config.dataset_kwargs),
            f"dataset_kwargs={config.dataset_kwargs!r}: groups are prepared here, and prepared ones are recognised by "
            "their columns.",
        ),
        (
            config.dataset_text_field != "text",
            f"dataset_text_field={config.dataset_text_field!r}: groups have the columns prompt and responses; "
            "source='fields:prompt=...,responses=...' reads others.",
        ),
        (
            config.dataloader_drop_last,
            "dataloader_drop_last=True: it would drop held-out groups, and eval_loss is over all held-out tokens.",
        ),
        (
            bool(config.ddp_static_graph),
            "ddp_static_graph=True: it gathers the gradients of the first step from the model's own output, and the "
            "loss is computed from the head's input, trained tokens alone.",
        ),
        (
            any(liger_options(config).get(name) for name in ("cross_entropy", "fused_linear_cross_entropy")),
            f"liger_kernel_config={config.liger_kernel_config!r}: cross_entropy and fused_linear_cross_entropy "
            "replace a loss that never runs here. Leave them out; rms_norm, rope, swiglu and geglu stay.",
        ),
        (config.batch_eval_metrics, "batch_eval_metrics=True: the logits that metrics would need never exist."),
    ]
    for is_set, reason in refused:
        if is_set:
            raise ValueError(f"MultiResponseSFTConfig does not take {reason}")
