"""What the plugin does when a recipe is read: mistakes are named with their remedy before anything is loaded."""

import json

import pytest
from helpers import axolotl_recipe
from helpers.axolotl_recipe import PLUGIN, loads_installed_plugins

pytest.importorskip("axolotl")
pytestmark = pytest.mark.axolotl


@pytest.fixture
def read(read_recipe):
    """Read a recipe with `changes` as every Axolotl command does, and return the validated configuration."""
    return read_recipe


def refused(read, *parts, **changes):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(**changes)
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in: {caught.value}"


def marks(cfg, key="datasets"):
    return [json.loads(entry.conversation) for entry in cfg[key] or []]


def test_a_run_that_held_nothing_out_says_so_and_suggests_its_card(read, caplog, tmp_path):
    from axolotl.integrations.base import PluginManager

    cfg = read(output_dir=str(tmp_path / "my run"), val_set_size=0)
    (plugin,) = (
        one for one in PluginManager.get_instance().plugins.values() if type(one).__name__ == "MultiResponsePlugin"
    )
    with caplog.at_level("INFO", logger="mrt_plugin"):
        plugin.post_train_unload(cfg)
    assert "val_set_size: 0.05" in caplog.text
    assert caplog.messages[-1].endswith(f"Next: mrt card '{tmp_path / 'my run'}'")


# ------------------------------------------------------------------ the mrt block


def test_defaults_are_those_of_the_options(read):
    from mrt_plugin.options import MultiResponseOptions

    for empty in (None, {}):
        cfg = read(mrt=empty)
        assert cfg.mrt.k == MultiResponseOptions().k
        assert cfg.mrt.layout == "auto"
        assert cfg.mrt.row_packing is True


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"kk": 3}, ["mrt.kk", "did you mean k"]),
        ({"frobnicate": 3}, ["mrt.frobnicate", "Known: ", " k, ", " layout, "]),
        ({"k": "4"}, ["mrt.k", "valid integer", "'4'"]),
        ({"k": True}, ["mrt.k", "valid integer"]),
        ({"k": 0}, ["mrt.k", "greater than or equal to 1"]),
        ({"alpha": -1}, ["mrt.alpha"]),
        ({"alpha": float("nan")}, ["mrt.alpha"]),
        ({"layout": "shared"}, ["mrt.layout", "'shared_prefix'", "'expanded'"]),
        ({"loss_aggregation": "mean"}, ["mrt.loss_aggregation", "'token'", "'prompt'", "'response'"]),
        ({"row_packing": "yes"}, ["mrt.row_packing"]),
        ({"selector": "best_k"}, ["mrt.selector", "type: mrt_plugin.axolotl.best_k"]),
        ({"mean_k": 2}, ["datasets[0]", "mean_k", "adaptive"]),
        ([1], ["mrt:", "[1]"]),
        ({"datasets": [{"path": "pool.jsonl", "kk": 2}]}, ["mrt.datasets.0.kk", "did you mean k"]),
        ({"datasets": [{"path": "pool.jsonl", "layout": "expanded"}]}, ["mrt.datasets.0.layout", "set mrt.layout"]),
        ({"k": "4", "kk": 1}, ["mrt.k:", "mrt.kk"]),
    ],
)
def test_a_wrong_option_is_named(read, block, parts):
    refused(read, *parts, mrt=block)


def test_lengths_must_fit(read):
    refused(read, "mrt.row_length=512", "sequence_len: 512", "mrt.max_length: 256", mrt={"row_length": 512})
    refused(read, "mrt.max_length=512", "raise sequence_len", mrt={"max_length": 512})
    refused(read, "mrt.max_length=256", "128 tokens", mrt={"row_length": 128})
    assert read(mrt={"row_length": 128, "max_length": 64}).mrt.row_length == 128


# ------------------------------------------------------------------ datasets


def test_every_registered_selector_is_a_dataset_type(read):
    from mrt_plugin.selection import SELECTORS

    for name in SELECTORS:
        cfg = read(datasets=[{"path": "pool.jsonl", "ds_type": "json", "type": f"mrt_plugin.axolotl.{name}"}])
        assert cfg.datasets[0].type == f"mrt_plugin.axolotl.{name}"


