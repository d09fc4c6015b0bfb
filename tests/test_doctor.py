"""`mrt doctor`: what it says of the machine, of a recipe, and of memory."""

import copy
import errno
import json
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import tiny
from helpers.processes import run_python
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config

from mrt_plugin.attention import resolve_backend
from mrt_plugin.doctor.machine import Device, Machine, inspect_machine
from mrt_plugin.doctor.measure import run_measuring
from mrt_plugin.doctor.memory import Method, estimate_memory
from mrt_plugin.doctor.recipe import count, largest_batch
from mrt_plugin.encoding import Encoder
from mrt_plugin.layout.collator import GroupedResponseCollator
from mrt_plugin.layout.group_row import build_group_row
from mrt_plugin.loss.token_nll import TokenNLL
from mrt_plugin.options import LayoutOptions
from mrt_plugin.versions import TESTED, Library, libraries, warn_of_untested


class TestMachine:
    def test_says_what_auto_means_here(self) -> None:
        machine = inspect_machine()
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        backend = resolve_backend("auto", LlamaConfig(), device_type=kind)
        assert (machine.device.kind, machine.prefix_backend, machine.embedder) == (kind, backend.name, "lexical")
        assert machine.problems == []
        json.dumps(machine.as_dict(), allow_nan=False)

    def test_ranges_are_those_of_the_package(self) -> None:
        found = {library.name: library for library in libraries()}
        assert found["trl"].extra is None
        assert found["axolotl"].extra == "axolotl"
        assert found["axolotl"].supported == ">=0.19.0,<1"
        assert "pytest" not in found
        assert "pytest" in {library.name for library in libraries(tools=True)}

    def test_the_newest_tested_releases_are_those_that_the_tests_install(self) -> None:
        root = Path(__file__).parents[1]
        files = [*root.glob("constraints*.txt"), root / "requirements-axolotl.txt", root / "Makefile"]
        pinned = re.findall(r"\b([a-z]+)==(\d+\.\d+)", "\n".join(path.read_text() for path in files))
        for name, newest in TESTED.items():
            versions = [Version(version) for other, version in pinned if other == name]
            assert max(versions) == Version(newest), name

    def test_a_newer_release_is_used_with_a_warning(self, monkeypatch, caplog) -> None:
        monkeypatch.setitem(TESTED, "trl", "1.8")
        trl = next(library for library in libraries() if library.name == "trl")
        assert trl.untested
        assert trl.ok
        warn_of_untested()
        assert [f"trl {trl.found} (tested: 1.8)" in message for message in caplog.messages] == [True]
        monkeypatch.setitem(TESTED, "trl", trl.found)
        caplog.clear()
        warn_of_untested()
        assert caplog.messages == []

    @pytest.mark.parametrize(
        ("supported", "found", "extra", "ok"),
        [
            (">=1.9,<1.17", "1.16.0", None, True),
            (">=1.9,<1.17", "1.17.0", None, False),
            (">=1.9,<1.17", "1.8.2", None, False),
            (">=2.11,<2.14", "2.13.0+cu130", None, True),
            (">=1.9,<1.17", None, None, False),
            ("==0.19.0", None, "axolotl", True),
            ("==0.19.0", "0.18.0", "axolotl", False),
            ("", "7.0", None, True),
        ],
    )
    def test_what_is_supported(self, supported: str, found: str | None, extra: str | None, ok: bool) -> None:
        library = Library("some", supported, found, extra)
        assert library.ok is ok
        machine = Machine("3.11", [library], Device("cpu", "", None, False), "sdpa", "lexical", False)
        assert len(machine.problems) == (0 if ok else 1)
        for problem in machine.problems:
            assert f"pip install 'some{supported}'" in problem


