"""`mrt doctor` and `mrt bench`: what this machine can run, and how fast."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from mrt_plugin.cli.option import argument, command, flag, part_of, switch
from mrt_plugin.cli.show import as_json, finish, say, stages, table
from mrt_plugin.options import PREFIX_BACKENDS

if TYPE_CHECKING:
    from mrt_plugin.bench.run import ArmResult, BenchResult, Breakdown
    from mrt_plugin.doctor.machine import Machine
    from mrt_plugin.doctor.recipe import RecipeReport


@dataclass(kw_only=True)
class DoctorOptions:
    recipe: Path | None = argument(None, "An Axolotl recipe to check, with its data.", "file")
    json: bool = switch("--json", "Print everything as JSON.")


@command(DoctorOptions)
def doctor(given: DoctorOptions) -> None:
    """Show which versions are found and supported, and what `auto` means on this machine.

    With a recipe, also show whether it is valid and its data loads, what each layout would train on, and an estimate
    of peak memory. Exits with status 1 if there is a problem.

    Example: `mrt doctor recipe.yaml`
    """
    from mrt_plugin.doctor.machine import inspect_machine

    machine = inspect_machine()
    report = None
    if given.recipe is not None:
        from mrt_plugin.doctor.recipe import inspect_recipe

        report = inspect_recipe(given.recipe)
    if given.json:
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
    others = "installed" if machine.sentence_transformers else "not installed: pip install 'mrt-plugin[embeddings]'"
    say(
        f"prefix_backend auto: {machine.prefix_backend} (for models with attention only).",
        f"embedder: {machine.embedder} by default; sentence-transformers {others}.",
        *(f"problem: {problem}" for problem in machine.problems),
    )


def _show_recipe(report: "RecipeReport") -> None:
    say(f"\n{report.recipe}: {report.model or 'not loaded'}" + (f", {report.method}" if report.method else ""))
    rows = []
    for name, part in (("train", report.train), ("held out", report.held_out)):
        if part is not None:
            counts = (part.rows, part.pairs, part.trained_tokens, part.tokens_expanded, part.tokens_shared)
            rows.append((name, *(f"{count:,}" for count in counts), f"{part.ratio:.2f}"))
    if rows:
        table(("data", "rows", "pairs", "trained", "expanded", "shared prefix", "ratio"), rows)
        say(
            "A row is a group, or part of a long one. Tokens are those of one forward pass.",
            "The ratio is expanded over shared tokens.",
        )
    if report.steps is not None:
        say(f"{report.steps:,} optimizer steps on one process.")
    if report.layout is not None:
        say(f"layout: {report.layout} expected, backend {report.backend or 'none'}; training proves it first.")
    if report.memory:
        _show_memory(report)
    say(*(f"note: {note}" for note in report.notes), *(f"problem: {problem}" for problem in report.problems))
    if report.problems:
        say(f"Next: fix {'this' if len(report.problems) == 1 else 'these'}, then mrt doctor {report.recipe}")
    else:
        say(f"No problem found.\nNext: axolotl train {report.recipe}")


def _show_memory(report: "RecipeReport") -> None:
    rows = []
    for layout, found in report.memory.items():
        batch, length = report.batch[layout]
        parts = [found.weights, found.training_state, found.activations, found.logits, found.dequantised, found.total]
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


BACKENDS = f"auto, {', '.join(PREFIX_BACKENDS)}, or your own file.py:class. Repeat for several."


@dataclass(kw_only=True)
class BenchOptions:
    shape: list[str] | None = flag(None, "P,R,K: prompt tokens, response tokens, responses. Repeat for several.")
    mixed: bool = flag(False, "Log-normal lengths with these means, as in real data.")
    model: str | None = flag(None, "Path or hub id of a causal model. By default a random 4-layer Llama.", "base")
    vocabulary: int = flag(1000, "Of the random Llama.", min=16)
    dtype: Literal["auto", "float32", "bfloat16"] = flag("auto", "auto, float32 or bfloat16.")
    lora: bool = flag(False, "Train LoRA adapters instead of all weights.")
    load_in_4bit: bool = switch("--load-in-4bit", "QLoRA: 4-bit weights, LoRA adapters.")
    prefix_backend: list[str] | None = flag(None, BACKENDS, "backend")
    only: str = flag("", "Only the trainers whose name contains this, such as 'mrt shared'.")
    groups: int = flag(2, "Groups per optimizer step; TRL gets their pairs.", min=1)
    steps: int = flag(3, "Timed steps in a turn.", min=1)
    rounds: int = flag(5, "Turns of every trainer.", min=1)
    gradient_checkpointing: bool = flag(False, "Recompute activations, in every trainer.")
    breakdown: bool = flag(False, "Also measure where the rest of the token ratio goes.")
    threads: int | None = flag(None, "CPU threads; by default as PyTorch chooses.", min=1)
    cpu: bool = flag(False, "Use the CPU even where there is a GPU.")
    plot: Path | None = flag(None, "Write a picture: .png, .svg or .pdf.", "picture")
    json: bool = switch("--json", "Print everything as JSON.")


@command(BenchOptions)
def bench(given: BenchOptions) -> None:
    """Train the same pairs with TRL's SFTTrainer and with ours, in turn, and compare speed and peak memory.

    Needs a quiet machine: ratios of times mean little beside other work.

    Example: `mrt bench --shape 512,64,8 --breakdown`
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own messages
    from mrt_plugin.bench.model import ModelChoice
    from mrt_plugin.bench.run import BenchSettings, run_bench
    from mrt_plugin.bench.shapes import DEFAULT_SHAPES, Shape
    from mrt_plugin.groups.paths import check_paths

    check_paths([("--plot", given.plot)], models=[given.model])
    if given.threads is not None:
        import torch

        torch.set_num_threads(given.threads)
    options = vars(given) | {
        "shapes": [Shape.parse(text) for text in given.shape] if given.shape else DEFAULT_SHAPES,
        "model": ModelChoice(given.model, given.vocabulary, given.dtype, given.load_in_4bit, given.lora),
        "prefix_backends": given.prefix_backend or ["auto"],
    }
    with stages() as progress:
        result = run_bench(BenchSettings(**part_of(BenchSettings, options)), progress)
    if given.plot is not None:
        from mrt_plugin.bench.plot import plot as draw

        draw(result, given.plot)
    finish(given, result, type(result).as_json, _show_bench)


