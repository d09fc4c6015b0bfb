"""`mrt doctor`: what this machine can run, and what a recipe will do, before an hour is lost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrt_plugin.cli.show import as_json, plain_errors, say, table

if TYPE_CHECKING:
    from mrt_plugin.doctor.machine import Machine


def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="An Axolotl recipe to check, with its data.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say which versions are found and supported, and what `auto` means on this machine.

    With a recipe, also whether it validates and its data loads, what each layout would train on, and an estimate of
    peak memory. Exits with status 1 if something does not fit.

    Example: `mrt doctor recipe.yaml`
    """
    with plain_errors():
        from mrt_plugin.doctor.machine import inspect_machine

        machine = inspect_machine()
    if recipe is None:
        if json:
            as_json(machine.as_dict())
        else:
            show_machine(machine)
        raise typer.Exit(1 if machine.problems else 0)


def show_machine(machine: "Machine") -> None:
    """Write what was found, for people."""
    rows = []
    for library in machine.libraries:
        verdict = "ok" if library.in_range else "not installed" if library.ok else "NOT SUPPORTED"
        rows.append((library.name, library.found or "-", library.supported or "any", library.extra or "core", verdict))
    table(("library", "found", "supported", "for", ""), rows)
    device = machine.device
    memory = "" if device.memory_gib is None else f", {device.memory_gib:.0f} GiB"
    say(f"Python {machine.python}. Device: {device.kind} ({device.name}{memory}).")
    if device.kind == "cpu":
        say("No GPU: everything runs, slowly; recipes need bf16: false and the lora_*_kernel options false.")
    say(f"prefix_backend auto: {machine.prefix_backend} (for models with attention only).")
    others = "installed" if machine.sentence_transformers else "not installed: pip install 'mrt-plugin[embeddings]'"
    say(f"embedder: {machine.embedder} by default; sentence-transformers {others}.")
    for problem in machine.problems:
        say(f"problem: {problem}")
