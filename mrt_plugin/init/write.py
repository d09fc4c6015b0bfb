"""Write the chosen values as an Axolotl recipe or as a TRL script, with a comment on each."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from mrt_plugin.init.choose import Card, Choice, Value

ENDINGS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
WIDTH = 40
"""Column of the comments in a recipe."""


@dataclass(frozen=True)
class Request:
    """What the user said."""

    model: str
    data: str
    source: str | None
    card: Card
    output: Path

    @property
    def run(self) -> str:
        """Return the folder of the run: named as the recipe."""
        return f"outputs/{self.output.stem}"


def axolotl_recipe(asked: Request, chosen: Choice) -> str:
    """Return the recipe in YAML."""
    on_cpu, recipe = asked.card.is_cpu, shlex.quote(str(asked.output))
    launch = " --launcher python" if on_cpu else ""
    lines = [
        f"# {asked.model} on several responses per prompt, {asked.card.name}.",
        "#",
        f"#   mrt doctor {recipe}",
        f"#   axolotl train {recipe}{launch}",
        f"#   axolotl merge-lora {recipe}",
        "#",
        f"# Memory: {chosen.memory}.",
        "",
        f"base_model: {_quoted(asked.model)}",
        "",
        "plugins:",
        "  - mrt_plugin.axolotl.MultiResponsePlugin",
        "datasets:",
        f"  - path: {_quoted(asked.data)}",
    ]
    if ending := ENDINGS.get(Path(asked.data).suffix.lower()):
        lines.append(f"    ds_type: {ending}")
    lines += [
        _line(f"    type: mrt_plugin.axolotl.{chosen.selector.value}", chosen.selector),
        "mrt:",
        _line(f"  k: {chosen.k.value}", chosen.k),
        _line(f"  max_length: {chosen.max_length.value}", chosen.max_length),
    ]
    if asked.source is not None:
        lines.append(f"  source: {_quoted(asked.source)}")
    lines += [
        "",
        _line(f"sequence_len: {chosen.row_length.value}", chosen.row_length),
        _line("chat_template: tokenizer_default", Value("", "the model's own")),
        _line(f"val_set_size: {chosen.held_out.value}", chosen.held_out),
        "dataset_prepared_path: last_run_prepared",
        f"output_dir: {asked.run}",
        "",
        _line(f"adapter: {'qlora' if chosen.load_in_4bit.value else 'lora'}", chosen.load_in_4bit),
        f"load_in_4bit: {_yaml(chosen.load_in_4bit.value)}",
        _line(f"lora_r: {chosen.lora_r.value}", chosen.lora_r),
        _line(f"lora_alpha: {2 * int(chosen.lora_r.value)}", Value("", "scales the adapter by alpha / r = 2")),
        "lora_dropout: 0.05",
        _line("lora_target_linear: true", Value("", "adapters on attention alone learn less")),
        "",
        _line(f"micro_batch_size: {chosen.micro_batch.value}", chosen.micro_batch),
        _line(f"gradient_accumulation_steps: {chosen.accumulation.value}", chosen.accumulation),
        _line(f"num_epochs: {chosen.epochs.value}", chosen.epochs),
        _line(f"learning_rate: {float(chosen.learning_rate.value):.4f}", chosen.learning_rate),
        "lr_scheduler: cosine",
        "warmup_ratio: 0.03",
        "optimizer: adamw_torch",
        "",
        _line(f"bf16: {'false' if on_cpu else 'auto'}", Value("", "16-bit arithmetic where the card has it")),
        _line(f"gradient_checkpointing: {_yaml(chosen.gradient_checkpointing.value)}", chosen.gradient_checkpointing),
    ]
    if chosen.gradient_checkpointing.value:
        lines += ["gradient_checkpointing_kwargs:", "  use_reentrant: false"]
    lines += ["attn_implementation: sdpa"]
    if on_cpu:
        lines += ["fp16: false", "tf32: false", "", "# Kernels of GPUs:"]
        lines += [f"{name}: false" for name in ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")]
    if chosen.held_out.value:
        lines += ["", _line("evals_per_epoch: 2", Value("", "held-out NLL while it trains"))]
    lines += ["saves_per_epoch: 1", "logging_steps: 1", _line("seed: 42", Value("", "also draws the responses"))]
    return "\n".join(lines) + "\n"


def trl_script(asked: Request, chosen: Choice) -> str:
    """Return a Python script with the same values."""
    on_cpu, four = asked.card.is_cpu, bool(chosen.load_in_4bit.value)
    rank = int(chosen.lora_r.value)
    data, model = json.dumps(asked.data), json.dumps(asked.model)
    source = f", source={json.dumps(asked.source)}" if asked.source else ""
    quantized = """        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        ),
