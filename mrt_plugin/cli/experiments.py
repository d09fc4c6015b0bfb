"""`mrt demo` and `mrt simulate`: experiments on generated data."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from mrt_plugin.cli.option import command, flag, switch
from mrt_plugin.cli.show import as_json, json_ready, say, show_fits, stages, table


@dataclass(kw_only=True)
class DemoOptions:
    output: Path = flag(Path("demo_output"), "Folder for everything the demo makes.")
    quick: bool = switch("--quick", "Check that everything runs; the numbers mean nothing.")
    seed: int = flag(0, "Draws the data, the model and the selection.", min=0)
    json: bool = switch("--json", "Print the results as JSON.")


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
        results = run_demo(given.output, settings, progress)
    if given.json:
        as_json(results)
        return
    rows = []
    for run in [*results["runs"], {"name": "the truth", **results["truth"]}]:
        numbers = [f"{run[name]:.3f}" for name in ("held_out_nll", "kl", "coverage", "elsewhere")]
        rows.append((run["name"], *numbers, f"{run['seconds']['steps']:.1f} s" if "seconds" in run else ""))
    table(("", "held-out NLL", "KL to truth", "coverage", "elsewhere", "steps"), rows)
    say(
        "NLL in nats per token, KL in nats per response; coverage: the true probability on modes that the model",
        "gives at least half of theirs; elsewhere: the model's probability of an answer that is no mode.",
        "The short form: these numbers mean nothing." if given.quick else results["sentence"],
        f"Recipes, data, logs, results.json and results.png are in {given.output}/ "
        f"({results['seconds']:.0f} s in all).",
    )


@dataclass(kw_only=True)
class SimulateOptions:
    output: Path = flag(Path("simulation"), "Folder for results.json, report.html and a PNG per experiment.")
    only: str | None = flag(
        None, "Names with commas: variance, budget, lottery, by_selector, gradients, bridge, tokens."
    )
    seed: int = flag(0, "Of every draw; the paper's networks keep their own.", min=0)
    fit: Path | None = flag(None, "Instead: fit a + b/K to JSONL of `k`, `loss`, maybe `arm`.", "file")
    json: bool = switch("--json", "Print the results as JSON.")


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

        fits = fit_runs(read_runs(given.fit))
        if given.json:
            as_json(json_ready(fits))
        else:
            show_fits(fits)
        return
    from mrt_plugin.groups.paths import check_paths
    from mrt_plugin.simulation.run import COLUMNS, EXPERIMENTS, run_experiments, write_report

    output = given.output
    check_paths(("--output", output / name) for name in ("results.json", "report.html"))
    names = list(EXPERIMENTS) if given.only is None else [name.strip() for name in given.only.split(",")]
    with stages() as progress:
        results = run_experiments(
            names, seed=given.seed, progress=progress, publish=lambda found: write_report(found, output)
        )
    if given.json:
        as_json(results)
        return
    if results["published"]:
        table(COLUMNS[:4], [[row[name] for name in COLUMNS[:4]] for row in results["published"]])
    seconds = sum(found["seconds"] for found in results["experiments"].values())
    say(f"Why some differ, and the pictures: {output}/report.html ({seconds:.0f} s; numbers in results.json).")
