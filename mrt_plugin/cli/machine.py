"""`mrt doctor`, `mrt bench`, `mrt demo` and `mrt simulate`: what this machine can run, and whether it works."""

import os
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from mrt_plugin.cli.option import argument, command, flag, part_of, switch
from mrt_plugin.cli.progress import Report, loading, stages
from mrt_plugin.cli.show import as_json, command_line, finish, json_ready, say, show_fits, table
from mrt_plugin.options import PREFIX_BACKENDS, ObjectiveName

if TYPE_CHECKING:
    from mrt_plugin.bench.run import ArmResult, BenchResult
    from mrt_plugin.doctor.machine import Machine
    from mrt_plugin.doctor.measure import MeasuredStep
    from mrt_plugin.doctor.recipe import RecipeReport
    from mrt_plugin.layout.sharing import Sharing


@dataclass(kw_only=True)
class DoctorOptions:
    recipe: Path | None = argument(None, "An Axolotl recipe to check, with its data.", "recipe")
    measure: bool = switch("Also train the longest rows for a step, in another process: its peak memory and time.")
    json: bool = switch("Print everything as JSON.")


@command(DoctorOptions)
def doctor(given: DoctorOptions) -> None:
    """Show which versions are found and supported, and what `auto` means on this machine.

    With a recipe, also show whether it is valid and its data loads, what each layout would train on, and an estimate
    of peak memory. Exits with status 1 if there is a problem.

    Example: `mrt doctor recipe.yaml`

    Measured on this machine: `mrt doctor recipe.yaml --measure`
    """
    if given.measure and given.recipe is None:
        raise ValueError("--measure trains a step of a recipe: name one, mrt doctor recipe.yaml --measure.")
    with stages() as progress:
        progress("looking at this machine")
        from mrt_plugin.doctor.machine import inspect_machine

        machine = inspect_machine()
        report = None if given.recipe is None else _inspect(given.recipe, given.measure, progress)
    problems = machine.problems + (report.problems if report else [])
    if given.json:
        as_json({"machine": machine.as_dict(), "recipe": report and report.as_dict()})
    else:
        _show_machine(machine, brief=report is not None)
        if report is not None:
            _show_recipe(report)
        elif not problems:
            say(
                "Next: mrt init",
                "It asks for your model and data, and writes a recipe. mrt init --demo needs neither.",
            )
    if problems:
        raise typer.Exit(1)


def _inspect(recipe: Path, measure: bool, progress: Report) -> "RecipeReport":
    """Inspect a recipe, and measure it if asked to, which has stages of its own."""
    progress(f"reading {recipe} and its data")
    from mrt_plugin.doctor.recipe import inspect_recipe

    return inspect_recipe(recipe, measure=True, say=progress) if measure else inspect_recipe(recipe)


def _show_machine(machine: "Machine", *, brief: bool) -> None:
    """Write what was found. `brief`: of the libraries those alone that are not as tested."""
    from mrt_plugin.versions import TESTED

    rows = []
    for library in machine.libraries:
        verdict = "ok" if library.in_range else "not installed" if library.ok else "NOT SUPPORTED"
        if library.in_range and library.untested:
            verdict = f"newer than tested ({TESTED[library.name]})"
        if not brief or verdict not in ("ok", "not installed"):
            place = (library.supported or "any", library.extra or "core")
            rows.append((library.name, library.found or "-", *place, verdict))
    if rows:
        table(("library", "found", "supported", "for", ""), rows)
    else:
        found = sum(library.in_range for library in machine.libraries)
        say(f"{found} libraries, all supported (mrt doctor lists them).")
    device = machine.device
    memory = "" if device.memory_gib is None else f", {device.memory_gib:.0f} GiB"
    say(f"Python {machine.python}. Device: {device.kind} ({device.name}{memory}).")
    if device.kind == "cpu":
        say("No GPU: everything runs, but slowly. Recipes need bf16: false, and the lora_*_kernel options false.")
    others = "installed" if machine.sentence_transformers else "not installed: pip install 'mrt-plugin[embeddings]'"
    say(f"prefix_backend auto: {machine.prefix_backend} (for models with attention only).")
    say(f"embedder: {machine.embedder} by default; sentence-transformers {others}.")
    say(*(f"problem: {problem}" for problem in machine.problems))