"""
    dtype = "float32" if on_cpu else "bfloat16"
    checkpointing = [
        f"gradient_checkpointing={chosen.gradient_checkpointing.value},  # {chosen.gradient_checkpointing.reason}"
    ]
    if chosen.gradient_checkpointing.value:
        checkpointing.append('gradient_checkpointing_kwargs={"use_reentrant": False},')
    settings = [
        f'output_dir="{asked.run}",',
        f'selector="{chosen.selector.value}",  # {chosen.selector.reason}',
        f"k={chosen.k.value},  # {chosen.k.reason}",
        f"max_length={chosen.max_length.value},  # {chosen.max_length.reason}",
        f"row_length={chosen.row_length.value},  # {chosen.row_length.reason}",
        f"per_device_train_batch_size={chosen.micro_batch.value},  # {chosen.micro_batch.reason}",
        f"per_device_eval_batch_size={chosen.micro_batch.value},",
        f"gradient_accumulation_steps={chosen.accumulation.value},  # {chosen.accumulation.reason}",
        f"num_train_epochs={chosen.epochs.value},  # {chosen.epochs.reason}",
        f"learning_rate={chosen.learning_rate.value},  # {chosen.learning_rate.reason}",
        'lr_scheduler_type="cosine",',
        "warmup_steps=0.03,  # below 1: a share of all steps",
        *checkpointing,
        f"bf16={not on_cpu},",
        *(["use_cpu=True,"] if on_cpu else []),
        'eval_strategy="epoch" if len(test) else "no",',
        'save_strategy="epoch",',
        "logging_steps=1,",
        'report_to="none",',
        "seed=42,  # also draws the responses",
        f'model_init_kwargs={{"dtype": torch.{dtype}}},',
    ]
    loading = ["--load-in-4bit"] if four else []
    models = ["--model", asked.model, "--model", f"{asked.model}+{asked.run}", *loading]
    evaluation = "Next: " + shlex.join(["mrt", "evaluate", *models, "--data", f"{asked.run}/held_out.jsonl"])
    return f'''"""{asked.model} on several responses per prompt, {asked.card.name}: python {asked.output}

Memory: {chosen.memory}.
"""

from pathlib import Path

import torch
from peft import LoraConfig
{"from transformers import BitsAndBytesConfig" + chr(10) if four else ""}
from mrt_plugin import MultiResponseSFTConfig, MultiResponseSFTTrainer, load_groups
from mrt_plugin.groups import held_out
from mrt_plugin.groups.write import write_groups


def main() -> None:
    groups = load_groups({data}{source})
    # {chosen.held_out.reason}
    sides = [held_out(prompt, {chosen.held_out.value}, 42) for prompt in groups["prompt"]]
    train = groups.select([place for place, side in enumerate(sides) if not side])
    test = groups.select([place for place, side in enumerate(sides) if side])
    args = MultiResponseSFTConfig(
{"".join(f"        {line}{chr(10)}" for line in settings)}    )
    trainer = MultiResponseSFTTrainer(
        model={model},
        args=args,
        train_dataset=train,
        eval_dataset=test if len(test) else None,
        # {chosen.lora_r.reason}
        peft_config=LoraConfig(r={rank}, lora_alpha={2 * rank}, lora_dropout=0.05, target_modules="all-linear"),
{quantized if four else ""}    )
    trainer.train()
    trainer.save_model()
    if len(test):
        write_groups(test, Path(args.output_dir, "held_out.jsonl"))
        print({json.dumps(evaluation)})


if __name__ == "__main__":
    main()
'''


def _line(text: str, value: Value) -> str:
    return f"{text:<{WIDTH}} # {value.reason}" if value.reason else text


def _yaml(value: object) -> str:
    return str(value).lower()


def _quoted(text: str) -> str:
    """Return a YAML scalar: quoted if it would not be read as this text."""
    return str(yaml.safe_dump(text, default_style=None, width=10_000)).removesuffix("\n").removesuffix("\n...")