class LivePeak(TorchDispatchMode):
    """Bytes of all tensors alive at once, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def track(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known.add(storage)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, storage.nbytes())

    def _gone(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.track(leaf)
        return result


def measured_peak(config: LlamaConfig, lora_rank: int | None, checkpointing: bool, length: int) -> float:
    """GiB of tensors alive at the peak of two real training steps in fp32."""
    model: Any = LlamaForCausalLM(copy.deepcopy(config)).train()
    if lora_rank is not None:
        model = get_peft_model(model, LoraConfig(r=lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    compute = TokenNLL(model)
    tracker = LivePeak()
    for parameter in model.parameters():
        tracker.track(parameter)
    with tracker:
        for _ in range(2):
            tokens = torch.randint(0, config.vocab_size, (1, length))
            compute(model, {"input_ids": tokens, "use_cache": False}, tokens).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return tracker.peak / 2**30


class TestMemory:
    CONFIG = LlamaConfig(
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=2000,
        tie_word_embeddings=False,
    )

    @pytest.mark.slow
    @pytest.mark.parametrize("checkpointing", [True, False])
    @pytest.mark.parametrize("lora_rank", [8, None])
    def test_is_near_the_tensors_of_a_real_step(self, lora_rank: int | None, checkpointing: bool) -> None:
        method = Method(lora_rank=lora_rank, dtype=torch.float32, gradient_checkpointing=checkpointing)
        estimate = estimate_memory(self.CONFIG, method, rows=1, length=800)
        assert estimate.total == pytest.approx(measured_peak(self.CONFIG, lora_rank, checkpointing, 800), rel=0.25)

    @pytest.mark.parametrize("bits", [4, 8])
    def test_quantised_weights_are_those_that_bitsandbytes_makes(self, tmp_path: Path, bits: int) -> None:
        path = tiny.model_dir(tmp_path, hidden=128, layers=4)
        config = BitsAndBytesConfig(
            load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4"
        )
        model = LlamaForCausalLM.from_pretrained(
            path, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
        )
        estimate = estimate_memory(model.config, Method(bits=bits, lora_rank=8, dtype=torch.float32), rows=1, length=8)
        assert estimate.weights == pytest.approx(model.get_memory_footprint() / 2**30, rel=0.03)

    def test_counts_the_parameters(self) -> None:
        estimate = estimate_memory(self.CONFIG, Method(lora_rank=8), rows=1, length=16)
        model = LlamaForCausalLM(copy.deepcopy(self.CONFIG))
        assert estimate.parameters == model.num_parameters()
        adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        assert estimate.trained_parameters == adapted.num_parameters(only_trainable=True)

    def test_leaves_the_config_alone(self) -> None:
        config = Qwen3Config(num_hidden_layers=2, hidden_size=64, intermediate_size=64, vocab_size=100)
        before = (config.to_dict(), config._attn_implementation)
        estimate_memory(config, Method(bits=4, lora_rank=4), rows=2, length=32)
        assert (config.to_dict(), config._attn_implementation) == before

    def test_what_should_save_memory_does(self) -> None:
        config = LlamaConfig(num_hidden_layers=4, num_key_value_heads=8)  # wide, as real ones are: 4,096

        def total(length: int = 1024, **method: Any) -> float:
            return estimate_memory(config, Method(**method), rows=1, length=length).total

        qlora, lora, full = total(bits=4, lora_rank=8), total(lora_rank=8), total()
        assert qlora < lora < full
        assert total(lora_rank=8) < total(lora_rank=8, gradient_checkpointing=False)
        assert total(lora_rank=8, length=512) < lora
        assert total(optimizer_bytes=2) < full

    def test_parts_add_up(self) -> None:
        estimate = estimate_memory(self.CONFIG, Method(bits=4, lora_rank=8), rows=1, length=64)
        names = ("weights", "training_state", "activations", "logits", "dequantised")
        assert estimate.total == pytest.approx(sum(getattr(estimate, name) for name in names))


@pytest.fixture(scope="module")
def prepared() -> tuple[Dataset, GroupedResponseCollator]:
    tokenizer = tiny.tokenizer()
    encoder = Encoder(tokenizer)
    sea = ["It is calm.", "Waves roll.", "Salt and wind."]  # no two responses begin alike, so only prompts are shared
    groups = [("Name a fruit.", ["An apple.", "Pears."]), ("Write one sentence about the sea.", sea)]
    rows = [dict(build_group_row(encoder.encode_group(prompt, responses))) for prompt, responses in groups]
    return Dataset.from_list(rows), GroupedResponseCollator(tokenizer)


class TestCounts:
    def test_are_those_of_the_collated_rows(self, prepared: tuple[Dataset, GroupedResponseCollator]) -> None:
        dataset, collator = prepared
        counts = count(dataset, LayoutOptions(), lambda rows: [[0], [1]])
        assert (counts.rows, counts.pairs) == (2, 5)
        for layout, tokens in (("shared_prefix", counts.tokens_shared), ("expanded", counts.tokens_expanded)):
            collator.layout = layout
            batches = [collator([row]) for row in dataset]  # what groups have in common is not counted
            assert sum(int((batch["ends"] > 0).sum()) for batch in batches) == tokens
            assert sum(int(batch["trained_counts"].sum()) for batch in batches) == counts.trained_tokens
        assert counts.ratio == counts.tokens_expanded / counts.tokens_shared > 1

    def test_rows_that_are_no_groups(self) -> None:
        with pytest.raises(ValueError, match="rows are no groups"):
            count(Dataset.from_dict({"input_ids": [[1]], "labels": [[1]]}), LayoutOptions(), lambda rows: [[0]])

    def test_many_groups_are_estimated_from_some(
        self, prepared: tuple[Dataset, GroupedResponseCollator], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dataset, _ = prepared
        whole = count(dataset, LayoutOptions(), lambda rows: [[1], [0]])
        for most in (0, 1):
            monkeypatch.setattr("mrt_plugin.doctor.recipe.COUNTED", most)
            found = count(dataset, LayoutOptions(), lambda rows: [[1], [0]])
            assert (found.rows, found.pairs, found.tokens_expanded) == (2, 5, whole.tokens_expanded)
            assert found.sharing == count(dataset.select([1]), LayoutOptions(), lambda rows: [[0]]).sharing
            assert found.tokens_shared == round(whole.tokens_expanded / found.ratio) != whole.tokens_shared

    def test_the_largest_batch(self, prepared: tuple[Dataset, GroupedResponseCollator]) -> None:
        dataset, collator = prepared
        cfg = SimpleNamespace(sample_packing=False, micro_batch_size=1, sequence_len=256)
        collator.layout = "shared_prefix"
        longest = max(int((collator([row])["ends"] > 0).sum()) for row in dataset)
        assert largest_batch(dataset, collator, "shared_prefix", cfg) == (1, longest)
        assert largest_batch(dataset, collator, "expanded", cfg)[0] == 3
        packed = SimpleNamespace(sample_packing=True, micro_batch_size=2, sequence_len=256)
        assert largest_batch(dataset, collator, "expanded", packed) == (2, 256)


RECIPE = """\
base_model: {model}
plugins:
  - mrt_plugin.axolotl.MultiResponsePlugin