def test_a_selector_from_outside(read, tmp_path):
    """A dataset type of its own, and an option that names the function. Its source is part of the fingerprint."""
    file = tmp_path / "shortest.py"
    file.write_text("def shortest_k(pool, k):\n    return pool.lengths.argsort(kind='stable')[:k]\n")
    outside = [{"path": "pool.jsonl", "ds_type": "json", "type": "mrt_plugin.axolotl.selector"}]
    name = f"{file}:shortest_k"
    first = marks(read(mrt={"selector": name}, datasets=outside))[0]["fingerprint"]
    assert marks(read(mrt={"selector": name}, datasets=outside))[0]["fingerprint"] == first
    one = read(mrt={"datasets": [{"path": "pool.jsonl", "selector": name}]}, datasets=outside)
    assert marks(one)[0]["options"] == {"selector": name}
    file.write_text(file.read_text() + "# changed\n")
    assert marks(read(mrt={"selector": name}, datasets=outside))[0]["fingerprint"] != first
    refused(read, "type: mrt_plugin.axolotl.selector needs `selector: file.py:name`", datasets=outside)
    refused(read, "no dataset has `type: mrt_plugin.axolotl.selector`", mrt={"selector": name})
    refused(read, "has no function longest", mrt={"selector": f"{file}:longest"}, datasets=outside)


def test_a_wrong_type_lists_the_right_ones(read):
    for kind in ("mrt_plugin.axolotl.randomk", "mrt_plugin.random_k"):
        refused(
            read,
            "datasets[0]",
            kind,
            "mrt_plugin.axolotl.random_k",
            "filter_then_spread, all.",
            datasets=[{"path": "pool.jsonl", "type": kind}],
        )
    refused(read, "datasets[0]", "no type", datasets=[{"path": "pool.jsonl"}])


@pytest.mark.parametrize(
    ("kind", "meant"),
    [
        ("chat_tempalte", "Did you mean chat_template?"),
        ("alpacca", "Did you mean alpaca?"),
        ("random_k", "Did you mean mrt_plugin.axolotl.random_k?"),
        ("nowhere.strategy", "a module with a function `load`"),
        ("alpaca_chat.load_nothing", "neither one of Axolotl's"),
    ],
)
def test_a_type_that_axolotl_would_not_find_is_refused_when_the_recipe_is_read(read, tmp_path, kind, meant):
    axolotl_recipe.write_rows(tmp_path / "other.jsonl", axolotl_recipe.groups(2))
    grouped = {"path": "pool.jsonl", "ds_type": "json", "type": "mrt_plugin.axolotl.random_k"}
    refused(read, "datasets[1]", kind, meant, datasets=[grouped, {"path": "other.jsonl", "type": kind}])
    refused(read, "test_datasets[0]", kind, datasets=[grouped], test_datasets=[{"path": "other.jsonl", "type": kind}])


def test_types_of_axolotl_are_found():
    from mrt_plugin.axolotl.dataset_types import find_strategy

    for kind in ("alpaca", "alpaca:chat", "alpaca_chat.load_qa", "chat_template", "messages", "input_output"):
        assert find_strategy(kind) is not None, kind


def test_keys_that_a_grouped_dataset_would_ignore_are_refused(read):
    entry = {"path": "pool.jsonl", "type": "mrt_plugin.axolotl.random_k"}
    refused(read, "datasets[0]", "k here", "mrt:", datasets=[{**entry, "k": 3}])
    refused(read, "train_on_eos", "no meaning", datasets=[{**entry, "train_on_eos": "all"}])
    refused(read, "preprocess_shards", "no meaning", datasets=[{**entry, "preprocess_shards": 2}])
    refused(read, "conversation", datasets=[{**entry, "conversation": "x"}])
    refused(read, "datasets[0]", "share", "`shards: N`", "column", "`weights`", datasets=[{**entry, "weight": 0.5}])


def test_overrides_are_matched_by_the_keys_given(read, tmp_path):
    other = axolotl_recipe.write_rows(tmp_path / "other.jsonl", axolotl_recipe.groups(4))
    entries = [
        {"path": "pool.jsonl", "ds_type": "json", "type": "mrt_plugin.axolotl.random_k"},
        {"path": other, "ds_type": "json", "type": "mrt_plugin.axolotl.best_k"},
        {"path": other, "ds_type": "json", "type": "mrt_plugin.axolotl.all"},
    ]
    axolotl_recipe.write_rows(tmp_path / "pool.jsonl", axolotl_recipe.groups(4))
    overrides = [{"path": other, "alpha": 0.5}, {"path": other, "type": "mrt_plugin.axolotl.best_k", "k": 2}]
    cfg = read(datasets=entries, mrt={"k": 3, "datasets": overrides})
    assert [mark["options"] for mark in marks(cfg)] == [{}, {"alpha": 0.5, "k": 2}, {"alpha": 0.5}]
    refused(read, "matches no grouped dataset", datasets=entries, mrt={"datasets": [{"path": "none.jsonl", "k": 2}]})
    refused(read, "matches no grouped dataset", datasets=entries, mrt={"datasets": [{"k": 2}]})
    contradiction = [{"path": other, "type": "mrt_plugin.axolotl.all", "n": 4}]
    refused(read, "datasets[2]", "keeps every response", datasets=entries, mrt={"datasets": contradiction})
    twice = [{"path": other, "k": 2}, {"path": other, "k": 3}]
    refused(read, "k of", "given twice", datasets=entries, mrt={"datasets": twice})


