"""Which layout a run gets where weights are spread over processes, or activations are recomputed."""

import logging
import os
from itertools import product

import pytest
import torch
from accelerate.utils import DeepSpeedPlugin, DistributedType
from datasets import Dataset
from helpers import tiny
from helpers.training import Fails, IgnoresTheMask, ReadsPadding, make_groups
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from mrt_plugin import GroupedResponseCollator
from mrt_plugin.attention import ExpandedBackend, NotShareable
from mrt_plugin.attention.fork_checkpoint import recomputes
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import build_group_row, sequence_lengths, sequences_of
from mrt_plugin.layout.rows import Rows
from mrt_plugin.layout.tree import build_tree
from mrt_plugin.loss.token_nll import TokenNLL
from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.trainer.layout_choice import RunSetup, _row_to_prove, choose_layout, draw_batches, sharing_of
from mrt_plugin.trainer.prepare import prepare_groups
from mrt_plugin.trainer.processes import read_sharding

TOKENIZER = tiny.tokenizer()
SHARDED = ("FSDP", "DeepSpeed ZeRO-3")


@pytest.fixture(scope="module")
def rows() -> Dataset:
    options = MultiResponseOptions(selector="all")
    return prepare_groups(make_groups(4, 3), TOKENIZER, options, max_length=512, seed=0)[0]


def choose(rows, *, model=None, sharding=None, agree=None, checkpointing=False, **options):
    model = model or tiny.llama()
    more = {} if agree is None else {"agree": agree}
    compute, pad = TokenNLL(model).bound(model), TOKENIZER.pad_token_id
    setup = RunSetup(model, MultiResponseOptions(**options), compute, pad, checkpointing, sharding=sharding, **more)
    return model, choose_layout(setup, rows)