datasets:
  - path: {pool}
    ds_type: json
    type: mrt_plugin.axolotl.random_k
mrt:
  k: 2
  layout: auto
adapter: qlora
load_in_4bit: true
lora_r: 8
lora_alpha: 16
lora_target_linear: true
sequence_len: 128
micro_batch_size: 2
gradient_accumulation_steps: 3
num_epochs: 3
learning_rate: 0.0002
optimizer: adamw_torch
val_set_size: 0.2
attn_implementation: sdpa
bf16: false
fp16: false
lora_mlp_kernel: false
lora_qkv_kernel: false
lora_o_kernel: false
output_dir: out
dataset_prepared_path: prepared
"""

PLUGIN = "  - mrt_plugin.axolotl.MultiResponsePlugin\n"
DATA = "path: pool.jsonl, ds_type: json"

CHANGES = {
    "good": ("", ""),
    "expanded": ("layout: auto", "layout: expanded"),
    "typo": ("k: 2", "kk: 2"),
    "no_plugin": ("plugins:\n  - mrt_plugin.axolotl.MultiResponsePlugin\n", ""),
    "no_data": ("pool.jsonl", "nowhere.jsonl"),
    "bad_data": ("pool.jsonl", "bad.jsonl"),
    "too_short": ("sequence_len: 128", "sequence_len: 4"),
    "no_model": ("base_model: ", "base_model: nowhere"),
    "unknown_option": ("num_epochs: 3", "num_epochs: many"),
    "misplaced": (
        "mrt:\n  k: 2",
        "k: 2\nselector: best_k\nmrt:",
        PLUGIN,
        PLUGIN + PLUGIN,
        "output_dir: out",
        "output_dir: model",
    ),
    "no_held_out": (
        "val_set_size: 0.2\n",
        "",
        "layout: auto",
        "early_stopping: 2",
        "_model: model",
        "_model: ./modle",
    ),
    "no_partner": ("layout: auto", "mean_k: 3"),
    "slips": (
        "learning_rate: 0.0002",
        "learning_rat: 0.0002\nsequence_len: 64\nfsdp_config: {offload_parms: true}",
        PLUGIN,
        PLUGIN + "  - axolotl.integrations.ligr.LigerPlugin\n",
        "mrt:\n",
        f"  - {{{DATA}, type: mrt_plugin.axolotl.best_k}}\nmrt:\n",
        "adapter: qlora\nload_in_4bit: true\n",
        "",
        "val_set_size: 0.2",
        "evals_per_epoch: many",
    ),
    "ordinary": (
        "pool.jsonl",
        "chats.jsonl",
        "type: mrt_plugin.axolotl.random_k",
        "type: chat_template\nchat_template: tokenizer_default",
        "  k: 2\n",
        "",
        "sequence_len: 128",
        "sequence_len: 512",
        "micro_batch_size: 2",
        "micro_batch_size: 1\nsample_packing: true",
        "val_set_size: 0.2",
        "weight_decay: 0",
    ),
    "leak": (
        "val_set_size: 0.2",
        f"test_datasets:\n  - {{{DATA}, split: train, type: mrt_plugin.axolotl.all}}",
        "num_epochs: 3",
        "num_epochs: 0",
    ),
    "dropped": ("pool.jsonl", "long.jsonl", "layout: auto", "alpha: 0.5"),
    "few_dropped": (
        "pool.jsonl",
        "few_long.jsonl",
        "layout: auto",
        "max_length: 120",
        "val_set_size: 0.2",
        "weight_decay: 0",
    ),
}

SCRIPT = """
import json, sys
from mrt_plugin.doctor.recipe import inspect_recipe
if __name__ == "__main__":
    print(json.dumps({path: inspect_recipe(f"{path}.yaml").as_dict() for path in sys.argv[1:]}))
