"""Each objective equals its formula written down directly, in both layouts, all backends and any cut of a step."""

import math
from functools import partial

import pytest
import torch
from datasets import Dataset
from helpers import tiny
from helpers.ranked import (
    directly,
    figures,
    flat_gradient,
    log_probabilities,
    make_ranked,
    slow_plackett_luce,
    slow_pro,
    token_directly,
)
from helpers.training import FRUITS, GradientTap, config, losses, make_groups, one_step, relative, trl_settings
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer

from mrt_plugin import (
    GroupedResponseCollator,
    MultiResponseOptions,
    MultiResponseSFTTrainer,
    MultiResponseTrainerMixin,
    load_groups,
    prepare_groups,
)
from mrt_plugin.encoding import Encoder
from mrt_plugin.loss.dft import dft_loss
from mrt_plugin.loss.gem import gem_loss
from mrt_plugin.loss.plackett_luce import plackett_luce_loss
from mrt_plugin.loss.pro import pro_loss, pro_sft_loss
from mrt_plugin.loss.ranking import best_of
from mrt_plugin.options import check_options, unused_options
from mrt_plugin.trainer.checks import keep_trainable

WAYS = {
    "expanded": {"layout": "expanded", "row_packing": False},
    "expanded, packed": {"layout": "expanded", "prefix_backend": "dense"},
    "sdpa": {"layout": "shared_prefix", "prefix_backend": "sdpa"},
    "dense": {"layout": "shared_prefix", "prefix_backend": "dense"},
    "fork": {"layout": "shared_prefix", "prefix_backend": "fork"},
    "unequal micro-batches": {
        "layout": "shared_prefix",
        "prefix_backend": "sdpa",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "gradient_checkpointing": True,
    },
    "groups over several rows": {"layout": "shared_prefix", "prefix_backend": "sdpa", "max_length": 64},
}


def as_arrays(groups):
    """Random means, lengths, scores and group numbers for the pure functions."""
    generator = torch.Generator().manual_seed(1)
    numbers = torch.tensor([number for number, scores in enumerate(groups) for _ in scores])
    scores = torch.tensor([score for scores in groups for score in scores], dtype=torch.float64)
    lengths = torch.randint(1, 9, (len(numbers),), generator=generator)
    sums = -torch.rand(len(numbers), generator=generator, dtype=torch.float64) * 3 * lengths
    return sums.requires_grad_(), lengths, scores, numbers


SCORES = [[3.0, 1.0], [0.5, 0.5, 0.2, math.nan, 0.9], [1.0, 1.0], [math.nan, 2.0, 1.0], [1e6, 0.0, -1e6], [4.0]]


@pytest.mark.parametrize("objective", ["pro", "plackett_luce"])
def test_the_pure_functions_are_their_formulas_in_loops(objective):
    """Ties, missing scores, unequal K, and scores at which exp overflows (the loops leave out that group)."""
    sums, lengths, scores, numbers = as_arrays(SCORES)
    if objective == "pro":
        found = pro_loss(sums / lengths, scores, numbers) + pro_sft_loss(sums, scores, numbers)
        slow = slow_pro
    else:
        found, slow = plackett_luce_loss(0.1 * sums, scores, numbers), slow_plackett_luce
    found.sum().backward()
    gradient = sums.grad.clone()
    for number, own in enumerate(SCORES):
        mine = (numbers == number).nonzero().flatten()
        if objective == "pro" and max(own) == 1e6:
            assert math.isfinite(found[number])
            assert gradient[mine].isfinite().all()
            continue
        sums.grad = None
        kept = [index for index in mine.tolist() if not math.isnan(scores[index])]
        arguments = [[values[index] for index in kept] for values in (sums, lengths, scores)]
        expected = slow(*arguments)
        assert found[number].item() == pytest.approx(float(expected), rel=1e-9, abs=1e-9)
        if expected.requires_grad:
            expected.backward()
            assert torch.allclose(gradient[mine], sums.grad[mine], rtol=1e-9)


