"""A trainer's description of its run: what trackers log of it, and its model card."""

import shlex
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel, PeftType
from transformers import Trainer

from mrt_plugin.groups.overlap import PROMPT_NAME
from mrt_plugin.trainer.card import FILE, CardRun, complete_card, kept_evaluation
from mrt_plugin.trainer.run_facts import DataFacts, LoggedArguments, RunFacts


class DescribesRun(Trainer):
    """Adds what a run knows about itself to its trackers and to its model card."""

    facts: RunFacts
    _license: str | None = None

    def describe_run(self, facts: RunFacts) -> None:
        """Set the facts. Trackers log them if the trainer's arguments inherit from `LoggedArguments`."""
        self.facts = facts
        if isinstance(self.args, LoggedArguments):
            self.args.run_facts = facts

    def know_data(self, data: Sequence[DataFacts]) -> None:
        """Say what the training data are: `PrepareReport.data` of each dataset. The model card says it too."""
        self.describe_run(replace(self.facts, data=tuple(data)))

    def create_model_card(self, *args: Any, license: str | None = None, **kwargs: Any) -> None:
        """Write the trainer's model card, with a section on the groups and the metadata that the hub reads.

        Args:
            args: those of the trainer's own method, as `kwargs`: `model_name`, `tags`, and others by trainer.
            license: a license's name on the hub, such as `apache-2.0`. Without it the card names none.
        """
        self._license = license or self._license
        writes, path = self.is_world_process_zero(), Path(self.args.output_dir or ".") / FILE
        run = f"{self._run_name} at step {self.state.global_step}"
        evaluation = kept_evaluation(path, run) if writes else None
        super().create_model_card(*args, **kwargs)
        if writes:
            complete_card(path, self.facts, self._card_run(run), evaluation)

    def how_it_ran(self) -> dict[str, Any]:
        """Return the `command`, `settings` and `tool` of the `CardRun`."""
        script = Path(sys.argv[0])
        command = f"python {shlex.quote(script.name)}" if script.suffix == ".py" and script.is_file() else None
        return {"command": command}

    def _card_run(self, run: str) -> CardRun:
        model = self.accelerator.unwrap_model(self.model)
        adapter = None
        if isinstance(model, PeftModel):
            adapter = PeftType(model.peft_config[model.active_adapters[0]].peft_type).value
        return CardRun(
            run=run,
            base_model=model.config.name_or_path or None,
            adapter=adapter,
            steps=self.state.global_step,
            epochs=self.state.epoch or 0.0,
            processes=self.accelerator.num_processes,
            license=self._license,
            **self.how_it_ran(),
        )

    @cached_property
    def _run_name(self) -> str:
        return uuid.uuid4().hex[:12]


def count_prompts(held_out: Any) -> int | None:
    """Return the number of prompts in one or several held-out datasets, or None if there are none."""
    parts = [part for part in (held_out.values() if isinstance(held_out, dict) else [held_out]) if part is not None]
    names = [part[PROMPT_NAME] for part in parts if isinstance(part, Dataset) and PROMPT_NAME in part.column_names]
    return len({name for part in names for name in part}) if names else None
