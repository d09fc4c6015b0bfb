"""Write a first recipe for a model, data and a card."""

import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from mrt_plugin.demo.run import HELD_OUT, MODEL, POOL, TRUTH, DemoSettings, make_model, write_data
from mrt_plugin.doctor.machine import find_device
from mrt_plugin.encoding.encoder import prepare_tokenizer
from mrt_plugin.groups.load import load_groups
from mrt_plugin.groups.write import write_text
from mrt_plugin.init.choose import Card, Choice, Value, choose, parse_card
from mrt_plugin.init.look import DataFacts, look_at
from mrt_plugin.init.write import Request, axolotl_recipe, trl_script
from mrt_plugin.models.tiny_model import build_llama, build_tokenizer, save
from mrt_plugin.planning.progress import Progress, quiet


@dataclass(frozen=True)
class DemoFiles:
    """Paths of the demo's model and data."""

    model: str
    pool: str
    held_out: str


@dataclass(frozen=True)
class FirstRecipe:
    """A recipe that was written, with what it was made from."""

    request: Request
    facts: DataFacts
    choice: Choice
    trl: bool
    demo: bool = False

    @property
    def next_command(self) -> str:
        """Return the command to run next."""
        if self.demo:
            words = ["mrt", "plan", str(self.request.data), "--model", self.request.model, "--budget", "2x"]
            return shlex.join(words)
        output = shlex.quote(str(self.request.output))
        return f"python {output}" if self.trl else f"mrt doctor {output}"


def write_recipe(
    model: str | None,
    data: str,
    output: Path,
    *,
    gpu: str | None = None,
    trl: bool = False,
    source: str | None = None,
    demo: DemoFiles | None = None,
) -> FirstRecipe:
    """Look at the data and the model, choose values, and write a recipe for Axolotl, or a script for TRL.

    Args:
        model: path or hub id of a causal model. None builds a tiny one from the data, beside the recipe.
        data: the pool, as `load_groups` reads it.
        output: the file to write.
        gpu: memory of the card, such as `12gb`, or `cpu`. By default the first GPU of this machine, or the CPU.
        trl: write a TRL script in place of a recipe.
        source: public format of the data.
        demo: the demo's files, if these are the model and the data.

    Raises:
        FileExistsError: if the file exists.
        ValueError: if the data cannot be read, or the model does not fit the card.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another --output, or remove it.")
    card = _this_machine() if gpu is None else parse_card(gpu)
    with quiet():  # the facts have the notes of reading
        if model is None:
            model = str(build_tiny_model(data, output.parent / "tiny_model", source))
        config, tokenizer = _open(model)
        facts = look_at(data, tokenizer, source)
    chosen = choose(facts, config, card)
    if demo is not None:
        chosen = replace(chosen, held_out=Value(0, f"{demo.held_out} has other prompts, for mrt evaluate"))
    asked = Request(model, data, source, card, output)
    write_text(output, trl_script(asked, chosen) if trl else axolotl_recipe(asked, chosen))
    return FirstRecipe(asked, facts, chosen, trl, demo is not None)


def write_demo(output: Path, progress: Progress = lambda *_: None) -> DemoFiles:
    """Write the demo's data and its pretrained model beside the recipe `output`.

    The data is `pool.jsonl`, `held_out.jsonl` of other prompts, and `truth.jsonl` with all right responses of both.

    Raises:
        FileExistsError: if the recipe or one of these exists.
    """
    folder, settings = output.parent, DemoSettings()
    for path in (output, *(folder / name for name in (POOL, HELD_OUT, TRUTH, MODEL))):
        if path.exists():
            raise FileExistsError(f"{path} exists: choose an --output in another folder, or remove it.")
    write_data(folder, settings)
    make_model(folder, settings, lambda step: progress("base model", step, settings.pretraining_steps))
    return DemoFiles(*(str(folder / name) for name in (MODEL, POOL, HELD_OUT)))


def build_tiny_model(data: str, folder: Path, source: str | None = None) -> Path:
    """Build a Llama of two layers with random weights and a tokenizer of the data's own text, and save it.

    It learns the data's words and little else: it shows that a recipe runs, not its worth.
    """
    texts = []
    for group in load_groups(data, source=source):
        for item in (group["prompt"], *group["responses"]):
            texts.append(item if isinstance(item, str) else json.dumps(item, ensure_ascii=False))
    tokenizer = build_tokenizer(texts, vocabulary=4096)
    tokenizer.model_max_length = 2048
    model = build_llama(tokenizer, max_position_embeddings=2048)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, folder)
    return folder


def _this_machine() -> Card:
    device = find_device()
    return Card("CPU", None) if device.memory_gib is None else Card(device.name, device.memory_gib)


def _open(model: str) -> tuple[PretrainedConfig, Any]:
    try:
        return AutoConfig.from_pretrained(model), prepare_tokenizer(AutoTokenizer.from_pretrained(model))
    except OSError as error:
        raise ValueError(
            f"{model} could not be opened: {str(error).splitlines()[0]} Give a folder, log in to the hub, or try the "
            "way with --tiny, which builds a small model from your data."
        ) from error
