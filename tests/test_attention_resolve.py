"""Which backend a model gets, and what is refused with which remedy."""

from pathlib import Path

import pytest
from datasets import Dataset
from helpers import tiny
from helpers.cli import CliRunner
from helpers.families import ATTENTION_ONLY, CHUNKED, FAMILIES, STATEFUL, assert_equivalent, build, random_group

from mrt_plugin import MultiResponseSFTConfig, MultiResponseSFTTrainer
from mrt_plugin.attention import NotShareable, prove, resolve_backend
from mrt_plugin.attention.varlen import CUDAFlash
from mrt_plugin.cli import app
from mrt_plugin.options import PREFIX_BACKENDS, MultiResponseOptions, check_options


@pytest.mark.parametrize("name", FAMILIES)
def test_auto(name: str) -> None:
    config = build(name).config
    expected = "fork" if name in (*STATEFUL, *CHUNKED) else "sdpa"
    assert resolve_backend("auto", config, device_type="cpu").name == expected
    on_gpu = resolve_backend("auto", config, device_type="cuda")
    assert on_gpu.name == ("flex" if name == "gemma2" else expected)


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("requested", ["sdpa", "dense", "flex"])
def test_a_state_leaves_the_fork_only(name: str, requested: str) -> None:
    with pytest.raises(NotShareable, match="prefix_backend=fork"):
        resolve_backend(requested, build(name).config, device_type="cuda")


@pytest.mark.parametrize("requested", ["auto", "sdpa", "flex"])
def test_attention_dropout_is_refused(requested: str) -> None:
    config = build("gpt2").config
    config.attn_pdrop = 0.1
    with pytest.raises(NotShareable, match="attention dropout 0.1"):
        resolve_backend(requested, config, device_type="cuda")


@pytest.mark.parametrize(
    ("head_size", "capability", "fits"),
    [
        (128, (9, 0), True),
        (256, (9, 0), True),
        (256, (8, 9), False),
        (128, (8, 6), True),
        (128, (7, 5), False),
        (100, (9, 0), False),
    ],
)
def test_heads_that_a_card_has_fused_kernels_for(head_size: int, capability: tuple[int, int], fits: bool) -> None:
    assert CUDAFlash.fits(head_size, capability) == fits


def test_flex_needs_a_gpu() -> None:
    with pytest.raises(NotShareable, match="no backward pass on CPU"):
        resolve_backend("flex", build("llama").config, device_type="cpu")


def test_unknown_backends_are_named() -> None:
    with pytest.raises(ValueError, match=f"choose one of auto, {', '.join(PREFIX_BACKENDS)}"):
        resolve_backend("flash", build("llama").config, device_type="cpu")


@pytest.mark.parametrize("name", ATTENTION_ONLY)
@pytest.mark.parametrize("requested", [name for name in PREFIX_BACKENDS if name != "flex"])
def test_models_get_their_attention_back(name: str, requested: str) -> None:
    if name in CHUNKED and requested == "sdpa":
        return
    model = build(name)
    before = model.config._attn_implementation
    backend = resolve_backend(requested, model.config, device_type="cpu")
    backend.prepare_model(model)
    backend.restore_model(model)
    assert model.config._attn_implementation == before


# ---------------------------------------------------------------- a backend from outside

OWN = """
import torch

from mrt_plugin.attention.masks import DenseBackend, visible
from mrt_plugin.layout.rows import Rows


class RowByRow(DenseBackend):
    name = "row_by_row"

    def token_nll(self, model, rows, compute):
        found = []
        for row in range(len(rows.units)):
            one = {name: value[row : row + 1] for name, value in rows.to_batch().items()}
            found.append(super().token_nll(model, Rows.from_batch(one), compute))
        return torch.cat(found)


class SegmentsIgnored(DenseBackend):
    name = "segments_ignored"

    def _mask(self, kind, rows, dtype):
        return torch.ones_like(visible(rows)).tril()


def function(config):
    return RowByRow(config)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "own_backend.py"
    file.write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return file


def test_a_backend_from_outside_is_proved_and_used(own: Path) -> None:
    model = build("gemma3")
    for name in (f"{own}:RowByRow", "own_backend:RowByRow"):
        backend = resolve_backend(name, model.config, device_type="cpu")
        assert prove(model, backend, random_group(20, [3, 8])).backend == "row_by_row"
        backend.restore_model(model)
    assert_equivalent(backend, "gemma3", [[random_group(17, [3, 15, 1])], [random_group(20, [2, 9])]])


def test_a_wrong_backend_from_outside_does_not_pass_the_proof(own: Path) -> None:
    model = build("llama")
    backend = resolve_backend(f"{own}:SegmentsIgnored", model.config, device_type="cpu")
    with pytest.raises(NotShareable, match="prefix_backend=segments_ignored does not compute what llama computes"):
        prove(model, backend, random_group(20, [3, 8]))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("{}:Absent", "no function Absent"),
        ("absent.py:A", "no file"),
        ("no_module:A", "no_module"),
        ("{}:function", "no class"),
    ],
)
def test_what_is_no_backend_is_refused_at_once(own: Path, name: str, reason: str) -> None:
    """Where the option is read: before a model is loaded, in Python, YAML and on the command line."""
    with pytest.raises(ValueError, match=reason):
        check_options(MultiResponseOptions(prefix_backend=name.format(own)))
    shown = CliRunner().invoke(app, ["bench", "--prefix-backend", name.format(own)])
    assert shown.exit_code != 0
    assert "--prefix-backend" in shown.output


@pytest.mark.slow
def test_a_trainer_takes_a_backend_from_outside(own: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Name {number} fruits.", "responses": ["apple and pear", "plum"]} for number in range(4)]
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=MultiResponseSFTConfig(
            output_dir=str(tmp_path),
            selector="all",
            layout="shared_prefix",
            prefix_backend=f"{own}:RowByRow",
            max_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    assert trainer.layout == "shared_prefix"
    assert trainer._backend.name == "row_by_row"
