"""`redraw: epoch`, adaptive K and softmax weights, as they reach the trainer."""

import logging
from collections import Counter

import pytest
from datasets import Dataset
from helpers import tiny

from mrt_plugin import MultiResponseSFTConfig, MultiResponseSFTTrainer, load_groups, select
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import build_group_row, count_responses, expand, sequence_lengths, take_responses
from mrt_plugin.options import MultiResponseOptions, check_options
from mrt_plugin.scoring import softmax_weights
from mrt_plugin.trainer.prepare import prepare_groups
from mrt_plugin.trainer.processes import with_fillers
from mrt_plugin.trainer.redraw import DRAW, EpochDraws, draw_group, draw_responses, rows_to_draw

WORDS = ["apple", "pear", "plum", "cherry", "small brown dog", "calm sea tonight", "bright moon over the water"]


def make_groups(count: int = 6, size: int = 7, first: int = 0) -> Dataset:
    return load_groups(
        Dataset.from_list(
            [
                {
                    "id": str(n),
                    "prompt": "Name a fruit. " * (1 + n % 3) + f"Number {n}:",
                    "responses": [f" {WORDS[(n + j) % 7]} {'and a plum ' * (j % 3)}{j}" for j in range(size)],
                    "scores": [(3 * j + n) % 5 / 4 for j in range(size)],
                }
                for n in range(first, first + count)
            ]
        )
    )


def pairs_of(count: int) -> list[Pair]:
    return [Pair([1, 2, 3, *range(10, 12 + j)], [False] * 3 + [True] * (2 + j)) for j in range(count)]


class TestDraw:
    def test_every_response_has_the_same_chance(self) -> None:
        row = build_group_row(pairs_of(6))
        drawn = Counter(index for epoch in range(3000) for index in draw_responses(row, 2, seed=1, epoch=epoch))
        assert set(drawn) == set(range(6))
        assert all(900 < count < 1100 for count in drawn.values())

    def test_it_depends_on_nothing_else(self) -> None:
        row = build_group_row(pairs_of(6))
        shuffled = take_responses(row, [3, 5, 0, 1, 4, 2])
        for epoch in range(20):
            ours = draw_group(row, 3, seed=7, epoch=epoch, aggregation="token")
            theirs = draw_group(shuffled, 3, seed=7, epoch=epoch, aggregation="token")
            assert sorted(sequence_lengths(ours)) == sorted(sequence_lengths(theirs))
        assert draw_responses(row, 3, seed=7, epoch=0) != draw_responses(row, 3, seed=8, epoch=0)
        assert draw_responses(row, 6, seed=7, epoch=0) == list(range(6))

    def test_repeated_responses_are_told_apart(self) -> None:
        row = build_group_row([Pair([1, 2, 3], [False, False, True])] * 5)
        assert len(draw_responses(row, 2, seed=0, epoch=0)) == 2

    @pytest.mark.parametrize("aggregation", ["token", "prompt", "response"])
    def test_the_loss_is_that_of_the_group_drawn(self, aggregation: str) -> None:
        pairs, weights = pairs_of(5), [1.0, 2.0, 0.5, 1.0, 3.0]
        means = (sum(pair.trained_length for pair in pairs) / 5, sum(weights) / 5)
        whole = build_group_row(pairs, aggregation, weights, *means)  # type: ignore[arg-type]
        for epoch in range(5):
            chosen = draw_responses(whole, 2, seed=0, epoch=epoch)
            drawn = draw_group(whole, 2, seed=0, epoch=epoch, aggregation=aggregation)  # type: ignore[arg-type]
            alone = build_group_row([pairs[j] for j in chosen], aggregation, [weights[j] for j in chosen], *means)  # type: ignore[arg-type]
            # Which of the prompt's tokens are shared may differ; what is trained, and what it weighs, may not.
            assert [w for w in drawn["loss_weights"] if w] == pytest.approx([w for w in alone["loss_weights"] if w])
            assert drawn["segment_units"] == pytest.approx(alone["segment_units"])

    @pytest.mark.parametrize("expanded", [False, True])
    @pytest.mark.parametrize(("row_length", "count"), [(None, 1), (27, 1), (20, 2), (10, 3)])
    def test_a_row_stands_for_the_longest_it_can_come_to_hold(self, row_length, count, expanded) -> None:
        pool = build_group_row(pairs_of(6), "prompt")  # a prompt of 3 tokens, responses of 2 to 7
        rows = rows_to_draw(pool, 3, seed=5, row_length=row_length, expanded=expanded)
        assert len(rows) == count
        redraw = EpochDraws("prompt")
        for epoch in range(30):
            redraw.epoch.fill_(epoch)
            parts = [redraw({**row, DRAW: draw}) for row, draw in rows]
            assert sum(map(count_responses, parts)) == 3
            assert sum(sum(part["segment_units"]) for part in parts) == pytest.approx(1)
            drawn = draw_group(pool, 3, seed=5, epoch=epoch, aggregation="prompt")
            labels = [label for part in parts for label in part["labels"] if label != -100]
            assert labels == [label for label in drawn["labels"] if label != -100]
            for part, (row, _) in zip(parts, rows, strict=True):
                assert len(part["input_ids"]) <= len(row["input_ids"]) <= (row_length or 100)
                assert (sum(part["shared_lengths"]) == 0) == (expanded or len(part["segment_lengths"]) == 1)

    def test_a_pair_that_fits_no_row(self) -> None:
        with pytest.raises(ValueError, match="A response of 10 tokens with its prompt does not fit row_length=9"):
            rows_to_draw(build_group_row(pairs_of(6)), 3, seed=0, row_length=9)