# ------------------------------------------------------------------ held-out prompts


def test_val_set_size_becomes_a_held_out_dataset(read):
    cfg = read(val_set_size=0.25)
    assert cfg.val_set_size == 0
    assert [mark["part"] for mark in marks(cfg)] == ["train"]
    assert [mark["part"] for mark in marks(cfg, "test_datasets")] == ["held_out"]
    assert {mark["share"] for mark in [*marks(cfg), *marks(cfg, "test_datasets")]} == {0.25}
    assert cfg.test_datasets[0].type == "mrt_plugin.axolotl.all", "every response of a held-out prompt is scored"
    assert read().test_datasets is None


def test_val_set_size_is_a_share(read):
    for size in (1, 20, 1.5, "a tenth", True):
        refused(read, "val_set_size", "between 0 and 1", val_set_size=size)


def test_test_datasets_of_their_own(read):
    test = {"path": "pool.jsonl", "ds_type": "json", "type": "mrt_plugin.axolotl.all"}
    assert [mark["part"] for mark in marks(read(test_datasets=[test]), "test_datasets")] == ["test"]
    refused(read, "test_datasets", "remove one", test_datasets=[test], val_set_size=0.1)
    best = {**test, "type": "mrt_plugin.axolotl.best_k"}
    refused(read, "test_datasets[0]", "mrt_plugin.axolotl.all", test_datasets=[best])


# ------------------------------------------------------------------ options of Axolotl


REFUSED = [
    {"rl": "dpo"},
    {"reward_model": True},
    {"pretraining_dataset": "pool.jsonl"},
    {"streaming": True},
    {"skip_prepare_dataset": True},
    {"train_on_inputs": True},
    {"excess_length_strategy": "truncate"},
    {"eval_sequence_len": 128},
    {"eval_sample_packing": True, "sample_packing": True},
    {"dataloader_drop_last": True},
    {"batch_flattening": True},
    {"use_pose": True},
    {"group_by_length": True},
    {"chunked_cross_entropy": True},
    {"flash_attn_cross_entropy": True},
    {"use_eaft": True},
    {"orpo_alpha": 0.1},
    {"scaling_softmax": True},
    {"min_sample_len": 16},
    {"fsdp_version": 1, "fsdp_config": {"reshard_after_forward": True}},
    {"accelerator_config": {"dispatch_batches": True}},
    {"trainer_cls": "somewhere.Trainer"},
    {"context_parallel_size": 2},
    {"tensor_parallel_size": 2},
    {"processor_type": "AutoProcessor"},
    {"do_bench_eval": True},
    {"do_causal_lm_eval": True},
    {"eval_table_size": 4},
    {"generate_samples": True},
]


@pytest.mark.parametrize("changes", REFUSED, ids=lambda changes: next(iter(changes)))
def test_an_option_that_cannot_be_honoured_is_refused_by_name(read, changes):
    name = next(iter(changes))
    refused(read, f"{name}: {changes[name]!r}", "cannot be combined", **changes)


def test_the_documentation_names_every_refused_option():
    from pathlib import Path

    from mrt_plugin.axolotl import checks

    page = (Path(__file__).parent.parent / "docs" / "axolotl-reference.md").read_text()
    assert not [key for key, _, _ in checks.REFUSED if f"`{key}" not in page]


LIGER = "axolotl.integrations.liger.LigerPlugin"


@pytest.mark.parametrize(
    "plugin",
    [
        "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin",
        "axolotl.integrations.kd.KDPlugin",
        "axolotl.integrations.diffusion.DiffusionPlugin",
    ],
)
def test_plugins_that_replace_the_loss_or_the_trainer_are_refused(read, plugin):
    for plugins in ([axolotl_recipe.PLUGIN, plugin], [plugin, axolotl_recipe.PLUGIN]):
        refused(read, f"plugins: {plugin} cannot be combined", "Remove it", plugins=plugins)