def _show_recipe(report: "RecipeReport") -> None:
    say(f"\n{report.recipe}: {report.model or 'not loaded'}" + (f", {report.method}" if report.method else ""))
    rows = []
    for name, part in (("train", report.train), ("held out", report.held_out)):
        if part is not None:
            counts = (part.rows, part.pairs, part.trained_tokens, part.tokens_expanded, part.tokens_shared)
            rows.append((name, *(f"{count:,}" for count in counts), f"{part.ratio:.2f}"))
    if rows:
        table(("data", "rows", "pairs", "trained", "expanded", "shared prefix", "ratio"), rows)
        say("A row is a group, or part of a long one. Tokens: of one forward pass; ratio: expanded over shared.")
    if report.train is not None:
        _show_sharing(report.train.sharing)
    if report.steps is not None:
        say(f"{report.steps:,} optimizer steps on one process.")
    if report.layout is not None:
        say(f"layout: {report.layout} expected, backend {report.backend or 'none'}; training proves it first.")
    _show_memory(report)
    if report.measured is not None:
        _show_measured(report, report.measured)
    say(*(f"note: {note}" for note in report.notes), *(f"problem: {problem}" for problem in report.problems))
    if report.problems:
        these = "this" if len(report.problems) == 1 else "these"
        say(f"Next: fix {these}, then {command_line('mrt doctor', report.recipe)}")
    else:
        on_cpu = report.device is not None and report.device.kind == "cpu"
        train = command_line("axolotl train", report.recipe, launcher="python" if on_cpu else None)
        say(f"No problem found.\nNext: {train}")


LEVELS = {
    "system": "system text: what all prompts begin with",
    "document": "document: what several prompts begin with",
    "prompt": "prompt: once for all responses of a group",
    "turns": "turns: the earlier turns of a conversation",
    "responses": "responses: equal first words",
}


def _show_sharing(sharing: "Sharing") -> None:
    rows = [
        (LEVELS[level], f"{saved:,}", f"{100 * sharing.shares[level]:.1f} %")
        for level, saved in sharing.saved.items()
        if saved
    ]
    everything = sharing.expanded - sharing.shared
    rows.append(("all", f"{everything:,}", f"{100 * everything / max(sharing.expanded, 1):.1f} %"))
    title = f"What sharing saves, in {sharing.groups:,} groups drawn as in training"
    table(("level", "tokens saved", "of expanded"), rows, title=title)


def _show_memory(report: "RecipeReport") -> None:
    if not report.memory:
        return
    sizes = [f"{batch} x {length:,}" for batch, length in (report.batch[layout] for layout in report.memory)]
    rows = [("rows x tokens", *sizes)]
    for name in ("weights", "training_state", "activations", "logits", "dequantised", "total"):
        cells = [f"{getattr(found, name):.2f}" for found in report.memory.values()]
        if any(cell != "0.00" for cell in cells):
            rows.append((name.replace("_", " "), *cells))
    table(
        ("GiB", *report.memory), rows, title="Peak memory of the largest step: an estimate from shapes, not measured"
    )
    first = next(iter(report.memory.values()))
    say(f"{first.parameters:,} parameters, {first.trained_parameters:,} trained. Formula: docs/doctor-reference.md.")
    available = report.device and report.device.memory_gib
    if report.device is not None and available and report.layout is not None:
        total = report.memory[report.layout].total
        verdict = "fits" if total < 0.9 * available else "may not fit"
        say(f"{report.device.name} has {available:.1f} GiB: {total:.1f} GiB {verdict} (a tenth is kept free).")