def trainer_of(tmp_path, name="out", **overrides) -> MultiResponseSFTTrainer:
    settings = {
        "output_dir": str(tmp_path / name),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 2,
        "num_train_epochs": 3,
        "gradient_checkpointing": False,
        "max_length": 512,
        "disable_tqdm": True,
        "prefix_check": False,
        "selector": "random_k",
        "k": 2,
        "redraw": "epoch",
    }
    groups = overrides.pop("train_dataset", None)
    return MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=MultiResponseSFTConfig(**settings | overrides),
        train_dataset=make_groups() if groups is None else groups,
        processing_class=tiny.tokenizer(),
    )


class Seen:
    """Records what every batch trained: per epoch, how often each sequence of trained tokens came."""

    def __init__(self, trainer: MultiResponseSFTTrainer) -> None:
        self.trainer, self.epochs = trainer, {}
        inner = trainer.compute_loss

        def compute_loss(model, inputs, *args, **kwargs):
            epoch = int(trainer.state.epoch + 1e-6)
            for labels in inputs["shift_labels"].tolist():
                self.epochs.setdefault(epoch, []).append(tuple(label for label in labels if label != -100))
            return inner(model, inputs, *args, **kwargs)

        trainer.compute_loss = compute_loss


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class TestRedrawInTraining:
    def test_each_epoch_another_draw_and_the_same_steps(self, tmp_path) -> None:
        trainer = trainer_of(tmp_path, layout="expanded", row_packing=False)
        seen = Seen(trainer)
        trainer.train()
        assert trainer.state.global_step == trainer.state.max_steps == 9
        assert {epoch: len(rows) for epoch, rows in seen.epochs.items()} == {0: 12, 1: 12, 2: 12}
        first, second, third = (set(seen.epochs[epoch]) for epoch in range(3))
        assert first != second != third != first
        assert len(first | second | third) > 20

    @pytest.mark.processes
    @pytest.mark.parametrize("persistent", [False, True])
    def test_workers_draw_the_same(self, tmp_path, persistent) -> None:
        alone = trainer_of(tmp_path, "alone")
        alone.train()
        several = trainer_of(tmp_path, "several", dataloader_num_workers=2, dataloader_persistent_workers=persistent)
        several.train()
        assert losses(several) == losses(alone)

    @pytest.mark.slow
    def test_a_resumed_run_draws_what_an_undisturbed_one_does(self, tmp_path) -> None:
        whole = trainer_of(tmp_path, "whole")
        whole.train()
        for stop in (4, 6):  # in the middle of the second epoch, and at its end
            name = f"parts {stop}"
            trainer_of(tmp_path, name, save_strategy="steps", save_steps=stop).train()
            resumed = trainer_of(tmp_path, name)
            resumed.train(resume_from_checkpoint=str(tmp_path / name / f"checkpoint-{stop}"))
            assert losses(resumed)[stop:] == pytest.approx(losses(whole)[stop:], rel=1e-5)

    def test_resuming_with_another_pool_is_refused(self, tmp_path) -> None:
        """Also where the response that changed is in no row, and only might be drawn."""
        settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
        trainer_of(tmp_path, **settings).train()
        rows = make_groups().to_list()
        shortest = min(range(7), key=lambda j: len(rows[0]["responses"][j]))
        rows[0]["responses"][shortest] = rows[0]["responses"][shortest][:-1] + "9"
        for changed in ({"train_dataset": load_groups(Dataset.from_list(rows))}, {"k": 3}, {"selection_seed": 5}):
            with pytest.raises(ValueError, match=r"trained on other data, or in other steps \(content"):
                trainer_of(tmp_path, **settings, **changed).train(resume_from_checkpoint=True)

    def test_layouts_agree(self, tmp_path) -> None:
        shared = trainer_of(tmp_path, "shared", layout="shared_prefix", loss_aggregation="prompt")
        expanded = trainer_of(tmp_path, "expanded", layout="expanded", loss_aggregation="prompt")
        shared.train()
        expanded.train()
        assert losses(shared) == pytest.approx(losses(expanded), rel=1e-4)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"redraw": "epoch", "selector": "best_k"}, "needs selector='random_k'"),
            ({"redraw": "epoch", "allocation": "adaptive"}, "allocation='fixed'"),
            ({"redraw": "epoch", "weights": "softmax"}, "takes weights='column'"),
            ({"mean_k": 3.0}, "needs allocation='adaptive'"),
            ({"allocation": "adaptive", "mean_k": 3.0, "target_total": 9}, "give one of them"),
            ({"allocation": "adaptive", "min_k": 3, "max_k": 2}, "max_k is below min_k"),
            ({"allocation": "adaptive", "mean_k": float("inf")}, "finite number"),
            ({"selector": "all", "n": 3}, "keeps every response"),
            ({"weights": "softmax", "weight_temperature": 0.0}, "finite number, above 0"),
        ],
    )
    def test_contradictions(self, options, message) -> None:
        with pytest.raises(ValueError, match=message):
            check_options(MultiResponseOptions(**options))

    def test_rows_prepared_without_it_are_refused(self, tmp_path) -> None:
        rows, _ = prepare_groups(
            make_groups(), tiny.tokenizer(), MultiResponseOptions(selector="all"), max_length=None, seed=0
        )
        with pytest.raises(ValueError, match="the training data was prepared without it"):
            trainer_of(tmp_path, train_dataset=rows)


