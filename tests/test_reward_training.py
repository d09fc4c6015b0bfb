"""Reward models: trained with TRL on one part of the prompts, measured on the other, and used as scorers."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import tiny
from helpers.cli import CliRunner
from helpers.selecting import reward_dir, write_lines
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mrt_plugin import load_groups, select
from mrt_plugin.cli import app
from mrt_plugin.scoring import score_groups
from mrt_plugin.scoring.reward_model import encode_conversation
from mrt_plugin.trainer.reward_model import measure_reward_model, score_pairs, split_prompts, train_reward_model
from mrt_plugin.trainer.reward_options import RewardOptions

GOOD, BAD = ["blue", "red", "green"], ["dog", "river", "night"]
QUICK = RewardOptions(learning_rate=3e-3, epochs=6, batch_size=16, seed=1)


def rows(count: int = 40, *, system: bool = False) -> list[dict[str, Any]]:
    """Responses with a score that is the number of colours in them."""
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        prompt: Any = f"Name colour {number}."
        if system:
            prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
        texts = [" ".join(random.choice(GOOD if index < k else BAD) for index in range(3)) for k in (0, 1, 3, 3)]
        order = random.permutation(4)
        responses: list[Any] = [texts[place] for place in order]
        if system:
            responses = [[{"role": "assistant", "content": text}] for text in responses]
        found.append({"prompt": prompt, "responses": responses, "scores": [[0, 1, 3, 3][place] for place in order]})
    return found


def pool(count: int = 40, **how: Any) -> Dataset:
    return load_groups(Dataset.from_list(rows(count, **how)))


def base_dir(folder: Path, family: str | None = "chatml", **how: Any) -> str:
    return tiny.model_dir(folder, tiny.tokenizer(family=None if family == "chatml" else family, **how), hidden=64)


class TestPairs:
    def test_ties_are_left_out_and_counted(self) -> None:
        assert score_pairs([2, 1, 2]) == ([(0, 1), (2, 1)], 1)
        assert score_pairs([1, 1, 1]) == ([], 3)
        assert score_pairs([1]) == ([], 0)

    def test_the_split_depends_on_prompt_and_seed_alone(self) -> None:
        groups = pool(200)
        first, rest = split_prompts(groups, 0.5, 3)
        assert len(first) + len(rest) == 200
        assert 70 < len(first) < 130
        again, _ = split_prompts(groups.select(range(199, -1, -1)), 0.5, 3)
        assert set(again["prompt"]) == set(first["prompt"])
        assert set(split_prompts(groups.select(range(50)), 0.5, 3)[0]["prompt"]) <= set(first["prompt"])
        assert set(split_prompts(groups, 0.5, 4)[0]["prompt"]) != set(first["prompt"])

    def test_a_pair_is_encoded_as_it_is_scored(self, tmp_path: Path) -> None:
        """Of another family: its own template and tokens, whatever wrote the responses."""
        for family in ("gemma", "llama3"):
            tokenizer = tiny.tokenizer(family=family)
            ids = encode_conversation(tokenizer, "Hi", "a response")["input_ids"]
            assert tokenizer.decode(ids) == tokenizer.apply_chat_template(
                [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a response"}], tokenize=False
            )

    def test_a_template_that_refuses_a_role(self) -> None:
        tokenizer = tiny.tokenizer(chat_template="{{ raise_exception('System role not supported') }}")
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        with pytest.raises(ValueError, match="refuses a conversation of system, user, assistant: System role"):
            encode_conversation(tokenizer, messages, "a response")


@pytest.mark.slow
class TestTraining:
    @pytest.mark.parametrize("lora_r", [0, 8])
    def test_it_learns_and_scores_prompts_it_has_not_seen(self, tmp_path: Path, lora_r: int) -> None:
        options = RewardOptions(**{**vars(QUICK), "lora_r": lora_r})
        found = train_reward_model(pool(), base_dir(tmp_path / "base"), tmp_path / "reward", options)
        assert found.training.prompts + found.held_out.prompts == 40
        assert found.held_out.ties == found.held_out.prompts
        assert found.held_out.pairs == 5 * found.held_out.prompts
        assert found.trained_pairs == 5 * found.training.prompts
        assert found.held_out.accuracy is not None
        assert found.held_out.accuracy > 0.8
        assert found.held_out.interval is not None
        assert found.held_out.interval[0] > 0.5
        assert found.held_out.agreement.accuracy == pytest.approx(found.held_out.accuracy, abs=0.02)
        _, rest = split_prompts(pool(), 0.5, 1)
        chosen = select(rest, "best_k", k=1, scorer=str(tmp_path / "reward"))
        words = [set(response[0].split()) for response in chosen["responses"]]
        assert np.mean([found <= set(GOOD) for found in words]) > 0.7

    def test_the_loss_is_that_of_bradley_and_terry(self, tmp_path: Path) -> None:
        """One step over all pairs: the reported loss is the mean of -log sigmoid of the base's score differences."""
        groups = load_groups(Dataset.from_list(rows(6)))
        name = reward_dir(tmp_path / "base")
        options = RewardOptions(batch_size=64, learning_rate=1e-9, max_pairs=100)
        found = train_reward_model(groups, name, tmp_path / "reward", options)
        first, _ = split_prompts(groups, 0.5, 0)
        losses = []
        for group, scores in zip(first, score_groups(first, name)["scores"], strict=True):
            for better, worse in score_pairs(group["scores"])[0]:
                losses.append(np.logaddexp(0, scores[worse] - scores[better]))
        assert found.steps == 1
        assert found.loss == pytest.approx(np.mean(losses), abs=1e-4)

    @pytest.mark.parametrize("family", ["gemma", "pair of texts", "no padding token", "system"])
    def test_a_base_of_any_family(self, tmp_path: Path, family: str) -> None:
        if family == "pair of texts":
            base = reward_dir(tmp_path / "base", chat=False)
        elif family == "gemma":
            base = base_dir(tmp_path / "base", "gemma")
        else:
            base = base_dir(tmp_path / "base", pad_token=None if family == "no padding token" else "<|pad|>")
        groups = pool(system=family == "system")
        found = train_reward_model(groups, base, tmp_path / "reward", QUICK)
        assert found.held_out.accuracy is not None
        assert found.held_out.accuracy > 0.7
        saved = AutoTokenizer.from_pretrained(tmp_path / "reward")
        assert saved.chat_template == AutoTokenizer.from_pretrained(base).chat_template
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
        assert model.config.num_labels == 1
        assert model.dtype == torch.float32

    def test_scoring_its_own_prompts_is_noticed(self, tmp_path: Path, caplog: Any) -> None:
        caplog.set_level(logging.WARNING, "mrt_plugin")
        one = RewardOptions(epochs=0.1)
        train_reward_model(pool(10), base_dir(tmp_path / "base"), tmp_path / "reward", one)
        assert "was trained on" not in caplog.text
        first, rest = split_prompts(pool(10), 0.5, 0)
        score_groups(rest, str(tmp_path / "reward"))
        assert "was trained on" not in caplog.text
        score_groups(pool(10), str(tmp_path / "reward"))
        assert f"was trained on {len(first)} of these 10 prompts" in caplog.text

    def test_the_command(self, tmp_path: Path) -> None:
        data, base = write_lines(tmp_path / "pool.jsonl", rows()), base_dir(tmp_path / "base")
        how = ["--model", base, "--output", tmp_path / "reward", "--held-out-output", tmp_path / "rest.jsonl"]
        more = ["--epochs", "6", "--learning-rate", "3e-3", "--batch-size", "16", "--lora-r", "4"]
        done = CliRunner().invoke(app, ["reward-model", str(data), *map(str, how), *more, "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["held_out"]["prompts"] == len((tmp_path / "rest.jsonl").read_text().splitlines())
        assert found["options"]["lora_r"] == 4
        scored = measure_reward_model(load_groups(tmp_path / "rest.jsonl"), str(tmp_path / "reward"), 0)
        assert scored.accuracy == pytest.approx(found["held_out"]["accuracy"])
        shown = CliRunner().invoke(app, ["reward-model", str(data), *map(str, how), "--epochs", "0.1"])
        assert "Next: mrt select" in shown.output
        assert "held out" in shown.output


class TestRefusals:
    def test_no_scores(self, tiny_model_dir: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no scores to learn from"):
            train_reward_model(pool().remove_columns("scores"), tiny_model_dir, tmp_path / "reward")

    def test_all_scores_equal(self, tiny_model_dir: str, tmp_path: Path) -> None:
        groups = load_groups(Dataset.from_list([{**row, "scores": [1, 1, 1, 1]} for row in rows(10)]))
        with pytest.raises(ValueError, match="differ in score: there is nothing to learn"):
            train_reward_model(groups, tiny_model_dir, tmp_path / "reward")

    def test_all_pairs_too_long(self, tiny_model_dir: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="longer than max_length=3"):
            train_reward_model(pool(10), tiny_model_dir, tmp_path / "reward", RewardOptions(max_length=3))

    def test_one_prompt(self, tiny_model_dir: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="1 prompts, of which none is left to"):
            train_reward_model(pool(1), tiny_model_dir, tmp_path / "reward")

    def test_no_such_base(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="could not be loaded as the base of a reward model"):
            train_reward_model(pool(10), "nowhere/nothing", tmp_path / "reward")

    def test_the_tokenizer_of_another_family(self, tmp_path: Path) -> None:
        name = reward_dir(tmp_path / "reward")
        more = tiny.tokenizer()
        more.add_tokens([f"<extra {number}>" for number in range(1024)])
        more.save_pretrained(name)
        with pytest.raises(ValueError, match="the folder holds another model's tokenizer"):
            score_groups(pool(2), name)

    def test_the_model_may_not_replace_its_base(self, tmp_path: Path) -> None:
        data, base = write_lines(tmp_path / "pool.jsonl", rows(4)), base_dir(tmp_path / "base")
        done = CliRunner().invoke(app, ["reward-model", str(data), "--model", base, "--output", base])
        assert done.exit_code == 1
        assert "would be one of the files of the model" in done.output
