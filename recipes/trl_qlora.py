"""QLoRA on several responses per prompt with TRL: what the YAML recipes do, in Python.

    python recipes/trl_qlora.py --model meta-llama/Llama-3.2-1B-Instruct --data data/pool.jsonl

The data has one prompt per line with its pool of responses: {"prompt": "...", "responses": ["...", "..."]}. The values
are those of `recipes/llama-3.2-1b-qlora-8gb.yaml`; its comments say why. Runs on CPU too, slowly.
"""

import argparse

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from mrt_plugin import MultiResponseSFTConfig, MultiResponseSFTTrainer, load_groups
from mrt_plugin.groups import held_out

SEED = 42


def main() -> None:
    arguments = parse_arguments()
    groups = load_groups(arguments.data)
    train, test = split_by_prompt(groups, share=0.05)

    on_gpu = torch.cuda.is_available()
    bf16 = on_gpu and torch.cuda.is_bf16_supported()
    dtype = torch.bfloat16 if bf16 else torch.float16 if on_gpu else torch.float32
    args = MultiResponseSFTConfig(
        output_dir=arguments.output,
        selector=arguments.selector,
        k=arguments.k,
        layout="auto",
        loss_aggregation="token",
        max_length=2048,  # a prompt with one response; longer pairs are dropped and counted
        row_length=4096,  # the prompt once, then its responses; what memory grows with
        # A step is 8 prompts x k responses. When k changes, either keep the pairs of a step by changing
        # gradient_accumulation_steps, or raise the learning rate by at most sqrt(new k / old k).
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=8,
        num_train_epochs=arguments.epochs,
        max_steps=arguments.max_steps,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,  # below 1: a share of all steps
        weight_decay=0.01,
        bf16=bf16,
        fp16=on_gpu and not bf16,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="epoch" if len(test) else "no",
        save_strategy="epoch",
        logging_steps=1,
        report_to="none",
        seed=SEED,
        model_init_kwargs={"dtype": dtype},
    )
    trainer = MultiResponseSFTTrainer(
        model=arguments.model,
        args=args,
        train_dataset=train,
        eval_dataset=test if len(test) else None,
        peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear"),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    )
    trainer.train()
    trainer.save_model()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="meta-llama/Llama-3.2-1B-Instruct", help="a hub id or a path")
    parser.add_argument("--data", required=True, help="a file, a hub id or a saved dataset of groups")
    parser.add_argument("--output", default="outputs/trl-qlora")
    parser.add_argument("--selector", default="random_k")
    parser.add_argument("--k", type=int, default=4, help="responses kept per prompt")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="2e-4 suits LoRA on a pretrained model")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--max-steps", type=int, default=-1, help="stop earlier, to try things out")
    return parser.parse_args()


def split_by_prompt(groups: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Training and held-out groups. The side depends on the prompt alone, so none is on both."""
    sides = [held_out(prompt, share, SEED) for prompt in groups["prompt"]]
    return (
        groups.select([index for index, side in enumerate(sides) if not side]),
        groups.select([index for index, side in enumerate(sides) if side]),
    )


if __name__ == "__main__":
    main()