"""


@pytest.mark.axolotl
class TestRecipe:
    @pytest.mark.processes
    def test_a_good_recipe(self, reports: dict[str, Any], folder: Path) -> None:
        report = reports["good"]
        assert report["problems"] == []
        train, held_out = report["train"], report["held_out"]
        assert train["rows"] + held_out["rows"] == 20
        assert train["pairs"] == 2 * train["rows"]
        assert held_out["pairs"] == 4 * held_out["rows"]  # every held-out response is scored
        assert train["ratio"] == pytest.approx(train["tokens_expanded"] / train["tokens_shared"])
        assert report["steps"] == 3 * -(-train["rows"] // 6) == 9  # epochs, and up to 6 groups a step
        assert (report["layout"], report["method"], report["options"]["k"]) == ("shared_prefix", "qlora", 2)
        assert report["notes"] == ["pool.jsonl: repeated responses kept: 1 (first: line 1); "
                                   "a repeated answer counts as a likelier answer."]  # fmt: skip
        shared, expanded = report["memory"]["shared_prefix"], report["memory"]["expanded"]
        assert 0 < shared["total"] < expanded["total"]

    @pytest.mark.processes
    def test_an_expanded_recipe_is_counted_in_both_layouts(self, reports: dict[str, Any]) -> None:
        assert reports["expanded"]["layout"] == reports["expanded"]["options"]["layout"] == "expanded"
        assert reports["expanded"]["train"] == reports["good"]["train"]

    @pytest.mark.processes
    def test_what_sharing_saves_is_counted_by_level(self, reports: dict[str, Any], folder: Path) -> None:
        train = reports["good"]["train"]
        found = train["sharing"]
        assert (found["groups"], found["expanded"]) == (train["rows"], train["tokens_expanded"])
        assert train["tokens_shared"] == found["expanded"] - sum(found["saved"].values())
        assert found["saved"]["system"] > 0  # "Name a fruit that grows on trees"
        assert found["saved"]["prompt"] > 0
        assert found["saved"]["turns"] == 0

        report = reports["ordinary"]
        assert (report["problems"], report["layout"]) == ([], "shared_prefix")
        train, tokenizer = report["train"], AutoTokenizer.from_pretrained(folder / "model")
        lines = (folder / "chats.jsonl").read_text().splitlines()
        chats = [json.loads(line)["messages"] for line in lines]
        encoded = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in chats]
        assert (train["rows"], train["pairs"], train["tokens_expanded"]) == (12, 12, sum(map(len, encoded)))
        # All twelve fit one packed row. The token before the questions part is in each of them.
        system = next(place for place, tokens in enumerate(zip(*encoded, strict=False)) if len(set(tokens)) > 1)
        nothing = dict.fromkeys(("document", "prompt", "turns", "responses"), 0)
        assert train["sharing"]["saved"] == {"system": 11 * (system - 1), **nothing}
        assert train["ratio"] > 2

    @pytest.mark.processes
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("typo", ["recipe:", "mrt.kk is not an option: did you mean k?"]),
            ("no_plugin", ["recipe:", "Add `plugins: [mrt_plugin.axolotl.MultiResponsePlugin]`"]),
            ("no_data", ["recipe:", "datasets[0]", "no such file: nowhere.jsonl"]),
            ("bad_data", ["data:", "line 2", "responses"]),
            ("too_short", ["data:", "sequence_len=4", "Raise sequence_len"]),
            ("no_model", ["recipe:", "OSError"]),
            ("unknown_option", ["recipe:", "num_epochs"]),
            ("misplaced", ["recipe:", "k: 2 is an option of multi-response training: write it under `mrt:`"]),
            ("misplaced", ["a dataset names it, `type: mrt_plugin.axolotl.best_k`"]),
            ("misplaced", ["MultiResponsePlugin is listed 2 times"]),
            ("misplaced", ["recipe: output_dir: model is base_model's own folder"]),
            ("no_held_out", ["recipe:", "mrt.early_stopping needs held-out prompts: set val_set_size"]),
            ("no_held_out", ["base_model: there is no folder ./modle; did you mean model?"]),
            ("no_partner", ["recipe:", "mean_k=3.0 changes nothing here: it needs allocation='adaptive'"]),
            ("slips", ["recipe: learning_rat is not an option", "dropped: did you mean learning_rate?"]),
            ("slips", ["recipe: fsdp_config.offload_parms is not", "did you mean offload_params?"]),
            ("slips", ["recipe: sequence_len is given in line", "only the last counts"]),
            ("slips", ["recipe: plugins: axolotl.integrations.ligr.LigerPlugin cannot be loaded"]),
            ("slips", ["recipe: datasets[1] reads what datasets[0] reads"]),
            ("slips", ["recipe: lora_r, lora_alpha, lora_target_linear", "needs adapter: lora or qlora"]),
            ("slips", ["recipe: evals_per_epoch", "needs val_set_size or test_datasets"]),
            ("leak", ["data: 20 of the 20 prompts of the held-out data are also in the training data"]),
            ("leak", ["data: no optimizer step", "num_epochs"]),
            ("dropped", ["data: train: dropped", "longer than sequence_len=128", "Raise sequence_len to keep"]),
        ],
    )
    def test_what_is_wrong_is_said(self, reports: dict[str, Any], name: str, words: list[str]) -> None:
        problem = "\n".join(reports[name]["problems"])
        for word in words:
            assert word in problem

    @pytest.mark.processes
    def test_what_may_be_meant_is_a_note(self, reports: dict[str, Any]) -> None:
        assert reports["few_dropped"]["problems"] == []
        (note,) = reports["few_dropped"]["notes"]
        assert "dropped 1 pairs longer than mrt.max_length=120" in note
        assert note.endswith("% of those selected). Raise mrt.max_length to keep them.")
        unused = "mrt.alpha=0.5 changes nothing here: it needs selector='diverse_best_k'."
        assert unused in reports["dropped"]["notes"]

    @pytest.mark.processes
    def test_nothing_is_written(self, reports: dict[str, Any], folder: Path) -> None:
        data = ("chats.jsonl", "pool.jsonl", "bad.jsonl", "long.jsonl", "few_long.jsonl")
        known = {"model", *data, "script.py", *(f"{name}.yaml" for name in CHANGES)}
        assert {path.name for path in folder.iterdir()} == known

    @pytest.mark.processes
    def test_the_command(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        done = run_in(folder, "-c", "from mrt_plugin.cli import app; app()", "doctor", "typo.yaml")
        assert done.returncode == 1
        assert "did you mean k?" in done.stdout
        assert done.stdout.endswith("Next: fix this, then mrt doctor typo.yaml\n")
        done = run_in(folder, "-c", "from mrt_plugin.cli import app; app()", "doctor", "missing.yaml")
        assert done.returncode == 1
        assert "there is no such file: missing.yaml" in done.stderr
        monkeypatch.setenv("AXOLOTL_DATASET_NUM_PROC", "1")  # a pool of processes, as a recipe without the tests has
        done = run_in(folder, "-c", "from mrt_plugin.cli import app; app()", "doctor", "good.yaml")
        assert done.returncode == 0
        assert done.stdout.endswith("No problem found.\nNext: axolotl train good.yaml --launcher python\n")
        assert "What sharing saves, in" in done.stdout
        assert "prompt: once for all responses of a group" in done.stdout


LIMITED = """
import json, resource, sys
from dataclasses import asdict
from pathlib import Path
from mrt_plugin.doctor.measure import measure_recipe
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (5 * 2**30,) * 2)
    stages = []
    found = measure_recipe(Path(sys.argv[1]), Path(sys.argv[2]), stages.append)
    print(json.dumps({**asdict(found), "stages": stages}))
