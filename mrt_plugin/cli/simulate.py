"""`mrt simulate`: the controlled experiments of arXiv 2606.00544, anew."""

from pathlib import Path
from typing import Annotated

import typer

from mrt_plugin.cli.fits import show_fits
from mrt_plugin.cli.option import existing_file
from mrt_plugin.cli.show import as_json, json_ready, plain_errors, say, stages, table


def simulate(
    output: Annotated[
        Path, typer.Option(help="Folder for results.json, report.html and a PNG per experiment.")
    ] = Path("simulation"),
    only: Annotated[
        str | None,
        typer.Option(help="Names with commas: variance, budget, lottery, by_selector, gradients, bridge, tokens."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw; the paper's networks keep their own.")] = 0,
    fit: Annotated[
        Path | None,
        typer.Option(
            help="Instead: fit loss = a + b/K to your runs, JSONL with `k`, `loss` and, if you like, `arm`.",
            callback=existing_file,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Repeat the seven controlled experiments on the CPU, and set every published figure beside ours.

    Each is written to the folder as it ends, so that a run that is stopped keeps those before. Under five minutes on
    two cores. The last experiment runs this package's trainer, the others its selectors.

    Example: `mrt simulate --output simulation`

    Your own runs: `mrt simulate --fit runs.jsonl`
    """
    with plain_errors():
        if fit is not None:
            from mrt_plugin.planning.fit import fit_runs, read_runs

            fits = fit_runs(read_runs(fit))
            if json:
                as_json(json_ready(fits))
            else:
                show_fits(fits)
            return
        from mrt_plugin.groups.paths import check_paths
        from mrt_plugin.simulation.run import COLUMNS, EXPERIMENTS, run_experiments, write_report

        check_paths(("--output", output / name) for name in ("results.json", "report.html"))
        names = list(EXPERIMENTS) if only is None else [name.strip() for name in only.split(",")]
        with stages() as progress:
            results = run_experiments(
                names, seed=seed, progress=progress, publish=lambda found: write_report(found, output)
            )
    if json:
        as_json(results)
        return
    if results["published"]:
        table(COLUMNS[:4], [[row[name] for name in COLUMNS[:4]] for row in results["published"]])
    seconds = sum(found["seconds"] for found in results["experiments"].values())
    say(f"Why some differ, and the pictures: {output}/report.html ({seconds:.0f} s; numbers in results.json).")
