"""Groups, configurations and models for tests that train with the TRL trainer."""

from types import SimpleNamespace

import torch
from datasets import Dataset
from transformers import LlamaForCausalLM, TrainerCallback

from helpers import tiny
from mrt_plugin import MultiResponseSFTConfig, MultiResponseSFTTrainer

FRUITS = ["apple", "pear", "plum", "cherry", "small brown dog", "calm sea tonight", "bright moon over the water"]


def make_groups(count: int = 8, responses: int = 3, weights: bool = False, first: int = 0) -> Dataset:
    """Groups whose prompts and responses have mixed lengths; another `first` gives other prompts."""
    rows = []
    for index in range(first, first + count):
        prompt = "Name a fruit that grows on trees. " * (1 + index % 3) + f"Number {index}:"
        pool = [
            f" {FRUITS[(index + j) % 7]} and {' and '.join(FRUITS[: j + 1 + index % 2])}" for j in range(responses)
        ]
        row = {"id": str(index), "prompt": prompt, "responses": pool}
        if weights:
            row["weights"] = [0.5 + j for j in range(responses)]
        rows.append(row)
    return Dataset.from_list(rows)


class GradientTap(TrainerCallback):
    """Keeps the gradient of every optimizer step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(
            torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]).double()
        )


def trl_settings(tmp_path) -> dict:
    """What `SFTConfig` and ours share."""
    return {
        "output_dir": str(tmp_path / "out"),
        "report_to": "none",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_grad_norm": 0.0,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "max_length": 512,
        "disable_tqdm": True,
    }


def config(tmp_path, **overrides) -> MultiResponseSFTConfig:
    ours = {"selector": "all", "train_sampling_strategy": "sequential", "prefix_check": False}
    return MultiResponseSFTConfig(**trl_settings(tmp_path) | ours | overrides)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def one_step(tmp_path, groups, **overrides):
    """Loss and gradient of one optimizer step over all groups."""
    tap = GradientTap()
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(tmp_path, max_steps=1, **overrides),
        train_dataset=groups,
        processing_class=tiny.tokenizer(),
        callbacks=[tap],
    )
    trainer.train()
    return SimpleNamespace(loss=losses(trainer)[0], gradient=tap.gradients[0], trainer=trainer)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


SHORT = Dataset.from_list(
    [
        {"id": str(index), "prompt": f"Number {index}:", "responses": [f" {index} apple", f" {index} pear"]}
        for index in range(8)
    ]
)
"""Groups that a tiny model learns in some dozen steps, ends included."""


class IgnoresTheMask(LlamaForCausalLM):
    """A model that ignores the row plan: its attention sees the complete row."""

    def forward(self, *args, row_plan=None, **kwargs):
        return super().forward(*args, **kwargs)


class Fails(LlamaForCausalLM):
    """Takes the plain forward only."""

    def forward(self, *args, row_plan=None, **kwargs):
        if row_plan is not None:
            raise RuntimeError("no kernel for this shape")
        return super().forward(*args, **kwargs)


class ReadsPadding(LlamaForCausalLM):
    """Computes something else where its batch is padded."""

    inexact = ("sdpa", "eager")

    def forward(self, input_ids, attention_mask=None, **kwargs):
        padded = attention_mask is not None and attention_mask.ndim == 2 and not attention_mask.all()
        if padded and self.config._attn_implementation in self.inexact:
            input_ids = input_ids.roll(1, 1)
        return super().forward(input_ids, attention_mask=attention_mask, **kwargs)