def _show_measured(report: "RecipeReport", step: "MeasuredStep") -> None:
    estimate = report.memory[step.layout].total if step.layout in report.memory else None
    row = (
        step.layout,
        f"{step.rows} x {step.tokens:,}",
        f"{step.seconds:.2f}",
        f"{step.resting:.2f}",
        f"{step.peak:.2f}",
        f"{step.process:.2f}",
        "-" if estimate is None else f"{estimate:.2f}",
    )
    columns = ("layout", "rows x tokens", "seconds", "at rest", "peak", "process GiB", "estimate GiB")
    table(columns, [row], title=f"Measured: an optimizer step of the longest rows, on {step.device}")
    batches = "1 micro-batch" if step.micro_batches == 1 else f"{step.micro_batches} micro-batches"
    say(f"The step had {batches}, with the backend {step.backend}. What is measured: docs/doctor-reference.md.")


BACKENDS = f"auto, {', '.join(PREFIX_BACKENDS)}, or your own file.py:class. Repeat for several."

SHAPES = "P,R,K or S,P,R,K or TxU,H,A (see above). Repeat for several."


@dataclass(kw_only=True)
class BenchOptions:
    shape: list[str] | None = flag(None, SHAPES)
    mixed: bool = flag(False, "Log-normal lengths with these means, as in real data.")
    model: str | None = flag(None, "Path or hub id of a causal model. By default a random 4-layer Llama.", "base")
    size: str | None = flag(None, "A random model of the size of llama-8b or qwen-4b.", "name")
    layers: int | None = flag(None, "Layers of the model of that size; by default all.", min=1)
    hybrid: bool = flag(False, "A random Qwen 3.5, with states along the row, instead of the random Llama.")
    vocabulary: int = flag(1000, "Of the random model.", min=16)
    dtype: Literal["auto", "float32", "bfloat16"] = flag("auto", "auto, float32 or bfloat16.")
    lora: bool = flag(False, "Train LoRA adapters instead of all weights.")
    load_in_4bit: bool = switch("QLoRA: 4-bit weights, LoRA adapters.")
    prefix_backend: list[str] | None = flag(None, BACKENDS, "backend")
    only: str = flag("", "Only the trainers whose name contains this, such as 'mrt shared'.")
    objective: ObjectiveName = flag(
        "nll", "Another objective than nll runs our trainers only; scores fall along a group."
    )
    groups: int = flag(2, "Groups (prompts, conversations) per optimizer step; TRL gets their pairs.", min=1)
    steps: int = flag(3, "Timed steps of a trainer in a round.", min=1)
    rounds: int = flag(5, "Rounds. In each, every trainer runs once.", min=1)
    gradient_checkpointing: bool = flag(False, "Recompute activations, in every trainer.")
    breakdown: bool = flag(False, "Also measure where the rest of the token ratio goes.")
    time_limit: float | None = flag(None, "Seconds after which no further shape or round starts.", min=0)
    threads: int | None = flag(None, "CPU threads; by default as PyTorch chooses.", min=1)
    cpu: bool = flag(False, "Use the CPU even where there is a GPU.")
    plot: Path | None = flag(None, "Write a picture: .png, .svg or .pdf.", "picture")
    json: bool = switch("Print everything as JSON.")