def test_what_accelerate_says(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the plugin leaves notes there
    for kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        assert read_sharding(kind) is None
    assert read_sharding(DistributedType.FSDP) == "FSDP"
    for stage, expected in ((2, None), (3, "DeepSpeed ZeRO-3")):
        plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": {"stage": stage}})
        assert read_sharding(DistributedType.DEEPSPEED, plugin) == expected


@pytest.mark.parametrize("sharding", SHARDED)
def test_the_fork_is_proved_in_the_first_step_there(rows, sharding):
    choice = choose(rows, sharding=sharding, layout="auto", prefix_backend="fork")[1]
    assert (choice.layout, choice.backend.name, choice.backend.together) == ("shared_prefix", "fork", True)
    assert choice.unproved is not None


@pytest.mark.parametrize("sharding", SHARDED)
def test_attention_is_shared_there_and_proved_in_the_first_step(rows, sharding):
    for layout, checked in product(("auto", "shared_prefix"), (True, False)):
        choice = choose(rows, sharding=sharding, layout=layout, prefix_check=checked)[1]
        assert (choice.layout, choice.backend.name) == ("shared_prefix", "sdpa")
        assert (choice.unproved is not None) == checked
    assert choose(rows, layout="auto")[1].unproved is None


def test_one_process_that_cannot_share_decides_for_all(rows):
    told, elsewhere = [], ["its model is patched", None, "its model is patched", None]

    def agree(refusal):
        told.append(refusal)
        return refusal or elsewhere.pop(0)

    model, choice = choose(rows, agree=agree, layout="auto")
    assert choice.layout == choice.backend.name == "expanded"
    assert model.config._attn_implementation == "sdpa", "its own attention is back"
    with pytest.raises(NotShareable, match="another process found: its model is patched"):
        choose(rows, agree=agree, layout="shared_prefix")
    assert told == [None, None, None]
    wrapped = tiny.llama()
    apply_activation_checkpointing(wrapped, check_fn=lambda module: isinstance(module, LlamaDecoderLayer))
    with pytest.raises(NotShareable, match="CheckpointWrapper"):
        choose(rows, model=wrapped, agree=agree, layout="shared_prefix", prefix_backend="fork", checkpointing=True)
    assert "CheckpointWrapper" in told[-1], "the others are told why"


def test_any_error_of_the_proof_is_a_refusal_with_its_cause(rows):
    told = []

    def agree(refusal):
        told.append(refusal)
        return refusal

    def broken():
        model = tiny.llama()
        model.__class__ = Fails
        return model

    model, choice = choose(rows, model=broken(), agree=agree, layout="auto")
    assert choice.layout == choice.backend.name == "expanded"
    assert model.config._attn_implementation == "sdpa"
    assert ["no kernel for this shape" in (refusal or "") for refusal in told] == [True, False]
    with pytest.raises(NotShareable, match="RuntimeError: no kernel for this shape") as caught:
        choose(rows, model=broken(), agree=agree, layout="shared_prefix")
    assert isinstance(caught.value.__cause__, RuntimeError)
    unresolvable = tiny.llama()
    unresolvable.config.attn_pdrop = "none"
    with pytest.raises(NotShareable, match="could not convert string to float") as caught:
        choose(rows, model=unresolvable, agree=agree, layout="shared_prefix", prefix_check=False)
    assert type(caught.value.__cause__) is ValueError
    assert "could not convert" in told[-1]


class ReadsPaddingUnderSdpa(ReadsPadding):
    """As transformers' DeepSeek-V3.2 in older releases."""

    inexact = ("sdpa",)


@pytest.mark.parametrize(
    ("kind", "attention", "backend"),
    [(ReadsPadding, "sdpa", "one_by_one"), (ReadsPaddingUnderSdpa, "eager", "expanded")],
)
def test_expanded_rows_are_checked_as_well(rows, kind, attention, backend, caplog):
    """A model that is inexact under padding gets the attention that is exact, or one forward per pair."""
    model = tiny.llama()
    model.__class__ = kind
    _, choice = choose(rows, model=model, layout="expanded", row_packing=False)
    assert (choice.layout, choice.backend.name, choice.can_pack) == ("expanded", backend, False)
    assert model.config._attn_implementation == attention
    assert "with attn_implementation=sdpa, the per-token NLL of a real group moves by" in caplog.text
    pairs = Rows.from_batch(GroupedResponseCollator(TOKENIZER, layout="expanded", packing=False)(list(rows)))
    plain = tiny.llama()
    expected = ExpandedBackend().token_nll(plain, pairs, TokenNLL(plain).bound(plain))
    found = choice.backend.token_nll(model, pairs, TokenNLL(model).bound(model))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_reads_padding_shares_with_the_attention_that_does_not(rows):
    for kind, layout, backend in (
        (ReadsPadding, "expanded", "one_by_one"),
        (ReadsPaddingUnderSdpa, "shared_prefix", "dense"),
    ):
        model = tiny.llama()
        model.__class__ = kind
        choice = choose(rows, model=model, layout="auto", prefix_backend="dense")[1]
        assert (choice.layout, choice.backend.name) == (layout, backend)
    model = tiny.llama()
    model.__class__ = ReadsPadding
    with pytest.raises(NotShareable, match="llama depends on what stands beside a pair"):
        choose(rows, model=model, layout="shared_prefix")


def test_the_row_of_the_proof_is_packed_and_holds_the_longest_pair(rows):
    longest = max(max(sequence_lengths(row)) for row in rows)
    row = _row_to_prove(rows, MultiResponseOptions(row_length=1000))
    assert len(row) == len(rows), "all four fit"
    assert max(sequence_lengths(row[0])) == longest
    narrow = _row_to_prove(rows, MultiResponseOptions(row_length=longest))
    assert max(sequence_lengths(narrow[0])) == longest, "the part with the longest pair"
    assert sum(len(group["input_ids"]) for group in narrow) <= longest
    for alone in ({"row_length": 1000, "row_packing": False}, {}):
        assert len(_row_to_prove(rows, MultiResponseOptions(**alone))) == 1


def test_all_rows_are_drawn_once_in_batches():
    batches = draw_batches(10, 4)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(10)) != order
    assert draw_batches(5, 2, in_order=True) == [[0, 1], [2, 3], [4]]