def test_pro_with_two_responses_is_a_logistic_loss():
    r = torch.tensor([-0.3, -1.7], dtype=torch.float64)
    s = torch.tensor([0.9, 0.2], dtype=torch.float64)
    found = pro_loss(r, s, torch.zeros(2, dtype=torch.int64))
    assert found.item() == pytest.approx(-math.log(1 / (1 + math.exp(-(0.9 - 0.2) * (-0.3 + 1.7)))))
    turned = pro_loss(r.flip(0), s.flip(0), torch.zeros(2, dtype=torch.int64))
    assert turned.item() == pytest.approx(found.item())


def test_no_responses_have_no_loss():
    """As in a batch of fillers."""
    none, numbers = torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for found in (pro_loss(none, none, numbers), plackett_luce_loss(none, none, numbers)):
        assert found.shape == (0,)
        assert found.sum().requires_grad
    assert best_of(none, numbers).shape == (0,)


def test_the_token_losses_are_their_formulas():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([0, 6, 3, 3, 1])
    for loss, beta in ((dft_loss, None), (gem_loss, 0.7), (partial(gem_loss, beta=0.4), 0.4)):
        found = loss(logits, targets)
        expected = []
        for own, target in zip(logits, targets, strict=True):
            log_p = own - own.exp().sum().log()
            if beta is None:
                expected.append(-log_p[target].detach().exp() * log_p[target])
            else:
                q = (own / beta).exp() / (own / beta).exp().sum()
                expected.append(sum(q[v].detach() * log_p[v] for v in range(7)) - log_p[target])
        assert torch.allclose(found, torch.stack(expected), atol=1e-6)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        (slow,) = torch.autograd.grad(torch.stack(expected).sum(), logits)
        assert torch.allclose(gradient, slow, atol=1e-6)


def test_the_gradient_of_gem_is_that_of_the_nll_with_a_sharper_distribution():
    """q - onehot, where the NLL has p - onehot: at beta 1 they are equal."""
    logits, targets = torch.randn(6, 9, generator=torch.Generator().manual_seed(2)).requires_grad_(), torch.arange(6)
    onehot = torch.nn.functional.one_hot(targets, 9)
    for beta in (0.3, 0.7, 1.0):
        (gradient,) = torch.autograd.grad(gem_loss(logits, targets, beta).sum(), logits)
        assert torch.allclose(gradient, (logits / beta).softmax(-1) - onehot, atol=1e-6)
    (nll,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"), logits)
    assert torch.allclose(gradient, nll, atol=1e-6)


def test_gem_takes_tokens_that_the_model_excludes():
    logits = torch.tensor([[1.0, -torch.inf, 0.0]], requires_grad=True)
    gem_loss(logits, torch.tensor([0])).sum().backward()
    assert logits.grad.isfinite().all()
    alone = torch.tensor([[1.0, 0.0]], requires_grad=True)
    assert gem_loss(alone, torch.tensor([0])).item() == pytest.approx(gem_loss(logits, torch.tensor([0])).item())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("objective", "ours", "slow"),
    [
        ("pro", {}, {}),
        ("plackett_luce", {"reference": "none", "plackett_luce_beta": 0.5}, {"beta": 0.5}),
    ],
)
def test_a_step_is_the_formula_one_pair_at_a_time(tmp_path, way, objective, ours, slow):
    groups = make_ranked()
    loss, gradient, expected = directly(groups, objective, **slow)
    settings = {"per_device_train_batch_size": 5, "objective": objective, **ours, **WAYS[way]}
    run = one_step(tmp_path, groups, **settings)
    assert run.trainer.layout == settings["layout"]
    assert run.loss == pytest.approx(loss, rel=1e-5)
    assert relative(run.gradient, gradient) < 1e-5
    logged = next(entry for entry in run.trainer.state.log_history if "loss" in entry)
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("objective", ["dft", "gem"])
def test_a_step_of_a_token_loss_is_the_formula(tmp_path, way, objective):
    groups = make_ranked().remove_columns("scores")
    loss, gradient = token_directly(groups, objective)
    settings = {"per_device_train_batch_size": 5, "objective": objective, **WAYS[way]}
    run = one_step(tmp_path, groups, **settings)
    assert run.loss == pytest.approx(loss, rel=1e-5)
    assert relative(run.gradient, gradient) < 1e-5


