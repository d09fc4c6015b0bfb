"""Exact distances of a model to a known truth, and `mrt evaluate --truth`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.cli import CliRunner

from mrt_plugin.cli import app
from mrt_plugin.encoding import Encoder
from mrt_plugin.evaluation.truth import Truth, distance_of, read_truth, truth_distance
from mrt_plugin.groups.problems import DataError
from mrt_plugin.models.log_likelihood import log_likelihoods

PROMPT = "Name a fruit that grows on trees."


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(tiny.tokenizer())


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny.llama(seed=1)


class TestDistance:
    def test_of_known_distributions(self) -> None:
        truth = Truth("", ("a", "b", "c", "d"), (0.4, 0.3, 0.2, 0.1))
        p = np.array(truth.probabilities)
        entropy = -(p * np.log(p)).sum()
        uniform = distance_of([np.log(np.full(4, 0.25))], [truth])
        assert uniform.kl == pytest.approx(np.log(4) - entropy)
        assert uniform.elsewhere == pytest.approx(0)
        assert uniform.coverage == pytest.approx(1)
        halved = distance_of([np.log(p * 0.499)], [truth])
        assert halved.kl == pytest.approx(-np.log(0.499))
        assert halved.elsewhere == pytest.approx(0.501)
        assert halved.coverage == 0
        lottery = distance_of([np.log([0.97, 0.01, 0.01, 0.01])], [truth])
        assert lottery.coverage == pytest.approx(0.4)
        assert lottery.kl > uniform.kl

    def test_a_mode_that_the_truth_excludes_costs_nothing(self) -> None:
        truth = Truth("", ("a", "b"), (1.0, 0.0))
        assert distance_of([np.array([0.0, -np.inf])], [truth]).kl == 0

    def test_is_the_mean_over_prompts(self, model: torch.nn.Module, encoder: Encoder) -> None:
        truths = [
            Truth(PROMPT, ("An apple.", "A pear."), (0.7, 0.3)),
            Truth("What is the capital of Italy?", ("Rome", "It is Rome.", "Paris"), (0.5, 0.5, 0.0)),
        ]
        both = truth_distance(model, encoder, truths)
        single = [truth_distance(model, encoder, [truth]) for truth in truths]
        assert both.kl == pytest.approx((single[0].kl + single[1].kl) / 2, rel=1e-5)
        by_hand = sum(
            p * (np.log(p) - log_likelihoods(model, [encoder.encode(PROMPT, mode)])[0])
            for mode, p in zip(truths[0].modes, truths[0].probabilities, strict=True)
        )
        assert single[0].kl == pytest.approx(by_hand, rel=1e-5)
        assert 0 < both.elsewhere < 1


ROW = {"prompt": PROMPT, "modes": ["An apple.", "A pear."], "probabilities": [0.7, 0.3]}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class TestRead:
    def test_is_in_the_order_of_the_prompts(self, tmp_path: Path) -> None:
        other = {**ROW, "prompt": "Name another.", "probabilities": [0.5, 0.5]}
        path = write(tmp_path / "truth.jsonl", ROW, other, {**ROW, "prompt": "Not asked."})
        found = read_truth(path, ["Name another.", PROMPT])
        assert found == [
            Truth("Name another.", ("An apple.", "A pear."), (0.5, 0.5)),
            Truth(PROMPT, ("An apple.", "A pear."), (0.7, 0.3)),
        ]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"modes": "An apple."}, "a truth has `prompt`, `modes` and `probabilities`"),
            ({"modes": ["A pear.", "A pear."]}, "a right response is there twice"),
            ({"probabilities": [1.0]}, "write one for each of `modes`"),
            ({"probabilities": [0.7, 0.4]}, "1 in all"),
            ({"probabilities": [1.3, -0.3]}, "none negative"),
            ({"probabilities": ["0.7", "0.3"]}, "write one for each"),
        ],
    )
    def test_mistakes_name_the_line(self, change: dict[str, Any], words: str, tmp_path: Path) -> None:
        path = write(tmp_path / "truth.jsonl", ROW, ROW | change)
        with pytest.raises(DataError, match=words) as found:
            read_truth(path, [PROMPT])
        assert "line 2" in str(found.value)

    def test_a_prompt_without_a_truth(self, tmp_path: Path) -> None:
        path = write(tmp_path / "truth.jsonl", ROW)
        with pytest.raises(ValueError, match=r"no truth for 1 of 2 prompts \(first: 'Who\?'\): add them"):
            read_truth(path, [PROMPT, "Who?"])


class TestCommand:
    def test_measures_compares_and_shows_the_prompt_in_the_middle(self, tiny_model_dir: str, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        rows = [{**ROW, "prompt": f"Name fruit {number}."} for number in range(7)]
        truth = write(tmp_path / "truth.jsonl", *rows)
        data = write(tmp_path / "data.jsonl", *({"prompt": row["prompt"], "responses": row["modes"]} for row in rows))
        other = tiny.model_dir(tmp_path / "other", seed=5)
        named = ["--model", f"one={tiny_model_dir}", "--model", f"two={other}", "--output", str(tmp_path / "drawn")]
        command = ["evaluate", "--data", str(data), "--truth", str(truth), *named, "--m", "2", "--max-tokens", "4"]
        done = CliRunner().invoke(app, [*command, "--no-probe", "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)

        changes = {}
        for name, path in (("one", tiny_model_dir), ("two", other)):
            model, encoder = AutoModelForCausalLM.from_pretrained(path), Encoder(AutoTokenizer.from_pretrained(path))
            for row, measured in zip(rows, found["per_prompt"], strict=True):
                log_q = [log_likelihoods(model, [encoder.encode(row["prompt"], mode)])[0] for mode in row["modes"]]
                kl = sum(p * (np.log(p) - q) for p, q in zip(row["probabilities"], log_q, strict=True))
                assert measured["models"][name]["truth_kl"] == pytest.approx(kl, rel=1e-5)
                outside = 1 - np.exp(log_q).sum()
                assert measured["models"][name]["truth_elsewhere"] == pytest.approx(outside, rel=1e-5)
                changes.setdefault(row["prompt"], []).append(kl)
        middle = sorted(changes, key=lambda prompt: changes[prompt][1] - changes[prompt][0])[3]
        assert found["example"]["prompt"] == middle
        assert [answer["probability"] for answer in found["example"]["answers"]] == [0.7, 0.3]
        assert {row["measure"] for row in found["differences"]} >= {"truth_kl", "truth_coverage", "truth_elsewhere"}

        shown = CliRunner().invoke(app, [*command, "--no-probe"])
        assert shown.exit_code == 0, shown.output
        for words in ("KL to the truth", "right answers covered", "An apple."):
            assert words in shown.stdout

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--truth", "nothing.jsonl", "--model", "MODEL"], "there is no such file: nothing.jsonl"),
            (["--truth", "TRUTH", "--pool", "POOL"], "A truth needs a model's probabilities"),
            (["--truth", "TRUTH", "--model", "MODEL", "--report", "TRUTH"], "--truth"),
        ],
    )
    def test_mistakes(self, more: list[str], words: str, tiny_model_dir: str, tmp_path: Path) -> None:
        pool = {"prompt": PROMPT, "responses": ["A pear."]}
        places = {
            "MODEL": tiny_model_dir,
            "TRUTH": str(write(tmp_path / "truth.jsonl", ROW)),
            "POOL": str(write(tmp_path / "pool.jsonl", pool)),
        }
        command = ["evaluate", "--data", places["POOL"], *(places.get(word, word) for word in more)]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1
        assert words in " ".join(done.output.split())