def _show_bench(result: "BenchResult") -> None:
    machine = result.machine
    say(
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads, load {machine['load']} before; "
        f"torch {machine['torch']}, transformers {machine['transformers']}, trl {machine['trl']}."
    )
    columns = ("", "batch", "pairs/s", "vs TRL", "of ratio", "peak MiB", "step MiB")
    for found in result.shapes:
        title = f"P,R,K = {found.shape}: token ratio {found.token_ratio:.2f}"
        table(columns, [_row(arm) for arm in found.arms], title)
        say(*(f"{arm.name}: {arm.error}" for arm in found.arms if arm.error is not None))
        if found.breakdown is not None:
            _show_breakdown(found.breakdown)
    say(
        "batch: the micro-batch at which the trainer was fastest, in pairs (TRL) or groups (ours).",
        "vs TRL: pairs per second over those of TRL's fastest mode; of ratio: that, over the token ratio.",
        "peak MiB: the peak memory of an optimizer step; step MiB: without weights and optimizer state.",
    )


FORMATS = {
    "size": "{}",
    "pairs_per_second": "{:.2f}",
    "speedup": "{:.2f}x",
    "fraction": "{:.2f}",
    "peak_mib": "{:.0f}",
    "step_mib": "{:.0f}",
}


def _row(arm: "ArmResult") -> tuple[str, ...]:
    measured = arm.as_json()
    return (arm.name, *(text.format(measured[name]) if name in measured else "-" for name, text in FORMATS.items()))


def _show_breakdown(found: "Breakdown") -> None:
    steps = [{**column, "step": sum(column.values())} for column in (found.theirs, found.ours, found.lost)]
    rows = [
        (piece, f"{1000 * theirs:.1f}", f"{1000 * ours:.1f}", f"{100 * lost:+.1f} %")
        for piece, theirs, ours, lost in zip(steps[0], *(column.values() for column in steps), strict=True)
    ]
    table(("ms, under the profiler", "TRL", "shared prefix", "of the ratio lost"), rows)
