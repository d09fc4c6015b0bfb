"""`MultiResponseTrainerMixin` in a user's own `transformers.Trainer`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.training import make_groups
from transformers import Trainer, TrainerCallback, TrainingArguments

from mrt_plugin import GroupedResponseCollator, MultiResponseOptions, MultiResponseTrainerMixin, prepare_groups
from mrt_plugin.encoding import Encoder


class GroupTrainer(MultiResponseTrainerMixin, Trainer):
    def __init__(self, options: MultiResponseOptions, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_up_groups(options, [self.data_collator])


class OnePairAtATime(TrainerCallback):
    """The mean NLL of a step's trained tokens, with the weights before the step and one forward per pair."""

    def __init__(self, batches: list[list[Any]]) -> None:
        self.batches = batches
        self.losses: list[float] = []

    @torch.no_grad()
    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        total, count = 0.0, 0
        for pair in self.batches[state.global_step]:
            logits = torch.log_softmax(model(input_ids=torch.tensor([pair.input_ids])).logits[0].double(), -1)
            for place in range(1, len(pair.input_ids)):
                if pair.trained[place]:
                    total -= float(logits[place - 1, pair.input_ids[place]])
                    count += 1
        self.losses.append(total / count)


@pytest.mark.parametrize("row_length", [None, 1024])
def test_a_plain_trainer_shares_prefixes_with_the_loss_of_single_pairs(tmp_path: Path, row_length: int | None) -> None:
    tokenizer = tiny.tokenizer()
    groups = make_groups(6, 3)
    options = MultiResponseOptions(selector="all", layout="shared_prefix", row_length=row_length)
    rows, report = prepare_groups(groups, tokenizer, options, max_length=512, seed=0)
    assert report.pairs == 18
    encoder = Encoder(tokenizer)
    pairs = [encoder.encode_group(group["prompt"], group["responses"]) for group in groups]
    reference = OnePairAtATime([[pair for group in pairs[:3] for pair in group], [p for g in pairs[3:] for p in g]])
    trainer = GroupTrainer(
        options,
        model=tiny.llama(),
        args=TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=3,
            max_steps=2,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            train_sampling_strategy="sequential",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        data_collator=GroupedResponseCollator(tokenizer, row_length=row_length),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[reference],
    )
    assert trainer.layout == "shared_prefix"
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert found == pytest.approx(reference.losses, rel=1e-5)
    assert found[1] < found[0]
    assert trainer.state.log_history[0]["prompt_tokens_saved_share"] > 0
    reference.batches = [[pair for group in pairs for pair in group]]
    reference.on_step_begin(None, type(trainer.state)(), None, model=trainer.model.eval())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(reference.losses[-1], rel=1e-5)