def small_lora(model):
    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def trained_step(tmp_path, groups, model, tokenizer=None, **settings):
    """One optimizer step of a model over all groups: its loss, gradient and trainer."""
    tap = GradientTap()
    trainer = MultiResponseSFTTrainer(
        model=model,
        args=config(tmp_path, max_steps=1, per_device_train_batch_size=len(groups), **settings),
        train_dataset=groups,
        processing_class=tokenizer or tiny.tokenizer(),
        callbacks=[tap],
    )
    trainer.train()
    return losses(trainer)[0], tap.gradients[0], trainer


class GroupTrainer(MultiResponseTrainerMixin, Trainer):
    """Any other trainer: TRL's own rounds the adapters of 4-bit models to bfloat16."""

    def __init__(self, options, **kwargs):
        super().__init__(**kwargs)
        self.set_up_groups(options, [self.data_collator])


@pytest.mark.parametrize("layout", ["expanded", "shared_prefix"])
@pytest.mark.parametrize("objective", ["pro", "plackett_luce"])
def test_lora_with_the_model_without_adapters_as_reference(tmp_path, layout, objective):
    """Adapters that change the model already: the reference does not have them."""
    groups, settings, own = make_ranked(), {}, {}
    with torch.no_grad():
        plain = tiny.llama().eval()
        references = [log_probabilities(plain, row, tiny.tokenizer())[0] for row in groups]
    if objective == "plackett_luce":
        own = {"references": references, "beta": 0.3, "length_normalize": True}
        settings = {"plackett_luce_beta": 0.3, "length_normalize": True, "score_cache": str(tmp_path / "cache")}
    expected = directly(groups, objective, small_lora(tiny.llama()).train(), **own)
    for way in ({}, {"gradient_checkpointing": True}):
        settings |= way
        loss, gradient, trainer = trained_step(
            tmp_path, groups, small_lora(tiny.llama()), layout=layout, objective=objective, **settings
        )
        assert trainer.model.training
        assert loss == pytest.approx(expected[0], rel=1e-5)
        assert relative(gradient, expected[1]) < 1e-5
        logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
        assert {name: logged[name] for name in expected[2]} == pytest.approx(expected[2], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("layout", ["expanded", "shared_prefix"])
@pytest.mark.parametrize("objective", ["pro", "plackett_luce"])
def test_qlora_ranks_as_its_own_forward_does(tmp_path, layout, objective):
    """A 4-bit model, one pair at a time by plain forwards. Its reference is the model without adapters."""
    pytest.importorskip("bitsandbytes")
    path = tiny.model_dir(tmp_path / "model")
    groups = make_ranked(3, 3)

    def load():
        four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(path, quantization_config=four, dtype=torch.float32)
        keep_trainable(model)
        return small_lora(model).train()

    known = {}
    if objective == "plackett_luce":
        with torch.no_grad(), (reference := load()).disable_adapter():
            known["references"] = [log_probabilities(reference, row, tiny.tokenizer())[0] for row in groups]
    loss, gradient, _ = directly(groups, objective, load(), **known)
    where = {"layout": layout, "prefix_check": False, "row_length": 512, "score_cache": str(tmp_path / "cache")}
    options = MultiResponseOptions(selector="all", objective=objective, **where)
    rows, _ = prepare_groups(groups, tiny.tokenizer(), options, max_length=512, seed=0)
    tap = GradientTap()
    plain = {"per_device_train_batch_size": 3, "max_steps": 1, "logging_steps": 1, "max_grad_norm": 0.0}
    trainer = GroupTrainer(
        options,
        model=load(),
        args=TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True, save_strategy="no", **plain),
        data_collator=GroupedResponseCollator(tiny.tokenizer(), row_length=512),
        train_dataset=rows,
        callbacks=[tap],
    )
    trainer.train()
    assert trainer.layout == layout
    assert losses(trainer)[0] == pytest.approx(loss, rel=1e-5)
    assert relative(tap.gradients[0], gradient) < 1e-5


