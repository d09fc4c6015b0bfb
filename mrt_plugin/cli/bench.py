"""`mrt bench`: how fast a prompt shared by K responses trains on this machine, beside TRL."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mrt_plugin.cli.option import checked, existing_base, report_file
from mrt_plugin.cli.show import as_json, plain_errors, say, stages, table
from mrt_plugin.options import PREFIX_BACKENDS, check_prefix_backend

if TYPE_CHECKING:
    from mrt_plugin.bench.run import ArmResult, BenchResult, Breakdown

PICTURES = (".png", ".svg", ".pdf")


def bench(
    shape: Annotated[
        list[str] | None, typer.Option(help="P,R,K: prompt tokens, response tokens, responses. Repeat for several.")
    ] = None,
    mixed: Annotated[bool, typer.Option(help="Log-normal lengths with these means, as in real data.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Path or hub id of a causal model. By default a random 4-layer Llama.", callback=existing_base
        ),
    ] = None,
    vocabulary: Annotated[int, typer.Option(min=16, help="Of the random Llama.")] = 1000,
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    lora: Annotated[bool, typer.Option(help="Train LoRA adapters instead of all weights.")] = False,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="QLoRA: 4-bit weights, LoRA adapters.")] = False,
    prefix_backend: Annotated[
        list[str] | None,
        typer.Option(
            help=f"auto, {', '.join(PREFIX_BACKENDS)}, or your own file.py:class. Repeat for several.",
            callback=checked(check_prefix_backend),
        ),
    ] = None,
    only: Annotated[str, typer.Option(help="Only the trainers whose name contains this, such as 'mrt shared'.")] = "",
    groups: Annotated[int, typer.Option(min=1, help="Groups per optimizer step; TRL gets their pairs.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps in a turn.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every trainer.")] = 5,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Recompute activations, in every trainer.")] = False,
    breakdown: Annotated[bool, typer.Option(help="Also measure where the rest of the token ratio goes.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default as PyTorch chooses.")] = None,
    cpu: Annotated[bool, typer.Option(help="Use the CPU even where there is a GPU.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write a picture: .png, .svg or .pdf.", callback=report_file(*PICTURES)),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Train the same pairs with TRL's SFTTrainer and with ours, in turn, and compare speed and peak memory.

    Needs a quiet machine: ratios of times mean little beside other work.

    Example: `mrt bench --shape 512,64,8 --breakdown`
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own messages
    with plain_errors():
        from mrt_plugin.bench.model import ModelChoice
        from mrt_plugin.bench.run import BenchSettings, run_bench
        from mrt_plugin.bench.shapes import DEFAULT_SHAPES, Shape
        from mrt_plugin.groups.paths import check_paths

        check_paths([("--plot", plot)], models=[model])
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        settings = BenchSettings(
            shapes=[Shape.parse(text) for text in shape] if shape else DEFAULT_SHAPES,
            mixed=mixed,
            model=ModelChoice(model, vocabulary, dtype, load_in_4bit, lora),
            prefix_backends=prefix_backend or ["auto"],
            only=only,
            groups=groups,
            steps=steps,
            rounds=rounds,
            gradient_checkpointing=gradient_checkpointing,
            breakdown=breakdown,
            cpu=cpu,
        )
        with stages() as progress:
            result = run_bench(settings, progress)
        if plot is not None:
            from mrt_plugin.bench.plot import plot as draw

            draw(result, plot)
    if json:
        as_json(result.as_json())
    else:
        show(result)


def show(result: "BenchResult") -> None:
    """Write the tables."""
    machine = result.machine
    say(
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads, load {machine['load']} before; "
        f"torch {machine['torch']}, transformers {machine['transformers']}, trl {machine['trl']}."
    )
    columns = ("", "batch", "pairs/s", "vs TRL", "of ratio", "peak MiB", "step MiB")
    for found in result.shapes:
        title = f"P,R,K = {found.shape}: token ratio {found.token_ratio:.2f}"
        table(columns, [_row(arm) for arm in found.arms], title)
        for arm in found.arms:
            if arm.error is not None:
                say(f"{arm.name}: {arm.error}")
        if found.breakdown is not None:
            _show_breakdown(found.breakdown)
    say("batch: the micro-batch at which the trainer was fastest, in pairs (TRL) or groups (ours).")
    say("vs TRL: pairs per second over those of TRL's fastest mode; of ratio: that, over the token ratio.")
    say("peak MiB: the peak memory of an optimizer step; step MiB: without weights and optimizer state.")


def _row(arm: "ArmResult") -> tuple[str, ...]:
    measured = arm.as_json()
    formats = {
        "size": "{}",
        "pairs_per_second": "{:.2f}",
        "speedup": "{:.2f}x",
        "fraction": "{:.2f}",
        "peak_mib": "{:.0f}",
        "step_mib": "{:.0f}",
    }
    return (arm.name, *(text.format(measured[name]) if name in measured else "-" for name, text in formats.items()))


def _show_breakdown(found: "Breakdown") -> None:
    steps = [{**column, "step": sum(column.values())} for column in (found.theirs, found.ours, found.lost)]
    rows = [
        (piece, f"{1000 * theirs:.1f}", f"{1000 * ours:.1f}", f"{100 * lost:+.1f} %")
        for piece, theirs, ours, lost in zip(steps[0], *(column.values() for column in steps), strict=True)
    ]
    table(("ms, under the profiler", "TRL", "shared prefix", "of the ratio lost"), rows)
