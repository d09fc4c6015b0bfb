"""The experiments of `recipes/objectives` and `recipes/alignment`: exact measures, and runs as they are planned."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mrt_plugin.demo.run import DemoSettings, make_model
from recipes.alignment import plans
from recipes.alignment.__main__ import main as alignment
from recipes.objectives import report, train
from recipes.objectives.train import Run
from recipes.objectives.tuning import tuned
from recipes.objectives.world import HELD_OUT, POOL, draw_data, load_base, measure

RATES = {"nll": 1e-3, "pro": 1e-3}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    (folder / "0").mkdir()
    make_model(folder / "0", DemoSettings(seed=0, pretraining_steps=2), lambda step: None)
    return folder


@pytest.mark.slow
def test_measures_are_those_of_every_answer_scored_alone(bases: Path) -> None:
    model, tokenizer = load_base(bases / "0" / "model")
    held_out = draw_data(0).held_out[:3]
    found = measure(model.eval(), tokenizer, held_out)
    rows = []
    for prompt in held_out:
        chances = []
        for mode in prompt.modes:
            chat = [{"role": "user", "content": prompt.prompt}, {"role": "assistant", "content": mode}]
            whole = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False)
            begun = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
            end = int((whole[0] == tokenizer.eos_token_id).nonzero()[-1]) + 1
            with torch.no_grad():
                log_p = model(whole[:, :end]).logits.log_softmax(-1)
            places = torch.arange(len(begun), end)
            chances.append(log_p[0, places - 1, whole[0, places]].sum().item())
        q, p = np.exp(chances), np.array(prompt.probabilities)
        share = q / q.sum()
        rows.append(
            (
                (p * (np.log(p) - np.array(chances))).sum(),
                -(p * np.array(chances)).sum(),
                1 - q.sum(),
                (q * p / p.max()).sum(),
                -(share * np.log(share)).sum(),
            )
        )
    expected = dict(zip(("kl", "nll", "elsewhere", "reward", "entropy"), np.mean(rows, axis=0), strict=True))
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_run_is_measured_and_not_repeated(bases: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bases").symlink_to(bases)
    run = Run("pro", "random_k", 2, prompts=8, steps=1, learning_rate=1e-3, seed=0)
    path = tmp_path / "runs.jsonl"
    train.run_all([run], path, lambda *_: None)
    (record,) = train.read(path)
    assert train.run_of(record) == run
    path.write_text(path.read_text() + '{"half')
    train.run_all([run], path, lambda *_: pytest.fail("trained again") if _[1] < _[2] else None)
    assert train.read(path) == [record]


def test_data_are_scored_and_apart() -> None:
    data = draw_data(0)
    assert len(data.held_out) == HELD_OUT
    assert {group["prompt"] for group in data.groups}.isdisjoint(prompt.prompt for prompt in data.held_out)
    assert all(len(group["scores"]) == POOL and min(group["scores"]) > 0 for group in data.groups)


def test_plans_hold_fixed_what_they_say() -> None:
    assert {run.prompts * run.k for run in plans.prompts(RATES)} == {480}
    assert {run.steps for run in plans.law(RATES)} == {120}
    by_n: dict[int, set[tuple[str, str, int]]] = {}
    for run in plans.responses(RATES):
        by_n.setdefault(run.n, set()).add((run.objective, run.selector, run.k))
    assert by_n == {n: {("pro", "random_k", n), ("nll", "best_k", 1), ("nll", "random_k", n)} for n in plans.RESPONSES}
    for run in plans.law(RATES):
        if run.seed == 0:
            chosen = train.subset_of(run, draw_data(0).groups)
            assert len(chosen) == run.prompts
            words = set(run.subset.split("+"))
            assert not run.subset or all(words & set(group["id"].split("-")) for group in chosen)


def test_tuning_takes_the_least_kl_or_the_largest_score() -> None:
    runs: list[dict[str, Any]] = [
        {"objective": "pro", "learning_rate": rate, "kl": kl, "reward": reward}
        for rate, kl, reward in ((1.0, 3.0, 0.9), (1.0, 1.0, 0.7), (2.0, 1.5, 0.1), (2.0, 1.5, 0.2))
    ]
    assert tuned(runs, by="kl") == {"pro": 2.0}
    assert tuned(runs, by="reward") == {"pro": 1.0}


def test_differences_are_of_the_same_seeds() -> None:
    one, other = {0: 1.0, 1: 5.0, 2: 3.0}, {1: 4.0, 2: 1.0, 3: 0.0}
    mean, half = report.difference(one, other)
    assert mean == pytest.approx(1.5)
    assert half == pytest.approx(12.706 * np.std([1, 2], ddof=1) / np.sqrt(2), rel=1e-4)


def test_the_report_of_the_alignment_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Known scores by run come back as the means, differences and lines of the page."""

    def write(name: str, runs: list[Run], score: Callable[[Run], float]) -> None:
        found = {"kl": 1.0, "coverage": 0.5, "entropy": 2.0, "elsewhere": 0.1, "nll": 1.0}
        rows = [{**asdict(run), **found, "reward": score(run) + 0.01 * run.seed} for run in runs]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("tuning", plans.tuning(), lambda run: run.learning_rate)
    rates = {"nll": max(plans.RATES), "pro": max(plans.RATES)}
    write("responses", plans.responses(rates), lambda run: 0.1 * run.n if run.objective == "pro" else 0.2)
    write("prompts", plans.prompts(rates), lambda run: 0.1 * run.k)
    write("law", plans.law(rates), lambda run: 0.3 if run.prompts > 100 else 0.1)
    assert alignment(["report", "--output", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "SFT 0.008, PRO 0.008" in text
    assert "|4|0.200 ± 0.000|" in text  # PRO 0.4 less SFT on the best 0.2, seed by seed
    assert "|PRO on all n|3|0.320 ± 0.020|" in text  # seeds 0 to 4: 0.3 + 0.02, t interval of 0, 0.01, ..., 0.04
    assert text.count("|0.200 ± 0.000|0.000 ± 0.000|") == 2  # 120 x 4 less 240 x 2, at equal steps and epochs
    (slope,) = re.findall(r"\|2\|1\|(.*?)\|", text)
    assert float(slope) > 0  # more prompts have more bigrams and, here, a higher score
    assert all((tmp_path / f"{name}.png").is_file() for name in ("responses", "prompts", "law"))
