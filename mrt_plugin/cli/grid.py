"""`mrt grid`: which (prompts, K) to compare by training, and the results of the runs."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from mrt_plugin.cli.fits import show_fits
from mrt_plugin.cli.model import CostPrompt, CostResponse, Layout, given_costs
from mrt_plugin.cli.option import budget_text, existing_data, existing_file, existing_tokenizer
from mrt_plugin.cli.show import as_json, json_ready, log_to_stderr, plain_errors, say, table
from mrt_plugin.options import PaidLayout


def grid(
    data: Annotated[
        str | None,
        typer.Argument(help="The pools: a file or a hub id. Not with --recipe.", callback=existing_data),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="An Axolotl recipe; one is written per run.", callback=existing_file)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for runs.jsonl and, with --recipe, the recipes.")] = None,
    k: Annotated[str, typer.Option(help="Values of K.")] = "1,2,4,8",
    arm: Annotated[
        str | None, typer.Option(help="Only these, with commas: equal prompts, equal pairs, equal cost.")
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="Of equal prompts; by default all.")] = None,
    pairs: Annotated[int | None, typer.Option(min=1, help="Of equal pairs; by default as many as prompts.")] = None,
    budget: Annotated[
        str, typer.Option(help="Cost of an epoch for equal cost, as in `mrt plan`.", callback=budget_text)
    ] = "1x",
    plan: Annotated[
        Path | None,
        typer.Option(help="Output of `mrt plan --json`, for costs, layout and budget.", callback=existing_file),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="For token costs: folder or name; the recipe's by default.", callback=existing_tokenizer),
    ] = None,
    cost_prompt: CostPrompt = None,
    cost_response: CostResponse = None,
    layout: Layout = "shared_prefix",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each setting, with other responses drawn.")] = 1,
    results: Annotated[
        Path | None,
        typer.Option(help="Instead: runs.jsonl of a trained grid. Fits loss = a + b/K.", callback=existing_file),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the grid, or the results, as JSON.")] = False,
) -> None:
    """Lay out training runs that hold prompts, pairs or cost fixed while K rises, and summarise their results.

    Example: `mrt grid --recipe recipe.yaml --output grid --repeats 3`

    Without Axolotl: `mrt grid pool.jsonl --tokenizer path/or/name --output grid`

    Afterwards: `mrt grid --results grid/runs.jsonl`
    """
    with plain_errors():
        log_to_stderr()
        if results is not None:
            _show_results(results, json)
            return
        from mrt_plugin.groups import load_groups
        from mrt_plugin.groups.paths import Named, check_paths
        from mrt_plugin.planning.budget import parse_budget
        from mrt_plugin.planning.grid import ARMS, RUNS, make_grid, read_recipe, training_groups, write_grid

        if (data is None) == (recipe is None):
            raise ValueError("Give the data, or a --recipe whose dataset is taken, or the --results of runs.")
        given = given_costs(cost_prompt, cost_response, layout)
        ks, arms = _numbers(k), ARMS if arm is None else _arms(arm)
        inputs: list[Named] = [("the data", data), ("--recipe", recipe), ("--plan", plan)]
        if output is not None:
            check_paths([("the list of runs", output / RUNS)], inputs, [tokenizer])
        base = None if recipe is None else read_recipe(recipe)
        if base is None:
            groups = load_groups(data)
        else:
            block = base.get("mrt") or {}
            groups = training_groups(load_groups(base["datasets"][0]["path"], source=block.get("source")), base)
        costs, planned = _costs(groups, base, plan, tokenizer, given, layout)
        found = make_grid(
            [len(responses) for responses in groups["responses"]],
            costs,
            ks=ks,
            prompts=prompts,
            pairs=pairs,
            budget=planned or parse_budget(budget, len(groups) * costs.of_prompt(1)),
            arms=arms,
        )
        lines = [] if output is None else write_grid(found.settings, output, recipe=base, repeats=repeats, read=inputs)
    if json:
        as_json(json_ready({"costs": costs, "prompts_owned": len(groups)} | vars(found) | {"runs": lines}))
        return
    rows = [
        (row.arm, f"{row.k}", f"{row.prompts:,}", f"{row.pairs:,.0f}", f"{row.cost:,.0f}") for row in found.settings
    ]
    title = f"{len(groups):,} prompts; a prompt costs {costs.prompt:.4g}, a response {costs.response:.4g}"
    table(("arm", "K", "prompts n", "pairs", "cost of an epoch"), rows, title=f"{title} ({costs.layout})")
    for line in found.left_out:
        say(f"Left out: {line}")
    _say_next(output, lines, base is not None)


def _say_next(output: Path | None, lines: list[dict[str, Any]], recipes: bool) -> None:
    if output is None:
        say("Next: add --output grid to write the list of runs, and --recipe recipe.yaml for a recipe for each.")
        return
    listing = output / "runs.jsonl"
    if recipes:
        count = len({line["recipe"] for line in lines})
        say(f"{count} recipes and {listing}. What two arms have in common is trained once.")
        say(f'Next: for recipe in {output}/*.yaml; do axolotl train "$recipe"; done')
        say(f"then: mrt grid --results {listing}")
    else:
        say("Next: train each with k=K on n prompts, load_groups(...).shuffle(seed=0).select(range(n)), and write its")
        say(f"held-out loss into {listing}; then: mrt grid --results {listing}")


def _show_results(path: Path, json: bool) -> None:
    from mrt_plugin.planning.fit import read_results, weigh_results

    runs, missing = read_results(path)
    if missing:
        shown = ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
        if not runs:
            raise ValueError(
                f"{path}: no run has a result yet ({shown}). Train them, with val_set_size and an evaluation in the "
                "recipe, or write each one's held-out `loss` into its line."
            )
    found = weigh_results(runs)
    if json:
        as_json({"arms": json_ready(found), "missing": missing})
        return
    rows = []
    for arm, result in found.items():
        for row in result.by_k:
            change = "" if row is result.by_k[0] else _with_error(row.difference, row.difference_error)
            rows.append((arm, f"{row.k:g}", f"{row.runs}", _with_error(row.loss, row.error), change))
    table(("arm", "K", "runs", "held-out loss", "to the smallest K"), rows)
    show_fits({arm: result.fit for arm, result in found.items() if result.fit is not None})
    if missing:
        say(f"Without a result so far: {shown}.")
    if any(row.runs < 3 for result in found.values() for row in result.by_k):
        say("Fewer than three runs of a setting: what is beyond the ± may still be chance. Next: more --repeats.")


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _costs(
    groups: Any,
    recipe: dict[str, Any] | None,
    plan: Path | None,
    tokenizer: str | None,
    given: Any,
    layout: PaidLayout,
) -> tuple[Any, float | None]:
    """Return the costs, and the budget of a plan."""
    from mrt_plugin.planning.budget import Costs

    if plan is not None:
        try:
            model = json_module.loads(plan.read_text(encoding="utf-8"))["model"]
            costs = Costs(model["costs"]["prompt"], model["costs"]["response"], model["layout"])
            return costs, float(model["budget"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{plan} is not what `mrt plan DATA --model MODEL --json` prints.") from error
    if given is not None:
        return given, None
    if tokenizer is None and recipe is not None:
        tokenizer = recipe.get("tokenizer_config") or recipe.get("base_model")
    if tokenizer is None:
        raise ValueError(
            "Equal cost needs costs: --tokenizer (token counts), --plan (of `mrt plan --json`), or --cost-prompt and "
            "--cost-response."
        )
    from transformers import AutoTokenizer

    from mrt_plugin.encoding import Encoder, prepare_tokenizer
    from mrt_plugin.planning.measure import token_costs
    from mrt_plugin.planning.plan import sample_rows

    words = prepare_tokenizer(AutoTokenizer.from_pretrained(tokenizer))
    format_ = ((recipe or {}).get("mrt") or {}).get("prompt_format", "auto")
    some, encoder = groups.select(sample_rows(groups["id"], 500, 0)), Encoder(words, prompt_format=format_)
    return token_costs((encoder.encode_group(one["prompt"], one["responses"]) for one in some), layout), None


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if min(found, default=0) < 1:
        raise ValueError(f"--k {text}: give whole numbers of at least 1 with commas, such as 1,2,4,8.")
    return found


def _arms(text: str) -> Any:
    from mrt_plugin.planning.grid import ARMS

    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in ARMS]
    if unknown:
        raise ValueError(f"--arm {unknown[0]!r} is unknown: choose of {', '.join(ARMS)}.")
    return names
