"""`turn_context: inference` in training: the step of one sequence at a time, whatever the layout, split or draw."""

import logging
import random

import pytest
import torch
from datasets import Dataset
from helpers import tiny
from helpers.families import gradient, plain_compute
from helpers.trees import shifted
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt_plugin import GroupedResponseCollator, MultiResponseSFTConfig, MultiResponseSFTTrainer, load_groups
from mrt_plugin.attention import ExpandedBackend
from mrt_plugin.encoding import Encoder
from mrt_plugin.evaluation.held_out import held_out_nll, response_nll
from mrt_plugin.extension import load_extension
from mrt_plugin.layout.group_row import count_responses, responses_of, sequence_lengths
from mrt_plugin.layout.rows import Rows
from mrt_plugin.loss.token_nll import TokenNLL, step_loss
from mrt_plugin.options import PREFIX_BACKENDS, MultiResponseOptions
from mrt_plugin.planning.measure import gradient_products, measure, token_costs
from mrt_plugin.trainer.callbacks.samples import pick_prompts
from mrt_plugin.trainer.prepare import prepare_groups
from mrt_plugin.trainer.redraw import DRAW, EpochDraws

TOKENIZER = tiny.tokenizer(family="qwen3")
ENCODER = Encoder(TOKENIZER)
WORDS = ["apple", "pear", "plum", "cherry", "sea", "moon", "river", "dog"]
BACKENDS = {name: load_extension(place) for name, place in PREFIX_BACKENDS.items() if name != "flex"}


def conversation(rng: random.Random, turns: int) -> list[dict]:
    def words(most):
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    messages = []
    for number in range(turns):
        messages += [{"role": "user", "content": words(3)}] if number else []
        thought = {"reasoning_content": words(6)} if rng.random() < 0.8 else {}
        messages.append({"role": "assistant", "content": words(4), **thought})
    return messages


def make_groups(seed: int, *, count: int = 2, responses: int = 3, turns: int = 3, weighted: bool = True) -> Dataset:
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        pool = [conversation(rng, rng.randint(1, turns)) for _ in range(rng.randint(1, responses))]
        weights = [rng.choice([0.5, 1.0, 3.0]) if weighted else 1.0 for _ in pool]
        prompt = [{"role": "system", "content": "the calm sea " * 4}, {"role": "user", "content": f"Tell {number}"}]
        rows.append({"id": str(number), "prompt": prompt, "responses": pool, "weights": weights})
    return load_groups(Dataset.from_list(rows))


def formula(model, groups, aggregation, chosen=None, means=None) -> torch.Tensor:
    """The sums of `docs/loss.md`. A response's NLL and L are sums over its sequences, each in its own forward."""
    compute = plain_compute(model)
    total, units = torch.zeros(()), 0.0
    for number, group in enumerate(groups):
        every = ENCODER.encode_responses(group["prompt"], group["responses"])
        lengths = [sum(pair.trained_length for pair in sequences) for sequences in every]
        kept = range(len(every)) if chosen is None else chosen[number]
        mean = sum(lengths) / len(lengths)
        mean_weight = sum(group["weights"]) / len(every) if means else None
        mean_weight = mean_weight or sum(group["weights"][index] for index in kept) / len(kept)
        for index in kept:
            nll = sum(
                compute({"input_ids": torch.tensor([pair.input_ids])}, shifted(pair)).sum() for pair in every[index]
            )
            weight = group["weights"][index]
            if aggregation == "token":
                total, units = total + weight * nll, units + weight * lengths[index]
            elif aggregation == "prompt":
                total, units = total + weight * nll / (mean * len(kept) * mean_weight), units + 1 / len(kept)
            else:
                total, units = total + weight * nll / lengths[index], units + weight
    return total / units


def step(model, backend, layout, rows, row_length, micro=1) -> torch.Tensor:
    collator = GroupedResponseCollator(
        TOKENIZER, layout=layout, row_length=row_length, packing=layout == "shared_prefix"
    )
    batches = [Rows.from_batch(collator(rows[place : place + micro])) for place in range(0, len(rows), micro)]
    units = torch.stack([batch.units.sum() for batch in batches]).sum()
    compute = TokenNLL(model).bound(model)
    parts = [step_loss(backend.token_nll(model, batch, compute), batch.loss_weights, units) for batch in batches]
    return torch.stack(parts).sum()


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(0, 9999),
    st.sampled_from(["token", "prompt", "response"]),
    st.sampled_from([*BACKENDS, "expanded"]),
    st.sampled_from([0, 40, 400]),
    st.integers(1, 2),
)
def test_a_step_is_that_of_one_sequence_at_a_time(seed, aggregation, way, room, micro):
    groups = make_groups(seed)
    options = {"selector": "all", "loss_aggregation": aggregation}
    whole = prepared(groups, **options)
    row_length = max(max(sequence_lengths(row)) for row in whole) + room
    rows = prepared(groups, row_length=row_length, **options)
    assert all(len(row["input_ids"]) <= row_length for row in rows)
    reference = tiny.llama(TOKENIZER)
    wanted, wanted_gradient = gradient(reference, lambda: formula(reference, groups, aggregation))
    model = tiny.llama(TOKENIZER)
    backend = ExpandedBackend() if way == "expanded" else BACKENDS[way](model.config)
    backend.prepare_model(model)
    layout = "expanded" if way == "expanded" else "shared_prefix"
    found, found_gradient = gradient(model, lambda: step(model, backend, layout, rows, row_length, micro))
    assert abs(found / wanted - 1) < 1e-5
    assert (found_gradient - wanted_gradient).norm() < 1e-4 * wanted_gradient.norm()