def test_two_responses_are_trls_dpo(tmp_path):
    """The same pairs through TRL's `DPOTrainer`, with another model as the reference."""
    rows = [(f" the {FRUITS[place]}", f" a {FRUITS[place]} by the sea") for place in range(4)]
    scores = [[0.5, 1.0], [0.75, 0.25], [3.0, 1.0], [0.0, 1.0]]
    groups = ranked_rows(zip(rows, scores, strict=True))
    tokenizer = tiny.tokenizer(chat_template=None)
    path = tiny.model_dir(tmp_path / "reference", seed=1)
    settings = {"plackett_luce_beta": 0.2, "reference": path, "score_cache": str(tmp_path / "cache")}
    loss, gradient, trainer = trained_step(
        tmp_path, groups, tiny.llama(), tokenizer, objective="plackett_luce", layout="shared_prefix", **settings
    )
    rows = []
    for row in groups:
        chosen, rejected = sorted(range(2), key=lambda place: -row["scores"][place])
        said = {"chosen": row["responses"][chosen], "rejected": row["responses"][rejected]}
        rows.append({"prompt": row["prompt"], **said})
    tap = GradientTap()
    common = {**trl_settings(tmp_path), "per_device_train_batch_size": len(rows), "beta": 0.2, "max_steps": 1}
    dpo = DPOTrainer(
        model=tiny.llama(),
        ref_model=AutoModelForCausalLM.from_pretrained(path),
        args=DPOConfig(**common),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[tap],
    )
    dpo.train()
    assert abs(loss - math.log(2)) > 1e-3, "the models differ"
    assert loss == pytest.approx(losses(dpo)[0], rel=1e-5)
    assert relative(gradient, tap.gradients[0]) < 1e-5
    theirs = next(entry for entry in dpo.state.log_history if "loss" in entry)
    ours = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert ours["margin"] == pytest.approx(theirs["rewards/margins"], rel=1e-4)
    assert ours["ranking_accuracy"] == pytest.approx(theirs["rewards/accuracies"])


def test_references_are_computed_once(tmp_path, caplog):
    """Full fine-tuning: the model before training. Other weights or other data are another entry of the cache."""
    caplog.set_level("INFO", logger="mrt_plugin")
    groups, cache = make_ranked(), str(tmp_path / "cache")

    def run(model, rows):
        caplog.clear()
        loss, _, trainer = trained_step(
            tmp_path, rows, model, objective="plackett_luce", layout="shared_prefix", score_cache=cache
        )
        computed = ["computing them once" in line for line in caplog.messages if line.startswith("Reference log-p")]
        return loss, trainer, computed

    first, trainer, computed = run(tiny.llama(), groups)
    assert computed == [True]
    with torch.no_grad():
        expected = [log_probabilities(tiny.llama().eval(), row, tiny.tokenizer())[0] for row in groups]
    for row, sums in zip(trainer.train_dataset, expected, strict=True):
        assert row["segment_references"] == pytest.approx([float(value) for value in sums], rel=1e-5)
    again, _, computed = run(tiny.llama(), groups)
    assert (again, computed) == (first, [False])
    assert run(tiny.llama(seed=2), groups)[2] == [True]
    assert run(tiny.llama(), make_ranked(3))[2] == [True]


def test_a_reference_of_another_vocabulary_is_refused(tmp_path):
    path = tiny.model_dir(tmp_path / "other", vocab_size=1088)
    with pytest.raises(ValueError, match="vocabulary of 1,088 tokens"):
        trained_step(tmp_path, make_ranked(), tiny.llama(), objective="plackett_luce", reference=path)
    with pytest.raises(ValueError, match="there is no folder"):
        trained_step(tmp_path, make_ranked(), tiny.llama(), objective="plackett_luce", reference="./nowhere")


