"""`mrt demo`: train on generated data with a known truth, and show the results."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mrt_plugin.cli.show import as_json, plain_errors, say, stages, table


def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo_output"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Check that everything runs; the numbers mean nothing.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Draws the data, the model and the selection.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Train with Axolotl (QLoRA) on K = 1 and on K = 4 responses per prompt, and compare with a known truth.

    Generates the data, builds and pretrains a tiny chat model, runs `axolotl train` twice, and measures held-out NLL,
    exact KL to the truth and mode coverage. Nothing is downloaded.

    Example: `mrt demo --output demo_output`
    """
    # Before torch is imported: OpenMP's threads spin while they wait, which on a busy machine is 13 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with plain_errors():
        from dataclasses import replace

        from mrt_plugin.demo.run import QUICK, DemoSettings, run_demo

        settings = replace(QUICK if quick else DemoSettings(), seed=seed)
        with stages() as progress:
            results = run_demo(output, settings, progress)
    if json:
        as_json(results)
        return
    columns = ("", "held-out NLL", "KL to truth", "coverage", "elsewhere", "steps")
    rows = [
        (
            run["name"],
            f"{run['held_out_nll']:.3f}",
            f"{run['kl']:.3f}",
            f"{run['coverage']:.3f}",
            f"{run['elsewhere']:.3f}",
            f"{run['seconds']['steps']:.1f} s" if "seconds" in run else "",
        )
        for run in [*results["runs"], {"name": "the truth", **results["truth"]}]
    ]
    table(columns, rows)
    say("NLL in nats per token, KL in nats per response; coverage: the true probability on modes that the model")
    say("gives at least half of theirs; elsewhere: the model's probability of an answer that is no mode.")
    say("The short form: these numbers mean nothing." if quick else results["sentence"])
    say(f"Recipes, data, logs, results.json and results.png are in {output}/ ({results['seconds']:.0f} s in all).")