def test_the_token_ratio_is_that_of_micro_batches(rows):
    """What groups have in common counts where they are in one batch, and may be packed into one row."""
    every = [sequence for row in rows for sequence in sequences_of(row)]
    complete = sum(len(sequence.input_ids) for sequence in every)
    together = complete / len(build_tree(every).input_ids)
    alone = complete / sum(len(build_tree(sequences_of(row)).input_ids) for row in rows)
    assert together > alone > 1

    def ratio(size, **options):
        return sharing_of(rows, MultiResponseOptions(**options), draw_batches(len(rows), size)).ratio

    assert ratio(len(rows), row_length=1000) == pytest.approx(together)
    assert ratio(len(rows), row_length=1000, row_packing=False) == pytest.approx(alone)
    assert ratio(len(rows)) == pytest.approx(alone), "rows without a limit hold one group"
    assert ratio(1, row_length=1000) == pytest.approx(alone)


@pytest.mark.parametrize("layout", ["auto", "expanded"])
def test_what_sharing_saves_is_logged_level_by_level(rows, layout, caplog):
    with caplog.at_level(logging.INFO, logger="mrt_plugin"):
        choose(rows, layout=layout, row_length=1000)
    found = sharing_of(rows, MultiResponseOptions(row_length=1000), draw_batches(len(rows), 1))
    (line,) = (message for message in caplog.messages if "of the training data" in message)
    share = 100 * (1 - found.shared / found.expanded)
    verb = "would save" if layout == "expanded" else "saves"
    assert f"sharing {verb} {share:.1f} % (" in line
    for level in ("system", "prompt"):
        assert f"{level} {100 * found.saved[level] / found.expanded:.1f} %" in line
    assert "turns" not in line
    assert line.endswith("in 4 micro-batches of the training data.")


def test_the_row_of_the_proof_has_what_begins_alike():
    def prepared(first, number):
        prompt = [first] * 30 + [5, number]
        return build_group_row([Pair([*prompt, 7, 8], [False] * 32 + [True] * 2)] * (1 if number else 2))

    groups = [prepared(first, number) for number in range(4) for first in (3, 4)]
    row = _row_to_prove(Dataset.from_list(groups), MultiResponseOptions(row_length=60))
    assert {group["input_ids"][0] for group in row} == {row[0]["input_ids"][0]}
    assert len(row) == 4


def test_the_proof_can_be_turned_off(rows):
    model = tiny.llama()
    model.__class__ = IgnoresTheMask
    assert choose(rows, model=model, layout="shared_prefix", prefix_check=False)[1].layout == "shared_prefix"
    with pytest.raises(NotShareable, match="cannot know the layout of a row"):
        choose(rows, model=model, layout="shared_prefix")


def test_layers_wrapped_by_torch_are_recomputed():
    """As FSDP's activation_checkpointing and Axolotl's activation_offloading do; no flag of the model is set."""
    model = tiny.llama()
    assert not recomputes(model)
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, LlamaDecoderLayer))
    assert recomputes(model)
    flagged = tiny.llama()
    flagged.gradient_checkpointing_enable()
    assert recomputes(flagged)


@pytest.mark.parametrize("layout", ["expanded", "shared_prefix"])
def test_a_change_of_logits_is_noticed_before_the_first_batch(rows, layout):
    """The first batch goes through the model's own head at once."""

    class Capped(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = torch.tanh(output.logits)
            return output

    model = tiny.llama()
    model.__class__ = Capped
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    compute = TokenNLL(model)
    with compute.judging():
        options = MultiResponseOptions(row_packing=False, layout=layout)
        choose_layout(RunSetup(model, options, compute.bound(model), TOKENIZER.pad_token_id, False), rows)
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.numel() // output.shape[-1]))
    input_ids = torch.tensor([rows[0]["input_ids"][:20]])
    compute(model, {"input_ids": input_ids}, input_ids)
    assert seen == [20]