def prepared(groups: Dataset, max_length=None, tokenizer=TOKENIZER, **options) -> list[dict]:
    given = MultiResponseOptions(**options)
    rows, _ = prepare_groups(groups, tokenizer, given, max_length=max_length, seed=3, split_rows=True)
    return list(rows)


@pytest.mark.parametrize("aggregation", ["token", "prompt", "response"])
@pytest.mark.parametrize("room", [0, 60])
def test_an_epoch_draws_responses_with_all_their_sequences(aggregation, room):
    groups = make_groups(4, responses=6, turns=3)
    whole = prepared(groups, selector="all")
    pools = [responses_of(row) for row in whole]
    assert max(len(own) for pool in pools for own in pool) == 3
    longest = max(len(row["input_ids"]) for row in whole)
    options = {"selector": "random_k", "k": 2, "redraw": "epoch", "loss_aggregation": aggregation}
    rows = prepared(groups, row_length=longest - room, **options)
    redraw, model = EpochDraws(aggregation), tiny.llama(TOKENIZER)
    backend = BACKENDS["sdpa"](model.config)
    seen = set()
    for epoch in range(3):
        redraw.epoch.fill_(epoch)
        drawn = [redraw(row) for row in rows]
        assert all(len(part["input_ids"]) <= len(row["input_ids"]) for part, row in zip(drawn, rows, strict=True))
        names = [row["prompt_name"] for row in rows]
        counts = dict.fromkeys(names, 0)
        for name, part in zip(names, drawn, strict=True):
            counts[name] += count_responses(part)
        assert list(counts.values()) == [min(2, len(group["responses"])) for group in groups]
        texts = [own[0].input_ids.tolist() for part in drawn for own in responses_of(part)]
        chosen = [[place for place, own in enumerate(pool) if own[0].input_ids.tolist() in texts] for pool in pools]
        seen.add(str(chosen))
        backend.prepare_model(model)
        with torch.no_grad():
            found = step(model, backend, "shared_prefix", drawn, longest)
            backend.restore_model(model)
            wanted = formula(model, groups, aggregation, chosen, means=True)
        assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    assert len(seen) > 1


def test_a_draw_that_fits_no_row_names_the_remedy():
    groups = make_groups(4, responses=6, turns=3)
    longest = max(max(sequence_lengths(row)) for row in prepared(groups, selector="all"))
    with pytest.raises(
        ValueError, match=r"A response of \d+ tokens with its prompt does not fit row_length=\d+: raise"
    ):
        prepared(groups, selector="random_k", k=1, redraw="epoch", row_length=longest)


def test_a_response_is_dropped_if_any_of_its_sequences_is_too_long(caplog):
    rows = [
        {
            "prompt": "Tell me",
            "responses": [
                [
                    {"role": "assistant", "content": "apple", "reasoning_content": "sea " * 40},
                    {"role": "user", "content": "more"},
                    {"role": "assistant", "content": "pear"},
                ],
                [{"role": "assistant", "content": "plum"}],
            ],
        }
    ]
    whole = prepared(load_groups(Dataset.from_list(rows)), selector="all")[0]
    first, second, single = sequence_lengths(whole)
    assert first > second > single
    assert whole["segment_responses"] == [0, 0, 1]
    kept = prepared(load_groups(Dataset.from_list(rows)), selector="all", max_length=first - 1)[0]
    assert (kept["segment_responses"], sequence_lengths(kept)) == ([0], [single])
    assert "dropped 1 pairs longer than" in caplog.text
    conversation = prepared(
        load_groups(Dataset.from_list(rows)), selector="all", turn_context="conversation", max_length=first - 1
    )[0]
    assert count_responses(conversation) == 2