class TestPrepare:
    def prepared(self, **options):
        return prepare_groups(
            make_groups(), tiny.tokenizer(), MultiResponseOptions(**options), max_length=None, seed=0
        )

    def test_adaptive_k(self, caplog) -> None:
        caplog.set_level(logging.INFO, "mrt_plugin")
        options = {"selector": "random_k", "allocation": "adaptive", "allocation_score": "length", "mean_k": 3.0}
        rows, report = self.prepared(**options)
        assert report.pairs == 18
        chosen = select(make_groups(), seed=0, k=4, **options)
        assert [len(lengths) for lengths in rows["segment_lengths"]] == [len(kept) for kept in chosen["responses"]]
        assert "Set loss_aggregation='prompt'" in caplog.text
        caplog.clear()
        self.prepared(**options, loss_aggregation="prompt")
        assert "Set loss_aggregation='prompt'" not in caplog.text

    def test_rows_that_even_out_the_processes_draw_nothing(self) -> None:
        rows, _ = self.prepared(redraw="epoch", k=2)
        filled = with_fillers(rows, 4)
        assert (len(rows), len(filled)) == (6, 8)
        read = [EpochDraws("token")(row) for row in filled]
        assert [len(row["segment_lengths"]) for row in read] == [2] * 6 + [1] * 2
        assert [sum(row["segment_units"]) > 0 for row in read] == [True] * 6 + [False] * 2

    def test_softmax_weights(self) -> None:
        rows, _ = self.prepared(selector="best_k", k=3, weights="softmax", weight_temperature=0.5)
        chosen = select(make_groups(), "best_k", k=3, seed=0)
        for row, scores in zip(rows, chosen["scores"], strict=True):
            given = list(dict.fromkeys(weight for weight in row["loss_weights"] if weight))
            assert given == pytest.approx(list(dict.fromkeys(softmax_weights(scores, 0.5))))

    def test_softmax_weights_of_a_scorer(self, tmp_path) -> None:
        (tmp_path / "mine.py").write_text(
            "def score(prompt, responses):\n"
            f"    open({str(tmp_path / 'calls')!r}, 'a').write('.')\n"
            "    return [len(r) / 10 for r in responses]\n"
        )
        mine = f"{tmp_path}/mine.py:score"
        rows, _ = self.prepared(selector="best_k", k=2, weights="softmax", scorer=mine)
        assert (tmp_path / "calls").read_text() == "." * 6, "once for each group"
        chosen = select(make_groups(), "best_k", k=2, scorer=mine)
        weights = [max(softmax_weights(scores, 1.0)) for scores in chosen["scores"]]
        assert [max(row["loss_weights"]) for row in rows] == pytest.approx(weights)

    def test_evaluation_keeps_all(self, tmp_path) -> None:
        trainer = MultiResponseSFTTrainer(
            model=tiny.llama(),
            args=MultiResponseSFTConfig(
                output_dir=str(tmp_path),
                report_to="none",
                use_cpu=True,
                bf16=False,
                prefix_check=False,
                allocation="adaptive",
                mean_k=2.0,
                n=5,
                weights="softmax",
                loss_aggregation="prompt",
            ),
            train_dataset=make_groups(),
            eval_dataset=make_groups(3, first=6),
            processing_class=tiny.tokenizer(),
        )
        assert trainer.prepare_reports["train"].pairs == 12
        assert trainer.prepare_reports["eval"].pairs == 21


