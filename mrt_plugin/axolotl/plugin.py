"""The Axolotl plugin that a recipe loads."""

import logging
import os
import shlex
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from axolotl.logging_config import AxolotlOrWarnErrorFilter, ColorfulFormatter
from transformers import set_seed

from mrt_plugin.axolotl.args import options_of, parse_block
from mrt_plugin.axolotl.checks import check_lengths, refuse_options
from mrt_plugin.axolotl.dataset_types import PREFIX
from mrt_plugin.axolotl.entries import Mark, mark_entries
from mrt_plugin.axolotl.fingerprint import recipe_fingerprint
from mrt_plugin.axolotl.strategy import held_out_file
from mrt_plugin.layout.collator import GroupedResponseCollator
from mrt_plugin.mistakes import show_mistakes_plainly
from mrt_plugin.trainer.mixin import MultiResponseTrainerMixin

logger = logging.getLogger(__name__)


def is_wanted(cfg: Any) -> bool:
    """Return whether a recipe uses this plugin. Axolotl 0.21 loads every installed plugin in every run.

    It does if it names the plugin, has an `mrt:` block, or a dataset of a type `mrt_plugin.axolotl.<selector>`.
    """
    named = any(str(name).endswith(MultiResponsePlugin.__name__) for name in cfg.get("plugins") or [])
    entries = [*(cfg.get("datasets") or []), *(cfg.get("test_datasets") or [])]
    return named or cfg.get("mrt") is not None or any(str(e.get("type")).startswith(PREFIX) for e in entries)