def test_a_template_that_keeps_everything_gives_the_rows_of_a_conversation():
    tokenizer = tiny.tokenizer()
    groups = make_groups(11, count=4)
    plain = load_groups(
        Dataset.from_list(
            [
                {
                    **group,
                    "responses": [[{k: m[k] for k in ("role", "content")} for m in r] for r in group["responses"]],
                }
                for group in groups
            ]
        )
    )
    found = [
        prepared(plain, tokenizer=tokenizer, selector="all", turn_context=context)
        for context in ("inference", "conversation")
    ]
    assert found[0] == found[1]
    assert max(len(row["segment_lengths"]) for row in found[0]) == max(map(len, plain["responses"]))


def trainer_of(tmp_path, groups, held_out=None, **changes) -> MultiResponseSFTTrainer:
    given = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no"}
    given |= {"logging_steps": 1, "max_steps": 2, "per_device_train_batch_size": 2, "gradient_checkpointing": False}
    given |= {"disable_tqdm": True, "selector": "all", "max_length": 512, "learning_rate": 1e-2}
    return MultiResponseSFTTrainer(
        model=tiny.llama(TOKENIZER),
        args=MultiResponseSFTConfig(**given | changes),
        train_dataset=groups,
        eval_dataset=held_out,
        processing_class=TOKENIZER,
    )


@pytest.mark.slow
def test_a_run_in_trl(tmp_path, caplog):
    """Both layouts take the same steps, after the proof on a row of several turns; turns, not pairs, are more rows."""
    caplog.set_level(logging.INFO, "mrt_plugin")
    held_out = make_groups(8, weighted=False).map(lambda row: {"prompt": [{"role": "user", "content": row["id"]}]})
    logs = {}
    for layout in ("shared_prefix", "expanded"):
        trainer = trainer_of(tmp_path / layout, make_groups(5, weighted=False), held_out, layout=layout)
        trainer.train()
        measured = trainer.evaluate()["eval_loss"]
        token, _ = held_out_nll(trainer.model, ENCODER, held_out)
        assert measured == pytest.approx(token.value, rel=1e-4), "the same contexts as `mrt evaluate`"
        logs[layout] = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logs["shared_prefix"]] == pytest.approx(
        [entry["loss"] for entry in logs["expanded"]], rel=1e-4
    )
    assert all(entry["prompt_tokens_saved_share"] > 0.3 for entry in logs["shared_prefix"])
    mean = sum(map(len, make_groups(5, weighted=False)["responses"])) / 2
    assert all(entry["responses_per_prompt"] == pytest.approx(mean) for entry in logs["shared_prefix"])
    assert "context that inference does not have" not in caplog.text
    other = trainer_of(tmp_path / "conversation", make_groups(5, weighted=False), turn_context="conversation")
    other.train()
    assert other.state.log_history[0]["loss"] != pytest.approx(logs["expanded"][0]["loss"], rel=1e-6)


def test_likelihoods_and_gradients_are_sums_over_the_turns():
    groups, model = make_groups(5, weighted=False), tiny.llama(TOKENIZER)
    every = [ENCODER.encode_responses(group["prompt"], group["responses"]) for group in groups]
    compute, wanted = plain_compute(model), []
    for sequences in (own for pool in every for own in pool):
        nll = sum(compute({"input_ids": torch.tensor([pair.input_ids])}, shifted(pair)).sum() for pair in sequences)
        wanted.append(float(nll))
    found = response_nll(model, ENCODER, groups)
    assert found.nll == pytest.approx(wanted, rel=1e-5)
    assert found.tokens.tolist() == [sum(pair.trained_length for pair in own) for pool in every for own in pool]
    measured = measure(model, ENCODER, groups)
    assert [nll for group in measured.groups for nll in group.nll] == pytest.approx(wanted, rel=1e-5)
    pool = max(every, key=lambda pool: max(map(len, pool)))
    many = max(pool, key=len)
    together, apart = gradient_products(model, [[many], [[pair] for pair in many]])
    assert len(many) > 1
    assert together[0, 0] == pytest.approx(apart.sum(), rel=1e-4)


def test_costs_are_those_of_a_row():
    conversations = [conversation(random.Random(number), 3) for number in range(4)]
    pool = ENCODER.encode_responses("Tell me", conversations)
    costs = token_costs([pool], "shared_prefix")
    row = prepared(
        load_groups(Dataset.from_list([{"prompt": "Tell me", "responses": conversations}])),
        selector="all",
    )[0]
    assert costs.prompt + 4 * costs.response == pytest.approx(len(row["input_ids"]))
    assert costs.prompt == min(own[0].trained.index(True) for own in pool) - 1


def test_sampled_prompts_are_those_of_first_turns():
    rows, _ = prepare_groups(make_groups(6), TOKENIZER, MultiResponseOptions(selector="all"), max_length=None, seed=0)
    prompts = pick_prompts(rows, 10)
    asked = {tuple(ENCODER.encode_prompt(group["prompt"])) for group in make_groups(6)}
    assert {prompt.tokens for prompt in prompts} == asked
    assert DRAW not in rows.column_names
