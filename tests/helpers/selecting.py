"""Files, jobs and reward models for tests that select."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaForSequenceClassification

from helpers import tiny
from mrt_plugin.pipeline import PoolFile, SelectJob

BEST = {"selector": "diverse_best_k", "k": 3, "alpha": 0.75, "seed": 7}


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def job(pools: Path | list[Path], output: Path, selection: dict | None = None, **more: Any) -> SelectJob:
    files = [PoolFile(str(path)) for path in (pools if isinstance(pools, list) else [pools])]
    return SelectJob(pools=files, output=output, **{**(selection or BEST), **more})


def reward_dir(directory: Path, *, chat: bool = True, labels: int = 1, seed: int = 0) -> str:
    """A tiny seeded reward model: a Llama that reads a chat, or a BERT that reads a pair of texts."""
    tokenizer = tiny.tokenizer(directory, chat_template=tiny.CHATML if chat else None)
    torch.manual_seed(seed)
    if chat:
        config = tiny.llama(tokenizer, hidden=32).config
        config.num_labels = labels
        model: Any = LlamaForSequenceClassification(config)
    else:
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=1024,
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=64,
                num_labels=labels,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    model.save_pretrained(directory)
    return str(directory)