"""


@pytest.mark.axolotl
class TestMeasure:
    @pytest.mark.processes
    def test_a_step_of_the_longest_rows_is_measured(self, folder: Path) -> None:
        before = {path.name for path in folder.iterdir()}
        code = """
            import json, sys
            from mrt_plugin.doctor.recipe import inspect_recipe

            found = inspect_recipe("good.yaml", measure=True, say=lambda stage: print(stage, file=sys.stderr))
            print(json.dumps(found.as_dict()))
        """
        done = run_in(folder, "-c", dedent(code))
        assert done.returncode == 0, done.stderr[-3000:]
        report = json.loads(done.stdout)
        step, estimate = report["measured"], report["memory"]["shared_prefix"]
        assert (step["layout"], step["backend"], step["micro_batches"]) == ("shared_prefix", "sdpa", 3)
        rows, tokens = report["batch"]["shared_prefix"]
        assert step["rows"] == rows
        assert tokens <= step["tokens"] < tokens + 64  # Axolotl's padding
        assert step["seconds"] > 0
        moments = 8 * estimate["trained_parameters"]
        resting = estimate["weights"] * 2**30 + 4 * estimate["trained_parameters"] + moments
        assert step["resting"] * 2**30 == pytest.approx(resting, rel=0.1)
        assert step["resting"] < step["peak"] < 2 * estimate["total"]
        assert step["peak"] < step["process"]
        assert {path.name for path in folder.iterdir()} == before
        for stage in ("reading the recipe", "loading the model", "the warm-up step", "the measured step"):
            assert stage in done.stderr

    @pytest.mark.processes
    def test_packed_rows_are_measured(self, folder: Path) -> None:
        done = run_in(folder, "-c", "from mrt_plugin.cli import app; app()", "doctor", "ordinary.yaml", "--measure")
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        assert "Measured: an optimizer step of the longest rows" in done.stdout
        assert "The step had 1 micro-batch, with the backend sdpa." in done.stdout

    @pytest.mark.processes
    @pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts all memory on Linux alone")
    def test_a_step_that_runs_out_of_memory_says_so(self, folder: Path, tmp_path: Path) -> None:
        """The scores of 20,000 x 20,000 tokens in 4 heads take 6.4 GB, and the process may have 5 GiB."""
        groups = [{"prompt": f"{index}?", "responses": ["dog " * 20000]} for index in range(3)]
        (tmp_path / "pool.jsonl").write_text("".join(json.dumps(group) + "\n" for group in groups))
        text = RECIPE.format(model=folder / "model", pool=tmp_path / "pool.jsonl")
        for old, new in (
            ("  k: 2\n  layout: auto", "  k: 1\n  layout: expanded"),
            ("sequence_len: 128", "sequence_len: 40000"),
            ("micro_batch_size: 2", "micro_batch_size: 1"),
            ("val_set_size: 0.2\n", ""),
            ("attn_implementation: sdpa", "attn_implementation: eager"),
        ):
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "long.yaml").write_text(text)
        (tmp_path / "limited.py").write_text(LIMITED)
        done = run_in(tmp_path, "limited.py", "long.yaml", str(tmp_path / "prepared"))
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout)
        assert found["out_of_memory"], found
        assert found["step"] is None
        assert found["stages"][-1] == "running the warm-up step"
        assert found["problem"].startswith("--measure: while running the warm-up step: Out of memory. Lower,")
        assert "can't allocate memory" in found["problem"]


class TestMeasuring:
    @pytest.mark.processes
    @pytest.mark.parametrize(
        ("end", "out_of_memory", "words"),
        [
            ("os.kill(os.getpid(), signal.SIGKILL)", True, ["Out of memory. Lower", "micro_batch_size", "SIGKILL"]),
            ("os.kill(os.getpid(), signal.SIGSEGV)", False, ["The process was ended by SIGSEGV.", "a last word"]),
            ("sys.exit(3)", False, ["The process ended with status 3.", "a last word"]),
            ("pass", False, ["The process ended with status 0."]),
        ],
    )
    def test_a_process_without_a_result_is_a_problem(self, end: str, out_of_memory: bool, words: list[str]) -> None:
        code = "import json, os, signal, sys; print(json.dumps({'stage': 'trying'}), flush=True); "
        code += f"print('a last word', file=sys.stderr, flush=True); {end}"
        stages: list[str] = []
        found = run_measuring([sys.executable, "-c", code], stages.append)
        assert (found.step, found.out_of_memory, stages) == (None, out_of_memory, ["trying"])
        assert found.problem is not None
        assert found.problem.startswith("--measure: while trying: ")
        for word in words:
            assert word in found.problem

    @pytest.mark.processes
    def test_without_a_recipe(self, tmp_path: Path) -> None:
        done = run_in(tmp_path, "-c", "from mrt_plugin.cli import app; app()", "doctor", "--measure")
        assert done.returncode != 0
        assert "mrt doctor recipe.yaml --measure" in done.stderr


@pytest.mark.axolotl
class TestStep:
    def test_the_longest_rows_come_last(self) -> None:
        from axolotl.utils.dict import DictDefault

        from mrt_plugin.doctor.step import longest_rows

        tokens = np.array([5, 9, 2, 7, 8, 3])
        plain = {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
        assert longest_rows(tokens, DictDefault(plain)) == [4, 1]
        assert longest_rows(tokens, DictDefault(plain | {"micro_batch_size": 5})) == [2, 5, 0, 3, 4, 1]
        packing = {"sample_packing": True, "sequence_len": 12, "mrt": {"row_packing": True}}
        assert longest_rows(tokens, DictDefault(plain | packing)) == [3, 4, 1]  # 24 tokens for two rows of 12

    def test_sharded_weights_are_not_measured(self) -> None:
        from mrt_plugin.doctor.step import refuse_sharding

        refuse_sharding({"fsdp_config": None, "deepspeed": None, "tensor_parallel_size": 1})
        with pytest.raises(ValueError, match=r"deepspeed: weights .* several processes"):
            refuse_sharding({"deepspeed": "zero3.json"})

    def test_what_is_out_of_memory(self) -> None:
        from mrt_plugin.doctor.step import is_out_of_memory

        for fail in (lambda: torch.empty(2**50), lambda: bytearray(2**60)):
            with pytest.raises((RuntimeError, MemoryError)) as failed:
                fail()
            assert is_out_of_memory(failed.value)
        assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
        assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
        with pytest.raises(RuntimeError) as other:
            torch.zeros(2) + torch.zeros(3)
        assert not is_out_of_memory(other.value)
        assert not is_out_of_memory(OSError(errno.ENOENT, "No such file"))


def run_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python(arguments, cwd=folder, env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    tiny.model_dir(folder / "model")
    groups = [
        {"prompt": f"Name a fruit that grows on trees, number {index}.", "responses": ["apple", "pear", "plum", "dog"]}
        for index in range(20)
    ]
    groups[0]["responses"] = ["apple", "apple", "plum", "dog"]
    (folder / "pool.jsonl").write_text("".join(json.dumps(group) + "\n" for group in groups))
    for name, number in (("long", 20), ("few_long", 1)):
        some = [{**group, "responses": ["dog " * 200, "dog"]} for group in groups[:number]] + groups[number:]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(group) + "\n" for group in some))
    system = {"role": "system", "content": "You name fruit. Answer with one word that names a fruit of trees. " * 2}
    chats = [
        [system, {"role": "user", "content": f"{letter} fruit?"}, {"role": "assistant", "content": "apple"}]
        for letter in "ABCDEFGHIJKL"
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    (folder / "bad.jsonl").write_text('{"prompt": "a", "responses": ["b"]}\n{"prompt": "a", "responses": "b"}\n')
    recipe = RECIPE.format(model="model", pool="pool.jsonl")
    for name, changes in CHANGES.items():
        text = recipe
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in text
            text = text.replace(old, new, 1) if old else text
        (folder / f"{name}.yaml").write_text(text)
    (folder / "script.py").write_text(SCRIPT)
    return folder


@pytest.fixture(scope="module")
def reports(folder: Path) -> dict[str, Any]:
    done = run_in(folder, "script.py", *CHANGES)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