def _if_wanted(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Make a hook do nothing in a run whose recipe does not use the plugin."""

    @wraps(hook)
    def guarded(self: "MultiResponsePlugin", *args: Any, **kwargs: Any) -> Any:
        return hook(self, *args, **kwargs) if self.wanted else None

    return guarded


class MultiResponsePlugin(BasePlugin):  # type: ignore[misc]
    """Multi-response training in Axolotl."""

    wanted = False

    def register(self, cfg: Any) -> None:
        """Check the recipe and prepare its dataset entries. An error raised here reaches the user at once."""
        self.wanted = is_wanted(cfg)
        if not self.wanted:
            return
        show_mistakes_plainly()
        show_messages()
        block = parse_block(cfg.get("mrt"))
        refuse_options(cfg)
        check_lengths(cfg, block)
        if cfg.get("seed") is None:
            cfg["seed"] = 42  # Axolotl's own default, which it sets only after this
        held_out = cfg.get("test_datasets")  # as the user wrote them
        mark_entries(cfg, block, recipe_fingerprint(cfg, block))
        self.held_out = held_out[0]["path"] if held_out else None
        cfg["mrt"] = block
        if cfg.get("sample_packing"):  # Axolotl then drops the last incomplete batch, of held-out data too
            cfg["eval_sample_packing"] = cfg["dataloader_drop_last"] = False
        if cfg.get("merge_lora") and cfg.get("adapter") == "qlora" and cfg.get("merge_method") is None:
            cfg["merge_method"] = "legacy"
            logger.info(
                "merge_method: legacy. Axolotl's default, memory_efficient, rounds embeddings and output head to 4 "
                "bit too; set it if memory is short."
            )
        if cfg.get("inference") and not cfg.get("chat_template") and block["prompt_format"] != "plain":
            logger.warning(
                "`axolotl inference` does not format your text as training does: set chat_template: tokenizer_default."
            )

    @_if_wanted
    def pre_model_load(self, cfg: Any) -> None:
        """Draw the adapter's initial weights from the recipe's seed. Axolotl sets the seed only after them."""
        give_kernels_to_new_models(cfg)
        set_seed(cfg.seed)

    @_if_wanted
    def post_model_build(self, cfg: Any, model: Any) -> None:
        """Give the model the 4-bit values that a QLoRA adapter was trained on, before the adapter is merged. Axolotl
        (0.19.0, `memory_efficient`) also rounds the head and the embeddings, and quantizes constants once."""
        if not (cfg.merge_lora and cfg.adapter == "qlora"):
            return
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        chosen = cfg.bnb_config_kwargs or {}
        kind, double = chosen.get("bnb_4bit_quant_type", "nf4"), chosen.get("bnb_4bit_use_double_quant", True)
        skipped, rounded = set(chosen.get("llm_int8_skip_modules") or []), 0
        for name, module in model.named_modules():
            head = module is model.get_output_embeddings()
            if isinstance(module, torch.nn.Linear) and not head and not skipped & set(name.split(".")):
                quantized, state = quantize_4bit(module.weight.data, quant_type=kind, compress_statistics=double)
                module.weight.data = dequantize_4bit(quantized, state).to(module.weight.dtype)
                rounded += 1
        logger.info("%d linear layers have their 4-bit values.", rounded)

    def get_input_args(self) -> str:
        return "mrt_plugin.axolotl.args.MultiResponseArgs"

    @_if_wanted
    def get_training_args_mixin(self) -> str:
        return "mrt_plugin.axolotl.facts.MultiResponseTrainingArguments"

    @_if_wanted
    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Return the values of the options. Trainer computes the number of steps and of warm-up steps."""
        options = options_of(cfg.mrt, row_length=check_lengths(cfg, cfg.mrt)[1])
        steps = {"max_steps": cfg.max_steps or -1}
        if cfg.warmup_steps is None and cfg.warmup_ratio is not None and cfg.warmup_ratio < 1:
            steps["warmup_steps"] = cfg.warmup_ratio
        return {**vars(options), **steps}

    @_if_wanted
    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple[type, dict[str, Any]]:
        row_length = check_lengths(cfg, cfg.mrt)[1]
        return GroupedResponseCollator, {"row_length": row_length, "packing": cfg.mrt.row_packing}

    @_if_wanted
    def get_trainer_cls(self, cfg: Any) -> type:
        from mrt_plugin.axolotl.trainer import MultiResponseAxolotlTrainer

        show_messages()
        return MultiResponseAxolotlTrainer

    @_if_wanted
    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        if not isinstance(trainer, MultiResponseTrainerMixin):
            name = type(trainer).__name__
            raise ValueError(
                f"{name} is another plugin's trainer: list MultiResponsePlugin first, or remove the other."
            )
        from mrt_plugin.axolotl.facts import read_facts

        trainer.know_data(read_facts(cfg))

    @_if_wanted
    def post_train_unload(self, cfg: Any) -> None:
        marks = [(entry, Mark.of(entry)) for entry in cfg.test_datasets or []]
        files = [held_out_file(cfg, entry["path"], mark) for entry, mark in marks if mark and mark.part == "held_out"]
        held_out = self.held_out or next((str(file) for file in files if file.is_file()), None)
        if held_out is None:
            logger.info(
                "Nothing was held out, so the run cannot be evaluated on prompts that it was not trained on: set "
                "val_set_size: 0.05 in the next one. Next: %s",
                shlex.join(["mrt", "card", cfg.output_dir]),
            )
            return
        trained = f"{cfg.base_model}+{cfg.output_dir}" if cfg.adapter else cfg.output_dir
        line = ["mrt", "evaluate", "--model", cfg.base_model, "--model", trained]
        line += ["--load-in-4bit"] if cfg.load_in_4bit else []
        line += ["--data", held_out]
        if find_spec("matplotlib") is not None:  # which the pictures of a report need
            line += ["--report", "evaluation.html"]
        logger.info("Next: %s", shlex.join(line))


class _Console(logging.Handler):
    """Prints messages below WARNING. Axolotl prints the others, and below WARNING only those of its own loggers."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            print(self.format(record), flush=True)


def show_messages() -> None:
    """Print the INFO messages of `mrt_plugin`, on the main process. Call it again for modules loaded since."""
    ours = logging.getLogger("mrt_plugin")
    if not ours.handlers and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        handler = _Console()
        handler.setFormatter(ColorfulFormatter("[%(asctime)s] [%(levelname)s] [%(name)s] %(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if name.startswith("mrt_plugin") and isinstance(logger, logging.Logger):
            for item in list(logger.filters):  # Axolotl's logger class adds one to every logger
                if isinstance(item, AxolotlOrWarnErrorFilter):
                    logger.removeFilter(item)


def give_kernels_to_new_models(cfg: Any) -> None:
    """Give the small model of the proof plain projections where Axolotl's LoRA kernels rewrite an attention class
    to call methods that only layers of the loaded model have."""
    if cfg.lora_qkv_kernel or cfg.lora_o_kernel:
        from axolotl.monkeypatch import lora_kernels

        attention: Any = lora_kernels.get_attention_cls_from_config(cfg)
        attention.apply_qkv = lora_kernels.original_apply_qkv_optional_v
        attention.apply_o = lora_kernels.original_apply_o
