"""`mrt_plugin.trainer.metrics` names what real runs log: nothing is missing, nothing is stale."""

import contextlib
import io
import runpy
from pathlib import Path

import pytest
from datasets import Dataset
from helpers import tiny
from helpers.training import SHORT, config, make_groups

from mrt_plugin import MultiResponseSFTTrainer
from mrt_plugin.trainer.metrics import ELSEWHERE, FROM_TRANSFORMERS, HELD_OUT, RANKING, SAMPLES, TRAINING, tables

ADDED_BY_TRAINER = {"step"}
"""What transformers writes into its log history beside the metrics."""


def scored(groups: Dataset) -> Dataset:
    """The groups with scores that fall along each pool."""
    return groups.map(lambda row: {"scores": [1.0 / (1 + place) for place in range(len(row["responses"]))]})


def logged(tmp_path, **settings) -> set[str]:
    """The names that a run of two steps with two evaluations logs."""
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, max_grad_norm=1.0, **settings),
        train_dataset=scored(make_groups(8, 3)),
        eval_dataset=scored(SHORT),
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    return set().union(*trainer.state.log_history) - ADDED_BY_TRAINER


def expected(*needs: str, gap: bool = True) -> set[str]:
    """The names in the tables, of the metrics that need nothing or one of `needs`."""
    parts = [(TRAINING, ""), (HELD_OUT, "eval_"), (FROM_TRANSFORMERS, "")]
    named = [(prefix + metric.name, metric.needs) for metrics, prefix in parts for metric in metrics]
    always = ("", *needs, *(metric.needs for metric in HELD_OUT if metric.name == "train_gap" and gap))
    return {name for name, need in named if need in always}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["nll", "dft", "gem", "pro", "plackett_luce"])
def test_a_run_logs_the_metrics_of_the_tables_and_no_others(tmp_path, objective):
    needs = (RANKING,) if objective in ("pro", "plackett_luce") else ()
    assert logged(tmp_path, objective=objective) == expected(*needs)


@pytest.mark.slow
def test_options_add_and_remove_metrics(tmp_path):
    sampled = logged(tmp_path, sample_prompts=2, samples_per_prompt=2, sample_tokens=4, early_stopping=5)
    assert sampled == expected(SAMPLES)
    assert logged(tmp_path, overfit_limit=0.0, redraw="epoch", selector="random_k", k=2) == expected(gap=False)


@pytest.mark.slow
def test_several_held_out_sets_have_their_own_names(tmp_path):
    trainer = MultiResponseSFTTrainer(
        model=tiny.llama(),
        args=config(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1),
        train_dataset=make_groups(8, 3),
        eval_dataset={"one": SHORT.select(range(4)), "two": SHORT.select(range(4, 8))},
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    found = set().union(*trainer.state.log_history)
    for name in (metric.name for metric in HELD_OUT if not metric.needs):
        assert {f"eval_one_{name}", f"eval_two_{name}"} <= found


@pytest.mark.slow
def test_what_is_said_of_trls_metrics(tmp_path):
    """TRL's own trainer logs each metric that the page says is TRL's, apart from the one of a mixture of experts."""
    from helpers.training import trl_settings
    from trl import SFTConfig, SFTTrainer

    pairs = [{"prompt": row["prompt"], "completion": row["responses"][0]} for row in SHORT]
    trainer = SFTTrainer(
        model=tiny.llama(),
        args=SFTConfig(**trl_settings(tmp_path), max_steps=1),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    theirs = set().union(*trainer.state.log_history) - ADDED_BY_TRAINER
    said = {one.name for one in ELSEWHERE if one.library == "TRL"} - {"aux_loss"}
    assert said == theirs - {metric.name for metric in FROM_TRANSFORMERS} - {"loss"}
    ours = {metric.name for metric in TRAINING}
    assert {one.name for one in ELSEWHERE if one.library == "TRL" and not one.here.startswith("Not")} == said & ours


def test_the_page_has_the_tables():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_module("mrt_plugin.trainer.metrics", run_name="__main__")
    assert printed.getvalue() == tables()
    page = Path(__file__).parent.parent / "docs" / "metrics.md"
    assert tables() in page.read_text(), "run `python -m mrt_plugin.trainer.metrics` and put its output on the page"
