"""`mrt init`: write a first recipe."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mrt_plugin.cli.option import command, flag, switch
from mrt_plugin.cli.progress import stages
from mrt_plugin.cli.show import finish, json_ready, say

if TYPE_CHECKING:
    from mrt_plugin.init.run import FirstRecipe


@dataclass(kw_only=True)
class InitOptions:
    model: str | None = flag(None, "Path or hub id of the model to fine-tune.", "base")
    data: str | None = flag(None, "The pool: a file, a saved dataset, or a hub id.", "data")
    gpu: str | None = flag(None, "Memory of the card, such as 12gb, or cpu. By default this machine's.")
    output: Path | None = flag(
        None, "The file to write: recipe.yaml, or train.py with --trl.", "", "--output", "--out"
    )
    trl: bool = switch("Write a TRL script in place of an Axolotl recipe.")
    tiny: bool = switch(
        "Build a tiny model from the data, beside the recipe: to try the whole way without a real one."
    )
    demo: bool = switch("Write the demo's data, truth and pretrained model beside the recipe, and take them.")
    source: str | None = flag(None, "The public format of the data, by name (docs/sources.md).")
    yes: bool = switch("Ask nothing: take the defaults for what is not given.")
    json: bool = switch("Print the values and the facts of the data as JSON.")


@command(InitOptions)
def init(given: InitOptions) -> None:
    """Look at your data and your card, and write a commented recipe that starts as it is.

    Asks for what is not given. Every chosen value has its reason beside it. `mrt doctor` then checks the recipe.

    Example: `mrt init --model Qwen/Qwen3-4B --data pool.jsonl --gpu 12gb --output recipe.yaml --yes`

    Without a model at hand: `mrt init --tiny --data pool.jsonl --gpu cpu --output try.yaml --yes`

    Without data either: `mrt init --demo --gpu cpu --output recipe.yaml`
    """
    if given.tiny and given.model is not None:
        raise ValueError("--tiny builds a model, and --model names one: give one of them.")
    if given.demo and (given.tiny or given.model is not None or given.data is not None):
        raise ValueError("--demo brings its own model and data: leave out --model, --tiny and --data.")
    data = "" if given.demo else given.data or _ask(given, "--data", "The pool (a file, or a hub id)")
    model = given.model
    if model is None and not (given.tiny or given.demo):
        model = _ask(given, "--model, or --tiny", "The model (a folder, or a hub id)")
    gpu = given.gpu
    if gpu is None and not given.yes:
        gpu = typer.prompt("The card (12gb, 24gb, ... or cpu; empty: this machine's)", default="", show_default=False)
    name = "train.py" if given.trl else "recipe.yaml"
    output = given.output or Path(name if given.yes else typer.prompt("The file to write", default=name))

    with stages() as progress:
        progress("making the demo's data" if given.demo else f"looking at {data}")
        if given.demo:  # before torch is imported, as in `mrt demo`: waiting threads would spin
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from mrt_plugin.init.run import write_demo, write_recipe

        demo = None
        if given.demo:
            demo = write_demo(output, progress)
            model, data = demo.model, demo.pool
        found = write_recipe(model, data, output, gpu=gpu or None, trl=given.trl, source=given.source, demo=demo)
    finish(given, found, _as_json, _show)


def _ask(given: InitOptions, option: str, question: str) -> str:
    if given.yes:
        raise ValueError(f"--yes asks nothing: give {option}.")
    return str(typer.prompt(question))


def _as_json(found: "FirstRecipe") -> object:
    facts = {name: value for name, value in vars(found.facts).items() if name not in ("prompts", "pairs", "answers")}
    return json_ready(
        {"output": found.request.output, "data": facts, "choice": found.choice, "next": found.next_command}
    )


def _show(found: "FirstRecipe") -> None:
    import numpy as np

    facts, chosen = found.facts, found.choice
    sizes = f"{facts.smallest}" if facts.smallest == facts.largest else f"{facts.smallest} to {facts.largest}"
    scores = "with scores" if facts.scored else "no scores that differ"
    say(f"{found.request.data}: {facts.groups:,} prompts with {sizes} responses each, {scores}.")
    middle, most = np.median(facts.pairs), facts.pairs.max()
    say(f"A prompt with one response has {middle:,.0f} tokens in the middle, and {most:,} at most.")
    say(*(f"note: {note}" for note in facts.notes))
    say(f"K = {chosen.k.value} by {chosen.selector.value}: {chosen.selector.reason}.")
    pairs = f"{chosen.micro_batch.value} x {chosen.accumulation.value} prompts a step"
    say(f"{pairs}, rows of {chosen.row_length.value:,} tokens. Memory: {chosen.memory}.")
    say(f"Written: {found.request.output}\nNext: {found.next_command}")
