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
        _refuse_collisions(self)
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
            self.liger_kernel_config = {**_liger_options(self), **without}


def _liger_options(config: SFTConfig) -> dict[str, Any]:
    """Return the kernels that `liger_kernel_config` names: none if it is still unparsed command-line text."""
    given = config.liger_kernel_config
    return given if isinstance(given, dict) else {}


_ACCEPTED: list[tuple[str, tuple[Any, ...], str]] = [
    ("packing", (False,), "groups are packed by row_packing=True and row_length."),
    ("eval_packing", (None, False), "groups are packed by row_packing=True and row_length."),
    ("padding_free", (False,), "use row_packing=True, which packs groups into rows without leaks."),
    ("completion_only_loss", (None, True), "only responses are trained; a prompt is no response to anything."),
    ("assistant_only_loss", (False,), "leave it out. Every assistant turn of a response is trained, nothing else."),
    ("loss_type", (None, "nll", "chunked_nll"), "use loss_aggregation; the loss is the negative log-likelihood."),
    ("label_smoothing_factor", (0,), "the loss is the plain log-likelihood."),
    ("truncation_mode", ("keep_start",), "pairs over max_length are dropped, never cut."),
    ("dataset_kwargs", (None, {}), "groups are prepared here, and prepared ones are recognised by their columns."),
    (
        "dataset_text_field",
        ("text",),
        "groups have the columns prompt and responses; source='fields:prompt=...,responses=...' reads others.",
    ),
    ("dataloader_drop_last", (False,), "it would drop held-out groups, and eval_loss is over all held-out tokens."),
    (
        "ddp_static_graph",
        (None, False),
        "it gathers the gradients of the first step from the model's own output, and the loss is computed from the "
        "head's input, for trained tokens only.",
    ),
    ("batch_eval_metrics", (False,), "the logits that metrics need are never computed."),
]
"""Options of `SFTConfig`, the values accepted, and what to do instead of another value."""


def _refuse_collisions(config: SFTConfig) -> None:
    """Raise ValueError for the first option of `SFTConfig` that would be silently ignored."""
    refused = [(name, reason) for name, accepted, reason in _ACCEPTED if getattr(config, name) not in accepted]
    if config.train_sampling_strategy == "group_by_length":
        refused.append(("train_sampling_strategy", "packing makes even rows; use 'random' or 'sequential'."))
    if any(_liger_options(config).get(name) for name in ("cross_entropy", "fused_linear_cross_entropy")):
        reason = "cross_entropy and fused_linear_cross_entropy replace a loss that never runs here. Leave them out; "
        refused.append(("liger_kernel_config", reason + "rms_norm, rope, swiglu and geglu stay."))
    if refused:
        name, reason = refused[0]
        raise ValueError(f"MultiResponseSFTConfig does not take {name}={getattr(config, name)!r}: {reason}")