@pytest.mark.parametrize(
    "flag", ["liger_cross_entropy", "liger_fused_linear_cross_entropy", "liger_use_token_scaling"]
)
def test_ligers_losses_are_refused(read, flag):
    refused(
        read, f"{flag}: True cannot be combined", "Remove it", plugins=[LIGER, axolotl_recipe.PLUGIN], **{flag: True}
    )


def test_ligers_other_kernels_pass(read):
    flags = ["liger_rope", "liger_rms_norm", "liger_rms_norm_gated", "liger_layer_norm", "liger_glu_activation"]
    cfg = read(plugins=[axolotl_recipe.PLUGIN, LIGER], **dict.fromkeys(flags, True))
    assert all(cfg[flag] for flag in flags)


def test_tiled_mlps_that_wait_for_other_processes_are_refused(read):
    refused(read, "tiled_mlp_num_shards", tiled_mlp=True)
    assert read(tiled_mlp=True, tiled_mlp_num_shards=2).tiled_mlp


def test_packed_batches_that_accelerate_would_split_are_refused(read):
    split = {"accelerator_config": {"split_batches": True}}
    refused(read, "split_batches", "sample_packing", sample_packing=True, **split)


def test_experts_on_several_processes_are_refused(read):
    plugin = "axolotl.integrations.expert_parallel.ExpertParallelPlugin"
    refused(read, "expert_parallel_size: 2", plugins=[axolotl_recipe.PLUGIN, plugin], expert_parallel_size=2)


def test_several_problems_are_shown_together(read):
    refused(read, "train_on_inputs", "group_by_length", train_on_inputs=True, group_by_length=True)


def test_options_that_work_pass(read):
    cfg = read(
        sample_packing=True,
        excess_length_strategy="raise",
        neftune_noise_alpha=5,
        curriculum_sampling=True,
        sample_packing_sequentially=True,
        pad_to_sequence_len=True,
        loraplus_lr_ratio=16,
        include_tkps=True,
        accelerator_config={"split_batches": False},
        dataset_exact_deduplication=True,
        shuffle_merged_datasets=False,
        train_on_inputs=False,
    )
    assert cfg.eval_sample_packing is False, "Axolotl's packing would drop held-out rows"
    assert cfg.dataloader_drop_last is False
    refused(read, "row_packing", "sample_packing", sample_packing=True, mrt={"row_packing": False})


# ------------------------------------------------------------------ the prepared dataset's name


def prepared_names(cfg):
    from axolotl.utils.data.shared import generate_dataset_hash_from_config

    return [
        generate_dataset_hash_from_config(cfg, entries, cfg.tokenizer_config)
        for entries in (cfg.datasets, cfg.test_datasets)
        if entries
    ]


def test_equal_recipes_share_a_prepared_dataset(read):
    assert prepared_names(read(val_set_size=0.2)) == prepared_names(read(val_set_size=0.2, learning_rate=0.5))


@pytest.mark.parametrize(
    "changes",
    [
        {"mrt": {"k": 2}},
        {"mrt": {"k": 3, "loss_aggregation": "prompt"}},
        {"mrt": {"k": 3, "layout": "expanded"}},
        {"mrt": {"k": 3, "max_length": 64}},
        {"mrt": {"k": 3, "datasets": [{"type": "mrt_plugin.axolotl.random_k", "k": 3}]}},
        {"seed": 8},
        {"sequence_len": 128},
        {"val_set_size": 0.3},
        {"special_tokens": {"pad_token": "<|im_end|>"}},
        {"excess_length_strategy": "raise"},
    ],
    ids=str,
)
def test_a_changed_recipe_has_another_prepared_dataset(read, changes):
    before, after = prepared_names(read(val_set_size=0.2)), prepared_names(read(**{"val_set_size": 0.2, **changes}))
    assert not set(before) & set(after)


