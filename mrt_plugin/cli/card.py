"""`mrt card`: complete the model card of a finished run."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from mrt_plugin.cli.option import argument, command, flag
from mrt_plugin.cli.progress import stages
from mrt_plugin.cli.show import say


@dataclass(kw_only=True)
class CardOptions:
    output: Path = argument(..., "The output folder of a run.", "folder")
    evaluation: Path | None = flag(None, "What `mrt evaluate --json` printed.", "file")
    model: str | None = flag(None, "This model's name in the evaluation, if it was elsewhere then.")
    license: str | None = flag(None, "A license's name on the hub: apache-2.0, llama3.2, cc-by-nc-4.0, ...")


@command(CardOptions)
def card(given: CardOptions) -> None:
    """Add an evaluation or a license to the model card of a run, and say what the card still lacks.

    Training writes the card, README.md in the output folder. Nothing is uploaded.

    Example: `mrt card outputs/run --evaluation result.json --license apache-2.0`
    """
    with stages() as progress:
        progress(f"reading {given.output}")
        from mrt_plugin.trainer.card import FILE, add_to_card, has_evaluation

        section = None
        if given.evaluation is not None:
            from mrt_plugin.evaluation.model_card import card_section, model_of, read_evaluation

            result = read_evaluation(given.evaluation)
            section = card_section(result, model_of(result, given.output, given.model))
            newest = max((file.stat().st_mtime for file in given.output.glob("*.safetensors")), default=0.0)
            if newest > given.evaluation.stat().st_mtime:
                say(f"WARNING: {given.output} has weights newer than {given.evaluation}: was this model evaluated?")
        found = add_to_card(given.output, evaluation=section, license=given.license)
    missing = {
        "license (--license NAME)": not found.data.get("license"),
        "base model's name on the hub (base_model: in the card's first lines)": not found.data.get("base_model"),
        "evaluation (mrt evaluate ... --json > result.json, then --evaluation result.json)": not has_evaluation(found),
    }
    say(f"{given.output / FILE}", *(f"It has no {what}." for what, lacks in missing.items() if lacks))
    # what the hub allows in a name
    name = re.sub(r"[^A-Za-z0-9_.]+|\.{2,}", "-", given.output.resolve().name).strip("-.")[:96] or "model"
    upload = shlex.join(["hf", "upload", name, str(given.output), "--exclude", "checkpoint-*/*"])
    say(f"Next: read it, then publish it under your name as {name}: {upload}")