@pytest.mark.parametrize("objective", ["pro", "plackett_luce", "dft", "gem"])
def test_evaluation_stays_the_held_out_nll(tmp_path, objective):
    """With the figures of the ranking where the objective ranks, over batches of any size."""
    groups, held_out = make_ranked(), make_ranked(5, first=5)
    held_out = Dataset.from_list([*held_out, {**make_ranked(1, 1, first=20)[0], "scores": [1.0]}])
    found = {}
    for name, size in (("nll", 6), (objective, 2), (objective, 6)):
        trainer = MultiResponseSFTTrainer(
            model=tiny.llama(),
            args=config(
                tmp_path,
                objective=name,
                per_device_eval_batch_size=size,
                score_cache=str(tmp_path / "cache"),
                reference="none" if objective == "plackett_luce" and name == objective else "initial",
            ),
            train_dataset=groups,
            eval_dataset=held_out,
            processing_class=tiny.tokenizer(),
        )
        found[name, size] = trainer.evaluate()
    nll, *ranked = found.values()
    for metrics in ranked:
        assert metrics["eval_loss"] == pytest.approx(nll["eval_loss"], rel=1e-5)
        assert metrics["eval_tokens"] == nll["eval_tokens"]
        names = ("eval_best_nll", "eval_ranking_accuracy", "eval_margin")
        if objective in ("dft", "gem"):
            assert not set(names) & set(metrics)
            continue
        with torch.no_grad():
            expected = directly_seen(held_out, objective)
        assert [metrics[name] for name in names] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def directly_seen(groups, objective):
    seen = []
    for row in groups:
        sums, lengths = log_probabilities(tiny.llama().eval(), row, tiny.tokenizer())
        rewards = [
            own / length if objective == "pro" else 0.1 * own for own, length in zip(sums, lengths, strict=True)
        ]
        seen.append((rewards, sums, lengths, row["scores"]))
    return list(figures(seen).values())


def test_turns_in_contexts_of_their_own_are_one_response(tmp_path):
    """A response of two turns has two sequences where the template drops earlier thinking."""
    tokenizer = tiny.tokenizer(family="qwen3")
    turns = [
        {"role": "assistant", "content": "<think>\nthe moon\n</think>\n\nThe sea"},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "<think>\na dog\n</think>\n\nThe moon"},
    ]
    other = [{"role": "assistant", "content": "<think>\na pear\n</think>\n\nThe apple"}]
    row = {"id": "a", "prompt": [{"role": "user", "content": "What is bright?"}], "responses": [turns, other]}
    groups = Dataset.from_list([{**row, "scores": [0.2, 0.9]}])
    model = tiny.llama().train()
    sums, lengths = log_probabilities(model, row, tokenizer)
    assert len(Encoder(tokenizer).encode_responses(row["prompt"], row["responses"], "inference")[0]) == 2
    expected = slow_pro(sums, lengths, [0.2, 0.9])
    expected.backward()
    for layout in ("expanded", "shared_prefix"):
        tap = GradientTap()
        trainer = MultiResponseSFTTrainer(
            model=tiny.llama(),
            args=config(tmp_path, max_steps=1, objective="pro", layout=layout),
            train_dataset=groups,
            processing_class=tokenizer,
            callbacks=[tap],
        )
        trainer.train()
        assert losses(trainer)[0] == pytest.approx(float(expected.detach()), rel=1e-5)
        assert relative(tap.gradients[0], flat_gradient(model)) < 1e-5


def ranked_rows(pool):
    """Groups of these lists of responses and scores."""
    rows = [
        {"id": str(place), "prompt": f"Number {place}:", "responses": list(responses), "scores": list(scores)}
        for place, (responses, scores) in enumerate(pool)
    ]
    return load_groups(Dataset.from_list(rows))


def prepared(groups, max_length=None, **options):
    options = MultiResponseOptions(**{"selector": "all", "objective": "pro", **options})
    return prepare_groups(groups, tiny.tokenizer(), options, max_length=max_length, seed=0, split_rows=True)


def test_groups_without_a_ranking_are_dropped_and_counted(caplog):
    pool = [
        (["a", "b", "c"], [1.0, 2.0, 2.0]),
        (["a", "b"], [1.0, 1.0]),
        (["a"], [1.0]),
        (["a", "a"], [1.0, 2.0]),
        (["a", "a", "b"], [1.0, 2.0, 2.0]),
        (["a", "a", "b"], [2.0, 2.0, 2.0]),
    ]
    rows, report = prepared(ranked_rows(pool))
    assert (report.groups, report.pairs, report.dropped_pairs) == (2, 6, 0)
    assert (report.unranked.few, report.unranked.equal, report.unranked.unscored) == (2, 2, 0)
    assert "cannot rank 4 groups" in caplog.text
    assert rows["segment_scores"][:] == [[1.0, 2.0, 2.0], [1.0, 2.0, 2.0]]
    assert [sum(units) for units in rows["segment_units"]] == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="no group of the train data has them: 0 groups have .* 2 have"):
        prepared(ranked_rows([pool[1], pool[5]]))
    long = ranked_rows([(["a", "b", "a long answer of many words by the sea"], [1.0, 1.0, 2.0]), pool[0]])
    _, report = prepared(long, max_length=30)
    assert (report.groups, report.dropped_groups, report.unranked.groups) == (1, 1, 0)


