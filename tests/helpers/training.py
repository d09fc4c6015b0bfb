"""Groups, configurations and models for tests that train with the TRL trainer."""

from itertools import product
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


def make_nested_groups(documents: int = 2, questions: int = 3) -> Dataset:
    """Questions about documents under one system text. Responses have equal first words; some continue another."""
    system = {"role": "system", "content": "You answer questions about the notes, in few words, and never guess."}
    rows = []
    for document, question in product(range(documents), range(questions)):
        notes = f"Notes {document}: " + " ".join(f"the {fruit} costs {document + len(fruit)}." for fruit in FRUITS)
        ask = f"What does the {FRUITS[question]} cost?"
        answer = f"The {FRUITS[question]} costs {document + len(FRUITS[question])}"
        rows.append(
            {
                "id": f"{document} {question}",
                "prompt": [system, {"role": "user", "content": f"{notes} {ask}"}],
                "responses": [answer, f"{answer} coins", f"{answer} coins, as the notes say", f"It costs {question}"],
                "weights": [0.5, 1.0, 2.0, 3.0],
            }
        )
    return Dataset.from_list(rows)


def one_pair_at_a_time(
    groups: Dataset, aggregation: str = "token", model: torch.nn.Module | None = None
) -> tuple[float, torch.Tensor]:
    """Loss and gradient by the sums of the design: a plain forward for each pair, of `tiny.llama` by default."""
    model, tokenizer = (tiny.llama() if model is None else model).train(), tiny.tokenizer()
    total, units = torch.zeros(()), 0.0
    for row in groups:
        prompt = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        start = tokenizer(head, add_special_tokens=False)["input_ids"]
        lengths, sums = [], []
        for response in row["responses"]:
            ids = start + tokenizer(f"{response}<|im_end|>", add_special_tokens=False)["input_ids"]
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            trained = range(len(start), len(ids))
            lengths.append(len(trained))
            sums.append(-torch.stack([log_probs[t - 1, ids[t]] for t in trained]).sum())
        weights = row["weights"]
        mean_length = sum(lengths) / len(lengths)
        for weight, length, nll in zip(weights, lengths, sums, strict=True):
            if aggregation == "token":
                total, units = total + weight * nll, units + weight * length
            elif aggregation == "prompt":
                total, units = total + weight * nll / (mean_length * sum(weights)), units + weight / sum(weights)
            else:
                total, units = total + weight * nll / length, units + weight
    (total / units).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return float(total.detach() / units), torch.cat(gradients).double()


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


def one_step(tmp_path, groups, model=None, **overrides):
    """Loss and gradient of one optimizer step over all groups, of `tiny.llama` by default."""
    tap = GradientTap()
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama() if model is None else model,
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


class MovesPositions(LlamaForCausalLM):
    """Computes shared rows without an error, at other positions."""

    def forward(self, *args, position_ids=None, row_plan=None, **kwargs):
        if row_plan is not None:
            position_ids, kwargs["row_plan"] = position_ids * 3, row_plan
        return super().forward(*args, position_ids=position_ids, **kwargs)


class Fails(LlamaForCausalLM):
    """Takes the plain forward only."""

    def forward(self, *args, row_plan=None, **kwargs):
        if row_plan is not None:
            raise RuntimeError("no kernel for this shape")
        return super().forward(*args, **kwargs)


class FailsInside(LlamaForCausalLM):
    """Takes the plain forward only, and fails in its last layer."""

    def forward(self, *args, row_plan=None, **kwargs):
        if row_plan is None:
            return super().forward(*args, **kwargs)
        hook = self.model.layers[-1].mlp.register_forward_pre_hook(self.fail)
        try:
            return super().forward(*args, row_plan=row_plan, **kwargs)
        finally:
            hook.remove()

    def fail(self, module, args):
        raise RuntimeError("no memory for this shape")


class ReadsPadding(LlamaForCausalLM):
    """Computes something else where its batch is padded."""

    inexact = ("sdpa", "eager")

    def forward(self, input_ids, attention_mask=None, **kwargs):
        padded = attention_mask is not None and attention_mask.ndim == 2 and not attention_mask.all()
        if padded and self.config._attn_implementation in self.inexact:
            input_ids = input_ids.roll(1, 1)
        return super().forward(input_ids, attention_mask=attention_mask, **kwargs)