def test_a_changed_file_has_another_prepared_dataset(read, tmp_path):
    before = prepared_names(read(val_set_size=0.2))
    pool = tmp_path / "pool.jsonl"
    rows = pool.read_text().splitlines(keepends=True)
    pool.write_text("".join(rows[: len(rows) // 2]))
    assert not set(before) & set(prepared_names(read(val_set_size=0.2)))


def test_a_changed_tokenizer_has_another_prepared_dataset(read, tmp_path, tiny_model_dir):
    import shutil

    copied = tmp_path / "model"
    shutil.copytree(tiny_model_dir, copied)
    before = prepared_names(read(base_model=str(copied)))
    template = copied / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant", "<|im_start|>model"))
    assert not set(before) & set(prepared_names(read(base_model=str(copied))))


@pytest.mark.parametrize("own", [False, True], ids=["for all", "of one dataset"])
@pytest.mark.parametrize(
    ("option", "file"),
    [
        ("scorer: scorer_{}.py:score", "scorer_{}.py"),
        ("scorer: scorers_{}.lengths:score", "scorers_{}/lengths.py"),  # a module
        ("scorer: scorers_{}:score", "scorers_{}/lengths.py"),  # a package that has the function from its module
        ("scorer: model_{}, scorer_{}.py:score", "model_{}/model.safetensors"),
        ("embedder: model_{}", "model_{}/modules.json"),
    ],
)
def test_a_changed_scorer_or_embedder_has_another_prepared_dataset(read, tmp_path, monkeypatch, option, file, own):
    unique = f"{abs(hash((option, file, own)))}"
    name, _, value = option.replace("{}", unique).partition(": ")
    monkeypatch.syspath_prepend(tmp_path)
    code = "def score(prompt, responses):\n    return [len(text) for text in responses]\n"
    (tmp_path / f"scorer_{unique}.py").write_text(code)
    (tmp_path / f"scorers_{unique}").mkdir()
    (tmp_path / f"scorers_{unique}/__init__.py").write_text("from .lengths import score\n")
    (tmp_path / f"scorers_{unique}/lengths.py").write_text(code)
    (tmp_path / f"model_{unique}").mkdir()
    for part in ("model.safetensors", "modules.json"):
        (tmp_path / f"model_{unique}" / part).write_text("weights")
    block = {"datasets": [{"type": "mrt_plugin.axolotl.random_k", name: value}]} if own else {name: value}
    before = prepared_names(read(mrt=block))
    assert before == prepared_names(read(mrt=block))
    path = tmp_path / file.replace("{}", unique)
    path.write_text(path.read_text().replace("len", "2 * len").replace("weights", "others"))
    assert not set(before) & set(prepared_names(read(mrt=block)))


def test_a_scorer_that_is_not_there_is_said_at_once(read):
    refused(read, "No module named 'nowhere'", mrt={"scorer": "nowhere:score"})


def test_a_changed_file_of_an_ordinary_dataset_has_another_prepared_dataset(read, tmp_path):
    path = tmp_path / "alpaca.jsonl"
    axolotl_recipe.write_rows(path, [{"instruction": "Name a fruit.", "input": "", "output": "A pear."}])
    entries = [
        {"path": "pool.jsonl", "ds_type": "json", "type": "mrt_plugin.axolotl.random_k"},
        {"path": "alpaca.jsonl", "ds_type": "json", "type": "alpaca"},
    ]
    before = prepared_names(read(datasets=entries))
    axolotl_recipe.write_rows(path, [{"instruction": "Name a fruit.", "input": "", "output": "A plum."}])
    assert not set(before) & set(prepared_names(read(datasets=entries)))


def test_a_recipe_that_does_not_use_the_plugin_is_left_alone(read):
    """Axolotl 0.21 loads every installed plugin; older releases only those that a recipe names."""
    from axolotl.integrations.base import PluginManager

    from mrt_plugin.axolotl.plugin import is_wanted

    ordinary = {"path": "pool.jsonl", "ds_type": "json", "type": "alpaca"}
    cfg = read(plugins=None, mrt=None, datasets=[ordinary])
    manager = PluginManager.get_instance()
    assert any(name.endswith("MultiResponsePlugin") for name in manager.plugins) == loads_installed_plugins()
    assert cfg.mrt is None
    assert [(entry.type, entry.conversation) for entry in cfg.datasets] == [("alpaca", None)]
    assert manager.get_trainer_cls(cfg) is None
    assert manager.get_collator_cls_and_kwargs(cfg) is None
    assert manager.get_training_args(cfg) == {}
    assert manager.get_training_args_mixin() == []

    grouped = {**ordinary, "type": "mrt_plugin.axolotl.random_k"}
    for used in ({"plugins": [PLUGIN]}, {"mrt": {"k": 2}}, {"datasets": [ordinary, grouped]}):
        assert is_wanted({"datasets": [ordinary], **used}), used
    assert not is_wanted({"datasets": [ordinary], "plugins": ["axolotl.integrations.liger.LigerPlugin"]})
