"""`mrt doctor`: check what this machine can run, and what a recipe will do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrt_plugin.cli.option import existing_file
from mrt_plugin.cli.show import as_json, plain_errors, say, table

if TYPE_CHECKING:
    from mrt_plugin.doctor.machine import Machine
    from mrt_plugin.doctor.recipe import RecipeReport


def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="An Axolotl recipe to check, with its data.", callback=existing_file)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show which versions are found and supported, and what `auto` means on this machine.

    With a recipe, also show whether it is valid and its data loads, what each layout would train on, and an estimate
    of peak memory. Exits with status 1 if there is a problem.

    Example: `mrt doctor recipe.yaml`
    """
    with plain_errors():
        from mrt_plugin.doctor.machine import inspect_machine

        machine = inspect_machine()
        report = None
        if recipe is not None:
            from mrt_plugin.doctor.recipe import inspect_recipe

            report = inspect_recipe(recipe)
    if json:
        as_json({"machine": machine.as_dict(), "recipe": None if report is None else report.as_dict()})
    else:
        _show_machine(machine)
        if report is not None:
            _show_recipe(report)
        elif not machine.problems:
            say("Next: mrt doctor recipe.yaml, or mrt demo")
    if machine.problems or (report is not None and report.problems):
        raise typer.Exit(1)


def _show_machine(machine: "Machine") -> None:
    rows = []
    for library in machine.libraries:
        verdict = "ok" if library.in_range else "not installed" if library.ok else "NOT SUPPORTED"
        rows.append((library.name, library.found or "-", library.supported or "any", library.extra or "core", verdict))
    table(("library", "found", "supported", "for", ""), rows)
    device = machine.device
    memory = "" if device.memory_gib is None else f", {device.memory_gib:.0f} GiB"
    say(f"Python {machine.python}. Device: {device.kind} ({device.name}{memory}).")
    if device.kind == "cpu":
        say("No GPU: everything runs, but slowly. Recipes need bf16: false, and the lora_*_kernel options false.")
    say(f"prefix_backend auto: {machine.prefix_backend} (for models with attention only).")
    others = "installed" if machine.sentence_transformers else "not installed: pip install 'mrt-plugin[embeddings]'"
    say(f"embedder: {machine.embedder} by default; sentence-transformers {others}.")
    for problem in machine.problems:
        say(f"problem: {problem}")


def _show_recipe(report: "RecipeReport") -> None:
    say(f"\n{report.recipe}: {report.model or 'not loaded'}" + (f", {report.method}" if report.method else ""))
    rows = []
    for name, part in (("train", report.train), ("held out", report.held_out)):
        if part is not None:
            counts = (part.rows, part.pairs, part.trained_tokens, part.tokens_expanded, part.tokens_shared)
            rows.append((name, *(f"{count:,}" for count in counts), f"{part.ratio:.2f}"))
    if rows:
        table(("data", "rows", "pairs", "trained", "expanded", "shared prefix", "ratio"), rows)
        say("A row is a group, or part of a long one. Tokens are those of one forward pass.")
        say("The ratio is expanded over shared tokens.")
    if report.steps is not None:
        say(f"{report.steps:,} optimizer steps on one process.")
    if report.layout is not None:
        say(f"layout: {report.layout} expected, backend {report.backend or 'none'}; training proves it first.")
    if report.memory:
        _show_memory(report)
    for note in report.notes:
        say(f"note: {note}")
    for problem in report.problems:
        say(f"problem: {problem}")
    if report.problems:
        say(f"Next: fix {'this' if len(report.problems) == 1 else 'these'}, then mrt doctor {report.recipe}")
    else:
        say(f"No problem found.\nNext: axolotl train {report.recipe}")


def _show_memory(report: "RecipeReport") -> None:
    rows = []
    for layout, estimate in report.memory.items():
        batch, length = report.batch[layout]
        parts = [estimate.weights, estimate.training_state, estimate.activations, estimate.logits]
        parts += [estimate.dequantised, estimate.total]
        rows.append((layout, f"{batch} x {length:,}", *(f"{part:.2f}" for part in parts)))
    columns = ("layout", "rows x tokens", "weights", "state", "activations", "logits", "dequant", "total GiB")
    table(columns, rows, title="Peak memory of the largest step: an estimate from shapes, not measured")
    first = next(iter(report.memory.values()))
    say(f"{first.parameters:,} parameters, {first.trained_parameters:,} trained. The formula is in docs/doctor.md.")
    available = report.device and report.device.memory_gib
    if report.device is not None and available and report.layout is not None:
        total = report.memory[report.layout].total
        verdict = "fits" if total < 0.9 * available else "may not fit"
        say(f"{report.device.name} has {available:.1f} GiB: {total:.1f} GiB {verdict} (a tenth is kept free).")