HEAVY = 10 / 14
"""The vote of the first of five responses with weights 10, 1, 1, 1, 1."""


def heavy_pool(count: int) -> Dataset:
    """Prompts with five responses of equal length, of which the first weighs 10."""
    rows = [
        {"prompt": f"Number {n}:", "responses": [f" {n} is {j}" for j in range(5)], "weights": [10.0, 1, 1, 1, 1]}
        for n in range(count)
    ]
    return load_groups(Dataset.from_list(rows))


def votes(rows: Dataset, read: EpochDraws | None = None) -> tuple[float, float]:
    """The mean vote of a prompt's heavy response, and of its responses together; each response is as long as M."""
    heavy, total, prompts = 0.0, 0.0, set()
    tokenizer = tiny.tokenizer()
    for example in rows:
        row = read(example) if read else example
        for single in expand(row):
            text = tokenizer.decode([token for token in single["labels"] if token != -100])
            vote = sum(single["loss_weights"])
            heavy, total = heavy + vote * ("is 0<" in text), total + vote
        prompts.add(example["prompt_name"])
    return heavy / len(prompts), total / len(prompts)


class TestPromptVotes:
    """`loss_aggregation: prompt` keeps the votes that a pool's weights ask for, whatever is drawn from it."""

    def prepared(self, count: int = 700, max_length: int | None = None, **options) -> Dataset:
        rows, _ = prepare_groups(
            heavy_pool(count),
            tiny.tokenizer(),
            MultiResponseOptions(loss_aggregation="prompt", **options),
            max_length=max_length,
            seed=3,
            split_rows=True,
        )
        return rows

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("options", "tolerance"),
        [
            ({"k": 1}, 0.2),  # a prompt's heavy vote is 0 or 3.57 here: standard error 0.054
            ({"k": 2}, 0.12),
            ({"k": 4}, 0.06),
            ({"k": 5}, 1e-9),
            ({"k": 2, "n": 4}, 0.12),
            ({"k": 2, "row_length": 30}, 0.12),
            ({"k": 2, "allocation": "adaptive", "allocation_score": "length", "mean_k": 2.0}, 0.12),
            ({"k": 2, "redraw": "epoch"}, 0.12),
            ({"k": 2, "n": 4, "redraw": "epoch"}, 0.12),
        ],
    )
    def test_random_draws(self, options, tolerance) -> None:
        heavy, total = votes(self.prepared(selector="random_k", **options), EpochDraws("prompt"))
        assert heavy == pytest.approx(HEAVY, abs=tolerance)
        assert total == pytest.approx(1, abs=tolerance * 1.3)

    def test_all_and_chosen_responses_have_one_vote_per_prompt(self) -> None:
        assert votes(self.prepared(20, selector="all")) == pytest.approx((HEAVY, 1))
        assert votes(self.prepared(20, selector="diverse_k", k=2))[1] == pytest.approx(1)

    def test_every_group_has_one_unit_so_that_a_single_one_keeps_its_weights(self) -> None:
        rows = self.prepared(20, selector="random_k", k=1)
        assert rows["segment_units"][:] == [[1.0]] * 20
        assert sorted({round(sum(weights), 3) for weights in rows["loss_weights"]}) == [0.357, 3.571]