@command(BenchOptions)
def bench(given: BenchOptions) -> None:
    """Train the same pairs with TRL's SFTTrainer and with ours, in turn, and compare speed and peak memory.

    A shape is P,R,K: prompt tokens, response tokens, responses. S,P,R,K adds a system text of S tokens, the same for
    all prompts. TxU,H,A is a conversation of T turns: U user tokens, H thinking tokens, A answer tokens. Each of its
    turns is a pair of its own, in a context without earlier thinking, as at inference.

    Needs a quiet machine: ratios of times mean little beside other work.

    Example: `mrt bench --shape 512,64,8 --breakdown`

    Long system text: `mrt bench --shape 1024,64,64,1 --groups 16`

    Thinking turns: `mrt bench --shape 20x64,128,16 --groups 1`

    Large models, on a GPU: `mrt bench --size llama-8b --layers 8 --load-in-4bit --gradient-checkpointing`
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own messages
    with loading():
        from mrt_plugin.bench.model import ModelChoice
        from mrt_plugin.bench.run import BenchSettings, run_bench
        from mrt_plugin.bench.shapes import DEFAULT_SHAPES, parse_shape
        from mrt_plugin.groups.paths import check_paths

    check_paths([("--plot", given.plot)], models=[given.model])
    if given.threads is not None:
        import torch

        torch.set_num_threads(given.threads)
    options = vars(given) | {
        "shapes": [parse_shape(text) for text in given.shape] if given.shape else DEFAULT_SHAPES,
        "model": ModelChoice(given.model, **part_of(ModelChoice, vars(given))),
        "prefix_backends": given.prefix_backend or ["auto"],
    }
    with stages() as progress:
        progress("building the model")
        result = run_bench(BenchSettings(**part_of(BenchSettings, options)), progress)
    if given.plot is not None:
        from mrt_plugin.bench.plot import plot as draw

        draw(result, given.plot)
    finish(given, result, type(result).as_json, _show_bench)


def _show_bench(result: "BenchResult") -> None:
    from mrt_plugin.bench.plot import headline

    say(headline(result), "")
    say(
        "{device}, {cores} cores, {threads} threads, load {load} before; torch {torch}, transformers {transformers}, "
        "trl {trl}.".format_map(result.machine)
    )
    rival, fastest = ("TRL", "TRL's fastest mode") if result.settings["objective"] == "nll" else ("expanded",) * 2
    columns = ("", "batch", "pairs/s", f"vs {rival}", "of ratio", "peak MiB", "step MiB")
    for found in result.shapes:
        title = ", ".join(f"{symbol} {number}" for symbol, number in found.shape.lengths.items())
        table(columns, [_row(arm) for arm in found.arms], f"{title}: token ratio {found.token_ratio:.2f}")
        say(*(f"{arm.name}: {arm.error}" for arm in found.arms if arm.error is not None))
        if found.breakdown is not None:
            pieces = found.breakdown
            steps = [{**column, "step": sum(column.values())} for column in (pieces.theirs, pieces.ours, pieces.lost)]
            rows = [
                (piece, f"{1000 * theirs:.1f}", f"{1000 * ours:.1f}", f"{100 * lost:+.1f} %")
                for piece, theirs, ours, lost in zip(steps[0], *(column.values() for column in steps), strict=True)
            ]
            table(("ms, under the profiler", "TRL", "shared prefix", "of the ratio lost"), rows)
    say("batch: the micro-batch at which the trainer was fastest, in pairs (TRL) or groups (ours).")
    say("A pair is a prompt with a response; in a multi-turn shape, a turn with the context that it had at inference.")
    say(f"vs {rival}: pairs per second over those of {fastest}; of ratio: that, over the token ratio.")
    say("peak MiB: the peak memory of an optimizer step; step MiB: without weights and optimizer state.")


def _row(arm: "ArmResult") -> tuple[str, ...]:
    measured = arm.as_json()
    names = ("size", "pairs_per_second", "speedup", "fraction", "peak_mib", "step_mib")
    texts = zip(names, ("{}", "{:.2f}", "{:.2f}x", "{:.2f}", "{:.0f}", "{:.0f}"), strict=True)
    return (arm.name, *(text.format(measured[name]) if name in measured else "-" for name, text in texts))


@dataclass(kw_only=True)
class DemoOptions:
    output: Path = flag(Path("demo_output"), "Folder for everything the demo makes.")
    quick: bool = switch("Check that everything runs; the numbers mean nothing.")
    seed: int = flag(0, "Draws the data, the model and the selection.", min=0)
    json: bool = switch("Print the results as JSON.")


@command(DemoOptions)
def demo(given: DemoOptions) -> None:
    """Train with Axolotl (QLoRA) on K = 1 and on K = 4 responses per prompt, and compare with a known truth.

    Generates the data, builds and pretrains a tiny chat model, runs `axolotl train` twice, and measures held-out NLL,
    exact KL to the truth and mode coverage. Nothing is downloaded.

    Example: `mrt demo --output demo_output`
    """
    # Before torch is imported: OpenMP's threads spin while they wait, which on a busy machine is 13 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mrt_plugin.demo.run import QUICK, DemoSettings, run_demo

    settings = replace(QUICK if given.quick else DemoSettings(), seed=given.seed)
    with stages() as progress:
        progress("drawing the data")
        results = run_demo(given.output, settings, progress)
    if given.json:
        return as_json(results.as_json())
    measured = [(run.name, run.held_out, f"{run.seconds.steps:.1f} s" if run.seconds else "") for run in results.runs]
    measured.append(("the truth", results.truth, ""))
    rows = [(name, *(f"{value:.3f}" for value in astuple(found)), steps) for name, found, steps in measured]
    table(("", "held-out NLL", "KL to truth", "coverage", "elsewhere", "steps"), rows)
    say("NLL is in nats per token, KL in nats per response. Coverage is the true probability of the answers to which")
    say("the model gives at least half of theirs. Elsewhere is its probability of an answer that is not right.\n")
    say("This was the short form: its numbers mean nothing." if given.quick else results.sentence)
    say(f"The picture is {given.output / 'results.png'}. Recipes, data and logs are beside it.")
    say(f"All of it took {results.seconds:.0f} seconds.")
    say(f"Next: {command_line('mrt plan', given.output / 'pool.jsonl', model=given.output / 'model')}")


@dataclass(kw_only=True)
class SimulateOptions:
    output: Path = flag(Path("simulation"), "Folder for results.json, report.html and a PNG per experiment.")
    only: str | None = flag(None, "With commas: variance, budget, lottery, by_selector, gradients, bridge, tokens.")
    seed: int = flag(0, "Of every draw; the paper's networks keep their own.", min=0)
    fit: Path | None = flag(None, "Instead: fit a + b/K to JSONL of `k`, `loss`, maybe `arm`.", "file")
    json: bool = switch("Print the results as JSON.")


@command(SimulateOptions)
def simulate(given: SimulateOptions) -> None:
    """Repeat the seven controlled experiments on the CPU, and compare every published figure with ours.

    Results are written after each experiment, so a stopped run keeps the finished ones. All take under five minutes on
    two cores. The last experiment runs this package's trainer, the others its selectors.

    Example: `mrt simulate --output simulation`

    Your own runs: `mrt simulate --fit runs.jsonl`
    """
    if given.fit is not None:
        from mrt_plugin.planning.fit import fit_runs, read_runs

        return finish(given, fit_runs(read_runs(given.fit)), json_ready, show_fits)
    with loading():
        from mrt_plugin.groups.paths import check_paths
        from mrt_plugin.simulation.run import (
            COLUMNS,
            EXPERIMENTS,
            next_step,
            run_experiments,
            say_takeaways,
            write_report,
        )

    output, seed = given.output, given.seed
    check_paths(("--output", output / name) for name in ("results.json", "report.html"))
    names = list(EXPERIMENTS) if given.only is None else [name.strip() for name in given.only.split(",")]
    with stages() as progress:
        results = run_experiments(names, seed=seed, progress=progress, publish=lambda it: write_report(it, output))
    if given.json:
        return as_json(results.as_json())
    for name, takeaway in say_takeaways(results).items():
        say(f"{name}: {takeaway}")
    if results.published:
        table(COLUMNS[:4], [astuple(row)[:4] for row in results.published])
    seconds = sum(finished.seconds for finished in results.experiments.values())
    say(f"Why some differ, and the pictures: {output}/report.html ({seconds:.0f} s; numbers in results.json).")
    say(str(next_step(results, output)))
