"""`mrt grid`: lay out training runs that can be compared, and summarise their results."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrt_plugin
from mrt_plugin.cli.option import again, argument, command, flag, numbers, switch
from mrt_plugin.cli.planning import CostOptions
from mrt_plugin.cli.progress import loading, stages
from mrt_plugin.cli.show import as_json, command_line, json_ready, say, show_fits, table, with_error

if TYPE_CHECKING:
    from mrt_plugin.planning.budget import Costs
    from mrt_plugin.planning.grid import Grid


@dataclass(kw_only=True)
class GridOptions(CostOptions):
    data: str | None = argument(None, "The pools: a file or a hub id. Not with --recipe.", "data")
    recipe: Path | None = flag(None, "An Axolotl recipe; one is written per run.", "recipe")
    output: Path | None = flag(None, "Folder for runs.jsonl and, with --recipe, the recipes.")
    k: str | None = flag(None, "Values of K; by default 1,2,4,8, and 2,3,4 with --annotations.")
    axis: list[str] | None = flag(None, "NAME=VALUE,VALUE: any option of a run, such as selector, alpha or layout.")
    annotations: str | None = flag(None, "Instead of arms: budgets of scored responses, spent on A/K prompts each.")
    duration: str | None = flag(None, "With --annotations: epochs, steps, or both, which a --recipe has by default.")
    arm: str | None = flag(None, "Only these, with commas: equal prompts, equal pairs, equal cost.")
    prompts: int | None = flag(None, "Of equal prompts; by default all.", min=1)
    pairs: int | None = flag(None, "Of equal pairs; by default as many as prompts.", min=1)
    budget: str = flag("1x", "Cost of an epoch for equal cost, as in `mrt plan`.", "budget")
    plan: Path | None = flag(None, "Output of `mrt plan --json`, for costs, layout and budget.", "file")
    tokenizer: str | None = flag(None, "For token costs: folder or name; the recipe's by default.", "tokenizer")
    repeats: int = flag(1, "Runs of each setting, with other responses drawn.", min=1)
    results: Path | None = flag(None, "Instead: runs.jsonl of a trained grid. Fits its results.", "file")
    json: bool = switch("Print the grid, or the results, as JSON.")


@command(GridOptions)
def grid(given: GridOptions) -> None:
    """Lay out training runs that hold prompts, pairs or cost fixed while K rises, and summarise their results.

    Example: `mrt grid --recipe recipe.yaml --output grid --repeats 3`

    Without Axolotl: `mrt grid pool.jsonl --tokenizer path/or/name --output grid`

    Prompts against responses: `mrt grid --recipe recipe.yaml --annotations 1200,2400 --output grid --repeats 3`

    Afterwards: `mrt grid --results grid/runs.jsonl`
    """
    if given.results is not None:
        return _show_results(given.results, given.json)
    with loading():
        from mrt_plugin.groups.paths import Named, check_paths
        from mrt_plugin.planning.budget import parse_budget
        from mrt_plugin.planning.grid import (
            ARMS,
            RUNS,
            TYPE,
            combine_axes,
            describe,
            make_grid,
            parse_axes,
            read_recipe,
            training_groups,
            write_grid,
        )
        from mrt_plugin.planning.scaling import make_scaling

    if (given.data is None) == (given.recipe is None):
        raise ValueError("Give the data, or a --recipe whose dataset is taken, or the --results of runs.")
    stated, output = given.costs(), given.output
    text = given.k or ("1,2,4,8" if given.annotations is None else "2,3,4")
    ks = numbers(text, f"--k {text}: give whole numbers of at least 1 with commas, such as 1,2,4,8.")
    axes = parse_axes(given.axis or [])
    budgets, durations = _budgets(given)
    arms: Any = ARMS if given.arm is None else [name.strip() for name in given.arm.split(",")]
    for name in set(arms) - set(ARMS):
        raise ValueError(f"--arm {name!r} is unknown: choose of {', '.join(ARMS)}.")
    inputs: list[Named] = [("the data", given.data), ("--recipe", given.recipe), ("--plan", given.plan)]
    if output is not None:
        check_paths([("the list of runs", output / RUNS)], inputs, [given.tokenizer])
    base = None if given.recipe is None else read_recipe(given.recipe)
    with stages() as progress:
        progress("reading the data")
        if base is None:
            groups = mrt_plugin.load_groups(given.data)
        else:
            block = base.get("mrt") or {}
            groups = mrt_plugin.load_groups(base["datasets"][0]["path"], source=block.get("source"))
            groups = training_groups(groups, base)
    block = {} if base is None else base.get("mrt") or {}
    selector = "random_k" if base is None else base["datasets"][0]["type"].removeprefix(TYPE)
    combinations, merged = combine_axes(axes, block.get("selector", selector), block)
    if given.annotations is not None:
        how: dict[str, Any] = {"ks": ks, "durations": durations, "recipe": base, "combinations": combinations}
        found = make_scaling(list(map(len, groups["responses"])), budgets, **how)
        found.left_out.extend(merged)
        return _write_scaling(given, groups, base, found, inputs)
    costs, budget = (stated, None) if given.plan is None else _planned(given.plan)
    if costs is None:
        with stages() as progress:
            progress("counting tokens")
            costs = _token_costs(groups, base, given)
    budget = budget or parse_budget(given.budget, len(groups) * costs.of_prompt(1))
    sizes = list(map(len, groups["responses"]))
    limits: dict[str, Any] = {"prompts": given.prompts, "pairs": given.pairs, "budget": budget}
    found = make_grid(sizes, costs, ks=ks, arms=arms, combinations=combinations, **limits)
    found.left_out.extend(merged)
    lines: list[dict[str, Any]] = []
    if output is not None:
        lines = write_grid(found.settings, output, recipe=base, repeats=given.repeats, read=inputs)
    if given.json:
        return as_json(json_ready({"costs": costs, "prompts_owned": len(groups)} | vars(found) | {"runs": lines}))
    rows = [
        (describe(row.options, row.arm), f"{row.k}", f"{row.prompts:,}", f"{row.pairs:,.0f}", f"{row.cost:,.0f}")
        for row in found.settings
    ]
    title = f"{len(groups):,} prompts; a prompt costs {costs.prompt:.4g}, a response {costs.response:.4g}"
    table(("arm", "K", "prompts n", "pairs", "cost of an epoch"), rows, title=f"{title} ({costs.layout})")
    say(*(f"Left out: {line}" for line in found.left_out))
    if output is None:
        return say(f"Next: write the list of runs, and a recipe for each with --recipe: {again(output='grid')}")
    if base is not None:
        count = len({line["recipe"] for line in lines})
        say(f"{count} recipes and {output / RUNS}. What two arms have in common is trained once.")
        say(f"Next: {train_all(output)}")
    else:
        say("Next: train each with k=K on n prompts, load_groups(...).shuffle(seed=0).select(range(n)), and write its")
        say(f"held-out loss into {output / RUNS}")
    say(f"then: {command_line('mrt grid', results=output / RUNS)}")


def train_all(folder: Path) -> str:
    """Return the line of a shell that trains every recipe of a folder."""
    return f'for recipe in {shlex.quote(str(folder))}/*.yaml; do axolotl train "$recipe"; done'


def _budgets(given: GridOptions) -> tuple[list[int], list[Any]]:
    """Return the budgets and durations of prompts against responses."""
    from mrt_plugin.planning.scaling import DURATIONS

    usual = "epochs" if given.recipe is None else "epochs,steps"
    durations = [name.strip() for name in (given.duration or usual).split(",")]
    if set(durations) - set(DURATIONS):
        raise ValueError(f"--duration {given.duration}: choose of {', '.join(DURATIONS)}.")
    if given.annotations is None:
        return [], durations
    text = given.annotations
    refusal = f"--annotations {text}: give whole numbers of responses with commas, such as 1200,2400."
    return numbers(text, refusal), durations


def _write_scaling(
    given: GridOptions, groups: Any, base: dict[str, Any] | None, found: "Grid", inputs: list[Any]
) -> None:
    """Write and show prompts against responses at equal annotations."""
    from mrt_plugin.planning.diversity import Tokenize, token_ids, words
    from mrt_plugin.planning.grid import RUNS, SEED, describe, write_grid
    from mrt_plugin.planning.scaling import count_ngrams, subset

    tokenize: Tokenize = words
    recipe = base or {}
    tokenizer = given.tokenizer or recipe.get("tokenizer_config") or recipe.get("base_model")
    if tokenizer is not None:
        from transformers import AutoTokenizer

        tokenize = token_ids(AutoTokenizer.from_pretrained(tokenizer))
    lines: list[dict[str, Any]] = []
    if given.output is not None:
        counted: dict[tuple[int, int], dict[str, Any]] = {}

        def measure(prompts: int, repeat: int) -> dict[str, Any]:
            if (prompts, repeat) not in counted:
                rule = {"sample": {"groups": prompts, "seed": repeat}}
                drawn = subset(groups, rule, recipe.get("seed") or SEED)
                counted[prompts, repeat] = {"score": None, "ngrams": count_ngrams(drawn, tokenize)}
            return counted[prompts, repeat]

        lines = write_grid(
            found.settings, given.output, recipe=base, repeats=given.repeats, read=inputs, measure=measure
        )
    if given.json:
        return as_json(json_ready({"prompts_owned": len(groups)} | vars(found) | {"runs": lines}))
    rows = [
        (describe(row.options, row.arm), f"{row.annotations:,}", f"{row.k}", f"{row.prompts:,}", f"{row.steps or ''}")
        for row in found.settings
    ]
    table(("", "annotations", "K", "prompts n", "steps"), rows, title=f"{len(groups):,} prompts")
    say(*(f"Left out: {line}" for line in found.left_out))
    if given.output is None:
        return say(f"Next: write the list of runs, and a recipe for each with --recipe: {again(output='grid')}")
    listing = given.output / RUNS
    if base is not None:
        say(f"Next: {train_all(given.output)}")
        say(f"The held-out loss is read from each run. Or write a `score` of your own into each line of {listing},")
    else:
        rule = '[{"sample": {"groups": n, "seed": repeat}}]'
        say(f"Next: train each with k=K on mrt_plugin.curation.curate(groups, {rule}).groups,")
        say(f"and write its `score` into {listing},")
    say(f"then: {command_line('mrt grid', results=listing)}")


def _show_scaling(path: Path, as_document: bool) -> None:
    from mrt_plugin.planning.scaling import scaling_result

    found = scaling_result(path)
    if as_document:
        return as_json(json_ready(found))
    rows = []
    for row in sorted(found.cells, key=lambda row: (row.arm, row.annotations, row.k)):
        counts = (f"{row.annotations:,}", f"{row.k}", f"{row.prompts:,}", "" if row.d is None else f"{row.d:.2f}")
        rows.append((row.arm, *counts, f"{row.runs}", with_error(row.score, row.error)))
    name = "score" if found.measure == "score" else "held-out loss"
    table(("", "annotations", "K", "prompts n", "d", "runs", name), rows, title=f"{name} by number of prompts")
    fits = []
    for fit in (fit for fit in found.fits if fit.order == 2 and fit.p == 0.5 and not fit.searched):
        line = (f"{fit.slope:.4g}", f"{fit.intercept:.4g}", f"{fit.mse:.2e}")
        r_squared = "" if fit.r_squared is None else f"{fit.r_squared:.3f}"
        fits.append((fit.arm, "all" if fit.k is None else f"{fit.k}", f"{fit.runs}", *line, r_squared))
    if fits:
        title = f"{name} = slope·d + intercept, d = r·n^0.5 with bigrams"
        table(("", "K", "runs", "slope", "intercept", "MSE", "R²"), fits, title=title)
        _show_sensitivity(found.fits, name)
    else:
        say("A fit on d needs three runs with different prompts. Next: more --annotations, or --repeats.")
    if found.missing:
        say(f"Without a result so far: {', '.join(found.missing[:8])}{' ...' if len(found.missing) > 8 else ''}.")


def _show_sensitivity(fits: Any, name: str) -> None:
    """Write the mean squared error by n-gram order and p, for all K together where there are several."""
    for arm in dict.fromkeys(fit.arm for fit in fits):
        own = [fit for fit in fits if fit.arm == arm]
        own = [fit for fit in own if fit.k is None] or own
        powers = sorted({fit.p for fit in own if not fit.searched})
        rows = []
        for order in sorted({fit.order for fit in own}):
            errors = {fit.p: f"{fit.mse:.2e}" for fit in own if fit.order == order and not fit.searched}
            best = next((f"{fit.mse:.2e} at {fit.p:g}" for fit in own if fit.order == order and fit.searched), "")
            rows.append((f"{order}", *(errors.get(p, "") for p in powers), best))
        table(("n-grams", *(f"p = {p:g}" for p in powers), "best p"), rows, title=f"MSE of {name} on d, {arm}")


def _planned(plan: Path) -> "tuple[Costs, float]":
    from mrt_plugin.planning.budget import Costs

    try:
        model = json.loads(plan.read_text(encoding="utf-8"))["model"]
        costs = Costs(model["costs"]["prompt"], model["costs"]["response"], model["layout"])
        return costs, float(model["budget"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{plan} is not what `mrt plan DATA --model MODEL --json` prints.") from error


def _token_costs(groups: Any, base: dict[str, Any] | None, given: GridOptions) -> "Costs":
    recipe = base or {}
    tokenizer = given.tokenizer or recipe.get("tokenizer_config") or recipe.get("base_model")
    if tokenizer is None:
        ways = "--tokenizer (token counts), --plan (of `mrt plan --json`), or --cost-prompt and --cost-response"
        raise ValueError(f"Equal cost needs costs: {ways}.")
    from transformers import AutoTokenizer

    from mrt_plugin.encoding import Encoder, prepare_tokenizer
    from mrt_plugin.planning.measure import token_costs
    from mrt_plugin.planning.plan import sample_rows

    words = prepare_tokenizer(AutoTokenizer.from_pretrained(tokenizer))
    block = recipe.get("mrt") or {}
    encoder, context = Encoder(words, block.get("prompt_format", "auto")), block.get("turn_context", "inference")
    some = groups.select(sample_rows(groups["id"], 500, 0))
    encoded = (encoder.encode_responses(one["prompt"], one["responses"], context) for one in some)
    return token_costs(encoded, given.layout)


def _show_results(path: Path, as_document: bool) -> None:
    from mrt_plugin.planning.fit import UNTRAINED, read_results, weigh_results
    from mrt_plugin.planning.scaling import is_scaling

    if is_scaling(path):
        return _show_scaling(path, as_document)

    runs, missing = read_results(path)
    shown = ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
    if missing and not runs:
        remedy = f"{UNTRAINED}, or write each one's held-out `loss` into its line."
        raise ValueError(f"{path}: no run has a result yet ({shown}). {remedy}")
    found = weigh_results(runs)
    if as_document:
        return as_json({"arms": json_ready(found), "missing": missing})
    rows = []
    for arm, result in found.items():
        for row in result.by_k:
            change = "" if row is result.by_k[0] else with_error(row.difference, row.difference_error)
            rows.append((arm, f"{row.k:g}", f"{row.runs}", with_error(row.loss, row.error), change))
    table(("arm", "K", "runs", "held-out loss", "to the smallest K"), rows)
    show_fits({arm: result.fit for arm, result in found.items() if result.fit is not None})
    if missing:
        say(f"Without a result so far: {shown}.")
    if any(row.runs < 3 for result in found.values() for row in result.by_k):
        say("Fewer than three runs of a setting: what is beyond the ± may still be chance. Next: more --repeats.")
