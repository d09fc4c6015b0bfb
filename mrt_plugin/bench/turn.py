"""The arms of a benchmark, which are trainers as users build them, and one turn of an arm on the same pairs."""

import gc
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from mrt_plugin.attention.family import set_text_attention, text_attention
from mrt_plugin.bench.model import BenchModel
from mrt_plugin.bench.probes import PeakMemory, StepProfile
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import IGNORE, build_group_row
from mrt_plugin.options import RANKING, ObjectiveName
from mrt_plugin.trainer import MultiResponseSFTConfig, MultiResponseSFTTrainer

Probe = PeakMemory | StepProfile


@dataclass(frozen=True)
class Arm:
    """One way to train: TRL's own trainer on rows of one pair each, or ours, with options beside the common ones."""

    name: str
    trl: bool
    options: tuple[tuple[str, Any], ...]

    def sizes(self, pairs_per_group: int, groups: int) -> list[int]:
        """Return micro-batch sizes that divide a step, in pairs for TRL and in groups for ours.

        From the complete step down, each is the next divisor that is at most half as large.
        """
        sizes = [groups * pairs_per_group if self.trl else groups]
        while sizes[-1] > 1:
            sizes.append(next(size for size in range(sizes[-1] // 2, 0, -1) if sizes[0] % size == 0))
        return sizes[::-1]


@dataclass(frozen=True)
class Data:
    """The same groups, in the form that each trainer takes."""

    pairs: Dataset
    groups: Dataset
    """`GroupRow`s."""
    pairs_per_group: int
    groups_per_step: int
    tokens_per_group: int
    """Tokens of the longest group as complete pairs."""


def make_data(groups: Sequence[Sequence[Pair]], groups_per_step: int, objective: ObjectiveName = "nll") -> Data:
    """Return groups in both forms. For an objective that ranks, the first response of a group scores highest."""
    pairs = []
    for pair in chain.from_iterable(groups):
        labels = [token if trained else IGNORE for token, trained in zip(pair.input_ids, pair.trained, strict=True)]
        pairs.append({"input_ids": pair.input_ids, "labels": labels})
    rows = [dict(build_group_row(group)) for group in groups]
    if objective in RANKING:
        places = [[float(-place) for place in range(len(group))] for group in groups]
        rows = [dict(build_group_row(group, "prompt", scores=own)) for group, own in zip(groups, places, strict=True)]
    longest = max(sum(len(pair.input_ids) for pair in group) for group in groups)
    return Data(Dataset.from_list(pairs), Dataset.from_list(rows), len(groups[0]), groups_per_step, longest)


def all_arms(prefix_backends: Sequence[str], objective: ObjectiveName = "nll") -> list[Arm]:
    """Return TRL's modes, then ours. The packed arm is TRL's `padding_free`, which passes to the model what TRL's
    packing does. With another objective than the NLL, return ours only."""
    shared = [(backend, (("layout", "shared_prefix"), ("prefix_backend", backend))) for backend in prefix_backends]
    ours = [
        Arm("mrt expanded", False, (("layout", "expanded"),)),
        *(Arm(f"mrt shared {backend}", False, options) for backend, options in shared),
    ]
    if objective != "nll":
        own = (("objective", objective), *((("reference", "none"),) if objective == "plackett_luce" else ()))
        return [replace(arm, options=(*arm.options, *own)) for arm in ours]
    with warnings.catch_warnings():  # the names that the installed TRL uses
        warnings.simplefilter("ignore", FutureWarning)
        unused: dict[str, Any] = {"output_dir": "unused", "bf16": False, "use_cpu": True}
        configs = [SFTConfig(loss_type=name, **unused) for name in ("nll", "chunked_nll")]
    losses = list(dict.fromkeys(str(config.loss_type) for config in configs))
    return [
        *(Arm(f"trl {loss}", True, (("loss_type", loss),)) for loss in losses),
        Arm("trl packed", True, (("loss_type", losses[-1]), ("padding_free", True))),
        *ours,
    ]


@dataclass(frozen=True)
class Turn:
    seconds: list[float]
    """Of every optimizer step except the first."""
    loss: float
    """Mean over all steps, in nats per token."""
    gradient_norm: float


class _StepEnds(TrainerCallback):
    """Records when optimizer steps end, which counts loading and bookkeeping. A probe observes the second step."""

    def __init__(self, probe: Probe | None) -> None:
        self.ends, self.probe = list[float](), probe

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self.probe is not None and len(self.ends) == 1:
            self.probe.stop()
        self.ends.append(time.perf_counter())
        if self.probe is not None and len(self.ends) == 1:
            self.probe.start(kwargs["model"], kwargs["optimizer"])


def take_turn(arm: Arm, trained: BenchModel, data: Data, size: int, *, steps: int, probe: Probe | None = None) -> Turn:
    """Train `steps` steps with `size` pairs (TRL) or groups (ours) per micro-batch, and restore the model's weights.

    The first step is a warm-up.
    """
    ends = _StepEnds(probe)
    with _unchanged(trained.model), tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "output_dir": folder,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": trained.model.device.type == "cpu",
            "bf16": trained.bf16,
            "gradient_checkpointing": trained.gradient_checkpointing,
            "max_steps": steps,
            "logging_steps": steps,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": data.groups_per_step * (data.pairs_per_group if arm.trl else 1) // size,
            **dict(arm.options),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make: Any = SFTTrainer if arm.trl else MultiResponseSFTTrainer
            rows = data.pairs if arm.trl else data.groups
            if arm.trl:
                config = SFTConfig(**common, max_length=None)
            else:
                length = size * data.tokens_per_group  # a micro-batch is one row, in either layout
                common |= {"selector": "all", "prefix_check": False, "max_length": length, "row_length": length}
                config = MultiResponseSFTConfig(**common)
            trainer = make(trained.model, config, train_dataset=rows, processing_class=trained.tokenizer)
        trainer.add_callback(ends)
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
            log = next(entry for entry in trainer.state.log_history if "loss" in entry)
        finally:
            del trainer
    seconds = [after - before for before, after in pairwise(ends.ends)]
    return Turn(seconds, float(log["loss"]), float(log["grad_norm"]))


@contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """Silence the logs, and restore what trainers change in a model: weights, forward method, attention, caching,
    gradients."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().cpu().clone() for name, weight in trained.items()}
    causal_model = model.get_base_model() if hasattr(model, "peft_config") else model
    attention = text_attention(causal_model)
    use_cache = causal_model.config.use_cache
    methods = ("forward", "_original_forward")  # set by TRL's fused heads and by accelerate's autocast
    parts = (model, causal_model)
    attributes = [(part, {name: vars(part)[name] for name in methods if name in vars(part)}) for part in parts]
    try:
        yield
    finally:
        logging.disable(level)
        for part, kept in attributes:
            for name in methods:
                vars(part).pop(name, None)
            vars(part).update(kept)
        set_text_attention(causal_model, attention)
        causal_model.config.use_cache = use_cache
        with torch.no_grad():
            for name, weight in trained.items():
                weight.grad = None
                weight.copy_(before[name])
        gc.collect()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
