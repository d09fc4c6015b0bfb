"""The Axolotl plugin that a recipe loads."""

import logging
import os
from typing import Any

import torch
from axolotl.integrations.base import BasePlugin
from axolotl.logging_config import AxolotlOrWarnErrorFilter, ColorfulFormatter
from transformers import set_seed

from mrt_plugin.axolotl.args import options_of, parse_block
from mrt_plugin.axolotl.checks import check_lengths, refuse_options
from mrt_plugin.axolotl.entries import mark_entries
from mrt_plugin.axolotl.fingerprint import recipe_fingerprint
from mrt_plugin.layout.collator import GroupedResponseCollator
from mrt_plugin.trainer.mixin import MultiResponseTrainerMixin
from mrt_plugin.versions import libraries

logger = logging.getLogger(__name__)


class MultiResponsePlugin(BasePlugin):  # type: ignore[misc]
    """Multi-response training in Axolotl.

    Example:

    ```yaml
    plugins:
      - mrt_plugin.axolotl.MultiResponsePlugin
    datasets:
      - path: data/pool.jsonl
        type: mrt_plugin.axolotl.random_k
    mrt:
      k: 4
    ```
    """

    def register(self, cfg: Any) -> None:
        """Check the recipe and prepare its dataset entries. An error raised here reaches the user at once.

        Raises:
            ValueError: naming the option and what to do.
        """
        show_messages()
        for library in libraries():
            if library.name == "axolotl" and not library.in_range:
                logger.warning("Axolotl %s is not tested with this plugin, %s is.", library.found, library.supported)
        block = parse_block(cfg.get("mrt"))
        refuse_options(cfg)
        check_lengths(cfg, block)
        if cfg.get("seed") is None:
            cfg["seed"] = 42  # Axolotl's own default, which it sets only after this
        held_out = cfg.get("test_datasets")  # as the user wrote them
        mark_entries(cfg, block, recipe_fingerprint(cfg, block))
        self.held_out = held_out[0]["path"] if held_out else None
        cfg["mrt"] = block
        if cfg.get("sample_packing"):
            # Axolotl drops the last incomplete batch of a packed dataset. If these are unset, it does so for held-out
            # data too.
            cfg["eval_sample_packing"] = False
            cfg["dataloader_drop_last"] = False

        if cfg.get("merge_lora") and cfg.get("adapter") == "qlora" and cfg.get("merge_method") is None:
            cfg["merge_method"] = "legacy"
            logger.info(
                "merge_method: legacy, into the model's linear layers as they were in 4 bit. Axolotl's default, "
                "memory_efficient, rounds the embeddings and the output head to 4 bit too; set it if memory is short."
            )
        if cfg.get("inference") and not cfg.get("chat_template") and block["prompt_format"] != "plain":
            logger.warning(
                "`axolotl inference` hands your text to the model as it is. Set chat_template: tokenizer_default to "
                "format it as in training."
            )

    def pre_model_load(self, cfg: Any) -> None:
        """Draw the adapter's initial weights from the recipe's seed. Axolotl sets the seed only after them."""
        give_kernels_to_new_models(cfg)
        set_seed(cfg.seed)

    def post_model_build(self, cfg: Any, model: Any) -> None:
        """Give the model the weights that a QLoRA adapter was trained on, before the adapter is merged."""
        if cfg.merge_lora and cfg.adapter == "qlora":
            layers = round_to_4bit(model, cfg.bnb_config_kwargs)
            logger.info("%d linear layers have their 4-bit values.", layers)

    def get_input_args(self) -> str:
        """Return the path of the schema of `mrt:`."""
        return "mrt_plugin.axolotl.args.MultiResponseArgs"

    def get_training_args_mixin(self) -> str:
        """Return the path of the options class, which adds fields to the training arguments."""
        return "mrt_plugin.options.MultiResponseOptions"

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Return the values of these fields. Trainer computes the number of steps and of warm-up steps."""
        _, row_length = check_lengths(cfg, cfg.mrt)
        options = options_of(cfg.mrt, row_length=row_length)
        steps = {"max_steps": cfg.max_steps or -1}
        if cfg.warmup_steps is None and cfg.warmup_ratio is not None and cfg.warmup_ratio < 1:
            steps["warmup_steps"] = cfg.warmup_ratio
        return {**vars(options), **steps}

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple[type, dict[str, Any]]:
        """Return the collator's class and arguments. The trainer sets the layout later."""
        _, row_length = check_lengths(cfg, cfg.mrt)
        return GroupedResponseCollator, {"row_length": row_length, "packing": cfg.mrt.row_packing}

    def get_trainer_cls(self, cfg: Any) -> type:
        """Return Axolotl's trainer with `MultiResponseTrainerMixin`."""
        from mrt_plugin.axolotl.trainer import MultiResponseAxolotlTrainer

        show_messages()
        return MultiResponseAxolotlTrainer

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Check that no other plugin replaced the trainer."""
        if not isinstance(trainer, MultiResponseTrainerMixin):
            raise ValueError(
                f"{type(trainer).__name__} is another plugin's trainer: list mrt_plugin.axolotl.MultiResponsePlugin "
                "first, or remove the other plugin."
            )

    def post_train_unload(self, cfg: Any) -> None:
        """Log how to evaluate the model."""
        trained = f"{cfg.base_model}+{cfg.output_dir}" if cfg.adapter else cfg.output_dir
        logger.info(
            "Next: mrt evaluate --model %s --model %s%s --data %s --report evaluation.html",
            cfg.base_model,
            trained,
            " --load-in-4bit" if cfg.load_in_4bit else "",
            self.held_out or "HELD_OUT.jsonl (prompts not trained on: mrt select --held-out sets some aside)",
        )


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
    """Let a new model of the recipe's family run after Axolotl has installed its LoRA kernels.

    The kernels rewrite an attention class to call `apply_qkv` and `apply_o`. Axolotl gives these methods only to the
    layers of the loaded model. The proof builds a small model of the same class, and its layers get the plain
    projections here.
    """
    if not (cfg.lora_qkv_kernel or cfg.lora_o_kernel):
        return
    from axolotl.monkeypatch import lora_kernels

    attention: Any = lora_kernels.get_attention_cls_from_config(cfg)
    attention.apply_qkv = lora_kernels.original_apply_qkv_optional_v
    attention.apply_o = lora_kernels.original_apply_o


def round_to_4bit(model: torch.nn.Module, bnb_config_kwargs: dict[str, Any] | None = None) -> int:
    """Round the weights that QLoRA quantizes to their 4-bit values, in place, and return the number of layers.

    QLoRA quantizes every linear layer except the output head, and no embedding. Axolotl's own merging (0.19.0,
    `merge_method: memory_efficient`) also rounds the head and the embeddings, and without double quantization. The
    merged model then differs from the one that was trained. Merging into weights that were not rounded at all also
    gives a different model.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    chosen = bnb_config_kwargs or {}
    skipped = set(chosen.get("llm_int8_skip_modules") or [])
    head = model.get_output_embeddings()  # type: ignore[operator]
    rounded = 0
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or module is head or skipped & set(name.split(".")):
            continue
        quantized, state = quantize_4bit(
            module.weight.data,
            quant_type=chosen.get("bnb_4bit_quant_type", "nf4"),
            compress_statistics=chosen.get("bnb_4bit_use_double_quant", True),
        )
        module.weight.data = dequantize_4bit(quantized, state).to(module.weight.dtype)
        rounded += 1
    return rounded