def test_responses_without_a_score_are_left_out():
    """In data that was not read by `load_groups`, which refuses them."""
    rows = [{"id": "a", "prompt": "Number 1:", "responses": ["a", "b", "c"], "scores": [1.0, None, 2.0]}]
    rows.append({"id": "b", "prompt": "Number 2:", "responses": ["a", "b", "c"], "scores": [1.0, math.nan, 1.0]})
    made, report = prepared(Dataset.from_list(rows))
    assert made["segment_scores"][:] == [[1.0, 2.0]]
    assert (report.unranked.few, report.unranked.equal, report.unranked.unscored) == (0, 1, 1)


def test_a_group_that_does_not_fit_a_row_is_refused_with_the_length_that_would_do():
    groups = make_ranked()
    with pytest.raises(ValueError, match="a row_length of [0-9]+ would do") as refused:
        prepared(groups, max_length=60, row_length=60)
    needed = int(str(refused.value).split("a row_length of ")[1].split()[0])
    rows, _ = prepared(groups, row_length=needed)
    assert max(len(tokens) for tokens in rows["input_ids"]) == needed
    with pytest.raises(ValueError, match=f"a row_length of {needed} would do"):
        prepared(groups, row_length=needed - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_aggregation": "prompt"}, "objective='pro' gives every prompt one vote: remove loss_aggregation"),
        ({"weights": "softmax"}, "remove weights='softmax'"),
        ({"selector": "random_k", "redraw": "epoch"}, "remove redraw"),
        ({"selector": "random_k", "k": 1}, "needs k of at least 2"),
        ({"objective": "dpo"}, "choose one of nll, pro, plackett_luce, dft, gem"),
        ({"objective": "gem", "gem_beta": 0.0}, "gem_beta=0.0 must be"),
        ({"objective": "dft", "smoke_steps": 100}, "Run it with objective='nll'"),
        ({"sft_weight": -1.0}, "sft_weight=-1.0 must be"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_options(MultiResponseOptions(**{"selector": "all", "objective": "pro", **options}))


def test_data_that_cannot_be_ranked_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the train data has none: give a column `scores`, or a `scorer`"):
        prepared(make_groups(3, 3))
    weighted = make_groups(3, 3, weights=True).add_column("scores", [[1.0, 2.0, 3.0]] * 3)
    with pytest.raises(ValueError, match="remove the column `weights`"):
        prepared(weighted)
    rows, _ = prepared(make_ranked(), objective="nll")
    assert "segment_scores" not in rows.column_names
    with pytest.raises(ValueError, match="was prepared without scores"):
        one_step(tmp_path, rows, objective="pro")
    rows, _ = prepared(make_ranked())
    with pytest.raises(ValueError, match="was prepared with scores"):
        one_step(tmp_path, rows)


def test_options_of_another_objective_are_named():
    found = unused_options(MultiResponseOptions(objective="pro", gem_beta=0.5, reference="none"))
    assert set(found) == {"gem_beta", "reference"}
    assert "objective='plackett_luce'" in found["reference"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["pro", "plackett_luce", "dft", "gem"])
def test_training_moves_what_it_should(tmp_path, objective):
    """Ranking objectives order the pairs; token losses lower the held-out NLL of the same answers."""
    groups = make_ranked(8, 3)
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(
            tmp_path,
            objective=objective,
            plackett_luce_beta=1.0,
            learning_rate=2e-3,
            num_train_epochs=40 if objective == "plackett_luce" else 15,
            per_device_train_batch_size=8,
            reference="none" if objective == "plackett_luce" else "initial",
        ),
        train_dataset=groups,
        processing_class=tiny.tokenizer(),
    )
    before = trainer.evaluate(groups)
    trainer.train()
    after = trainer.evaluate(groups)
    if objective in ("dft", "gem"):
        assert after["eval_loss"] < before["eval_loss"] - 1
        return
    logs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1] < logs[0]
    assert after["eval_margin"] > before["eval_margin"]
    assert after["eval_ranking_accuracy"] > max(0.8, before["eval_ranking_accuracy"])
