"""Refuse recipe options that a grouped run does not support. Each message names the option and what to do instead."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from axolotl.integrations.base import load_plugin
from axolotl.utils.schemas.config import AxolotlInputConfig
from pydantic import BaseModel

from mrt_plugin.axolotl.args import MrtBlock, listed
from mrt_plugin.places import check_model

_PACKS = "Groups are packed by sample_packing, or by mrt.row_packing without it."
_OWN_LOSS = "It replaces a loss that never runs: it is computed in chunks, from trained tokens alone. Remove it."
_OWN_TRAINER = "It brings its own trainer. Remove it, or this plugin."
_DISTILLS = "Distillation brings its own trainer. Remove it, or this plugin."
_ONE_PER_ROW = "It reads one example per row. Use `axolotl inference` after training."
_WHOLE_GROUPS = "It would split a row, and a group must stay complete. Use DDP, FSDP or DeepSpeed ZeRO."

_IF_SET = {
    "rl": "This plugin is for supervised fine-tuning. Remove `rl:` (mrt.objective ranks responses), or this plugin.",
    **dict.fromkeys(("reward_model", "process_reward_model"), "This plugin trains language models."),
    "pretraining_dataset": "Groups are chosen from complete pools; use `datasets:`.",
    "streaming": "Groups are chosen from complete pools; use `datasets:` without streaming.",
    "skip_prepare_dataset": "Groups have to be prepared. Remove it.",
    "train_on_inputs": "Only responses are trained on: a prompt shared by K responses would count K times. Remove it.",
    "eval_sequence_len": "Held-out groups obey sequence_len and mrt.max_length. Remove it.",
    "batch_flattening": _PACKS,
    "use_pose": "Position ids are those of a prompt with one response. Remove it.",
    "group_by_length": "Packing makes rows even. Remove it.",
    **dict.fromkeys(("chunked_cross_entropy", "flash_attn_cross_entropy", "cut_cross_entropy"), _OWN_LOSS),
    **dict.fromkeys(("use_eaft", "orpo_alpha", "liger_cross_entropy", "liger_use_token_scaling"), _OWN_LOSS),
    "liger_fused_linear_cross_entropy": _OWN_LOSS + " liger_rms_norm, liger_glu_activation and liger_rope stay.",
    "scaling_softmax": "It changes transformers' flex_attention, which shared rows do not go through. Remove it.",
    "min_sample_len": "It would count the tokens of a complete group. Remove it; mrt.curation filters responses.",
    "eval_sample_packing": "It drops the last incomplete batch, and eval_loss is over all held-out tokens. Remove it.",
    "dataloader_drop_last": "It drops held-out groups, and eval_loss is over all held-out tokens. Remove it.",
    "kd_trainer": _DISTILLS,
    "trainer_cls": "This plugin brings its own trainer. Remove it.",
    "processor_type": "Groups are text. Remove it.",
    "do_bench_eval": "It needs the logits of complete rows, which never exist. Evaluate after training.",
    "do_causal_lm_eval": "It reads one example per row. Evaluate after training.",
    **dict.fromkeys(("eval_table_size", "generate_samples"), _ONE_PER_ROW),
}
"""Keys of the recipe that are refused if they are set and true, with what to do instead."""

_IF_ABOVE_ONE = {
    "expert_parallel_size": "Experts' gradients are then not of all processes. Remove it.",
    **dict.fromkeys(("context_parallel_size", "sequence_parallel_degree", "tensor_parallel_size"), _WHOLE_GROUPS),
}

REFUSED: list[tuple[str, Callable[[Any], bool], str]] = [
    *((key, bool, remedy) for key, remedy in _IF_SET.items()),
    *((key, lambda value: isinstance(value, int) and value > 1, remedy) for key, remedy in _IF_ABOVE_ONE.items()),
    (
        "excess_length_strategy",
        lambda value: str(value).lower() == "truncate",
        "A response cut short teaches the model to stop mid-sentence. Use `drop` (which counts the pairs) or `raise`.",
    ),
    ("multipack_real_batches", lambda value: value is not None, "Rows are rebuilt by the collator. Remove it."),
    (
        "accelerator_config",
        lambda value: isinstance(value, dict) and bool(value.get("dispatch_batches")),
        "It cuts a batch into equal rows, and groups have rows of their own lengths. Remove dispatch_batches.",
    ),
    (
        "fsdp_version",
        lambda value: str(value) == "1",
        "It frees the output head before it is applied to the trained tokens. Set fsdp_version: 2.",
    ),
]
"""A key of the recipe, a test for the values that are refused, and what to do instead."""

REFUSED_PLUGINS = {
    "CutCrossEntropyPlugin": _OWN_LOSS,
    "KDPlugin": _DISTILLS,
    **dict.fromkeys(("DiffusionPlugin", "HatcheryPlugin"), _OWN_TRAINER),
    "NemoGymPlugin": "It is for reinforcement learning. Remove it, or this plugin.",
}


def refuse_options(cfg: Any) -> None:
    found = [
        f"{key}: {cfg.get(key)!r} cannot be combined with mrt_plugin.axolotl.MultiResponsePlugin. {remedy}"
        for key, refused, remedy in REFUSED
        if cfg.get(key) is not None and refused(cfg.get(key))
    ]
    for plugin in cfg.get("plugins") or []:
        remedy = REFUSED_PLUGINS.get(str(plugin).rsplit(".", 1)[-1])
        if remedy:
            found.append(f"plugins: {plugin} cannot be combined with this plugin. {remedy}")
    found += [*_slips(cfg), *output_slips(cfg)]
    if found:
        raise ValueError(listed("Options of the recipe that grouped training cannot honour:", found))


def schemas(plugins: Iterable[Any]) -> list[type[BaseModel]]:
    """Return the schemas of Axolotl and of the plugins that load, which together define the keys of a recipe."""
    found: list[type[BaseModel]] = [AxolotlInputConfig]
    for name in plugins:
        try:
            path = load_plugin(str(name)).get_input_args()
        except (ImportError, AttributeError, ValueError):
            continue
        if path:
            module, _, attribute = path.rpartition(".")
            found.append(getattr(import_module(module), attribute))
    return found


def fields_of(models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """Return the types of all fields, by name and by alias."""
    items = [pair for model in models for pair in model.model_fields.items()]
    return {key: item.annotation for name, item in items for key in (name, item.alias) if key is not None}


def _slips(cfg: Any) -> Iterator[str]:
    """Yield misplaced options (Axolotl drops them), contradictions, and what is missing, before anything loads."""
    known = fields_of(schemas(cfg.get("plugins") or []))
    for key, value in cfg.items():
        if key == "selector" and key not in known:
            yield f"selector: a dataset names it, `type: mrt_plugin.axolotl.{value}`."
        elif key in MrtBlock.model_fields and key not in known and value is not None:
            yield f"{key}: {value!r} is an option of multi-response training: write it under `mrt:`."
    for name, count in Counter(map(str, cfg.get("plugins") or [])).items():
        if count > 1:
            yield f"plugins: {name} is listed {count} times. List it once."
    if cfg.get("sample_packing") and (cfg.get("accelerator_config") or {}).get("split_batches"):
        yield "accelerator_config: split_batches would cut batches of unequal rows (sample_packing). Remove it."
    for key in ("curriculum_sampling", "sample_packing_sequentially"):
        if cfg.get(key) and (cfg.get("mrt") or {}).get("group_by_prefix"):
            yield f"{key}: it keeps the order of the rows, and mrt.group_by_prefix draws another. Remove one of them."
    if cfg.get("tiled_mlp") and not cfg.get("tiled_mlp_num_shards"):
        yield (
            "tiled_mlp: at every MLP processes would wait for each other, and they may run the model unequally often. "
            "Set tiled_mlp_num_shards."
        )
    if not cfg.get("val_set_size") and not cfg.get("test_datasets"):
        for name in ("early_stopping", "sample_prompts"):
            if (cfg.get("mrt") or {}).get(name):
                yield f"mrt.{name} needs held-out prompts: set val_set_size or test_datasets."
    try:
        if cfg.get("base_model"):
            check_model(str(cfg["base_model"]), None if cfg.get("base_model_config") else "config.json")
    except ValueError as problem:
        yield f"base_model: {problem}"


def output_slips(cfg: Any) -> Iterator[str]:
    """Yield problems of `output_dir`: it is the model's folder, or lies in a folder that is read as data."""
    model, output = str(cfg.get("base_model") or ""), Path(str(cfg.get("output_dir") or "model-out")).resolve()
    if model and Path(model).resolve() == output:
        yield f"output_dir: {cfg.get('output_dir')} is base_model's own folder, which would be overwritten. Change it."
    for entry in (*(cfg.get("datasets") or []), *(cfg.get("test_datasets") or [])):
        data = Path(str(entry.get("path") if isinstance(entry, dict) else ""))
        if data.is_dir() and data.resolve() in (output, *output.parents) and data != Path():
            yield f"output_dir: {cfg.get('output_dir')} lies in {data}, which is read as data. Change it."


def check_lengths(cfg: Any, block: dict[str, Any]) -> tuple[int, int]:
    """Return the limits of a pair and of a row, in tokens."""
    sequence_len = int(cfg.get("sequence_len") or 512)  # Axolotl's own default
    row_length = block.get("row_length") or sequence_len
    max_length = block.get("max_length") or sequence_len
    if row_length > sequence_len:
        raise ValueError(
            f"mrt.row_length={row_length} is above sequence_len={sequence_len}, and Axolotl drops longer rows. Set "
            f"sequence_len: {row_length} and mrt.max_length: {max_length}, and remove mrt.row_length."
        )
    if max_length > row_length:
        raise ValueError(
            f"mrt.max_length={max_length} is above the {row_length} tokens of a row, which must take at least one "
            "pair. Lower mrt.max_length, or raise sequence_len."
        )
    if cfg.get("sample_packing") and not block["row_packing"]:
        raise ValueError("mrt.row_packing: false contradicts sample_packing: true. Remove one of them.")
    return max_length, row_length
