"""A small recipe for the tests of the Axolotl plugin: groups in a file, a tiny Llama, everything for the CPU."""

import copy
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from packaging.version import Version

PLUGIN = "mrt_plugin.axolotl.MultiResponsePlugin"


def loads_installed_plugins() -> bool:
    """Return whether Axolotl loads this plugin in every run, named in the recipe or not."""
    return Version(metadata.version("axolotl")) >= Version("0.21")


WORDS = "apple pear plum cherry sea moon river dog red green blue calm bright water light story".split()


def groups(count: int = 20, responses: int = 5) -> list[dict[str, Any]]:
    """Prompts and responses of mixed lengths; the scores rise along the pool."""
    rows = []
    for index in range(count):
        words = [WORDS[(index + step * 3) % len(WORDS)] for step in range(8 + index % 5)]
        rows.append(
            {
                "prompt": f"Write sentence {index} about {' '.join(words)}",
                "responses": [
                    f"Number {place}: the {' '.join(words[place : place + 2 + place % 3])}."
                    for place in range(responses)
                ],
                "scores": [place / responses for place in range(responses)],
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(folder: Path, model: str, **changes: Any) -> dict[str, Any]:
    """A QLoRA recipe on `folder/pool.jsonl`, which is written if it is not there. None removes a key."""
    pool = folder / "pool.jsonl"
    if not pool.exists():
        write_rows(pool, groups())
    settings: dict[str, Any] = {
        "base_model": model,
        "plugins": [PLUGIN],
        "datasets": [{"path": str(pool), "ds_type": "json", "type": "mrt_plugin.axolotl.random_k"}],
        "mrt": {"k": 3},
        "dataset_prepared_path": str(folder / "prepared"),
        "output_dir": str(folder / "out"),
        "sequence_len": 256,
        "load_in_4bit": True,
        "adapter": "qlora",
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_target_linear": True,
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_epochs": 1,
        "learning_rate": 0.01,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "attn_implementation": "sdpa",
        "pad_to_multiple_of": 8,
        "logging_steps": 1,
        "seed": 7,
    }
    settings |= copy.deepcopy(changes)
    return {key: value for key, value in settings.items() if value is not None}


def write(folder: Path, settings: dict[str, Any], name: str = "recipe.yaml") -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return str(path)
