"""`mrt plan`, `mrt audit` and `mrt grid`: decide what to train on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrt_plugin
from mrt_plugin.cli.option import argument, command, flag, numbers, switch, training
from mrt_plugin.cli.show import as_json, finish, json_ready, say, show_fits, stages, table, with_error
from mrt_plugin.models.named_model import parse_models
from mrt_plugin.options import LossAggregation, PaidLayout, PromptFormat, Similarity

if TYPE_CHECKING:
    from mrt_plugin.planning.audit import Audit, SelectorCall
    from mrt_plugin.planning.budget import Costs
    from mrt_plugin.planning.plan import Plan


@dataclass(kw_only=True)
class MeasureOptions:
    model: str | None = flag(None, "The model to fine-tune, which measures loss and variance.", "model")
    adapter: str | None = flag(None, "Folder of an adapter to put on the model.", "adapter")
    tokenizer: str | None = flag(None, "Folder or name; the model's by default.", "tokenizer")
    loss_aggregation: LossAggregation = flag("token", "Of your training loss: token, prompt or response.")
    prompt_format: PromptFormat = flag("auto", "auto, chat or plain.")
    max_length: int | None = flag(None, "Tokens of a prompt with one response.", min=2)
    max_prompts: int = flag(500, "Prompts that the model is measured on.", min=2)
    load_in_4bit: bool = switch("As QLoRA loads it.")
    embedder: str = flag("lexical", "lexical, sentence-transformers, or a model's name or path.", "embedder")
    seed: int = flag(0, "Of the prompts drawn and of the bootstrap.", min=0)

    def _named(self) -> Any:
        return None if self.model is None else parse_models([self.model], adapter=self.adapter)[0]

    def folders(self) -> list[str | None]:
        named = self._named()
        return [self.tokenizer, self.embedder, *((named.path, named.adapter) if named else ())]

    def measuring(self) -> dict[str, Any]:
        """Open the model, and return what `make_plan` and `make_audit` take by the same names."""
        names = ("loss_aggregation", "max_length", "max_prompts", "embedder", "seed")
        found = {name: vars(self)[name] for name in names}
        if self.model is not None:
            from mrt_plugin.models.load import open_model

            how = {name: vars(self)[name] for name in ("tokenizer", "prompt_format", "load_in_4bit")}
            found["model"], found["encoder"] = open_model(self._named(), **how)
        return found


@dataclass(kw_only=True)
class CostOptions:
    layout: PaidLayout = flag("shared_prefix", "The layout you will train in: shared_prefix or expanded.")
    cost_prompt: float | None = flag(None, "C_p as you measured it, in any unit; with C_r.", gt=0)
    cost_response: float | None = flag(None, "C_r, likewise.", gt=0)

    def costs(self) -> "Costs | None":
        from mrt_plugin.planning.budget import Costs

        if (self.cost_prompt is None) != (self.cost_response is None):
            raise ValueError("Give --cost-prompt and --cost-response together.")
        if self.cost_prompt is None or self.cost_response is None:
            return None
        return Costs(self.cost_prompt, self.cost_response, self.layout)


@dataclass(kw_only=True)
class PlanOptions(CostOptions, MeasureOptions):
    data: str = argument(..., "The pools: a JSONL, JSON or Parquet file, or a hub id.", "data")
    budget: str = flag("1x", "Cost of an epoch: tokens, or in ordinary epochs, such as 4x.", "budget")
    ngram: int = flag(2, "Tokens of an n-gram in the prompt diversity.", min=1)
    p: float = flag(0.5, "Exponent of the prompt diversity.", ge=0)
    report: Path | None = flag(None, "Write the plan as one HTML file, to open offline.", "report")
    json: bool = switch("Print the plan as JSON.")


@command(PlanOptions)
def plan(given: PlanOptions) -> None:
    """Compute how many responses per prompt to keep, for your data, your model and your budget.

    Measures where the variance of the loss comes from: the prompts you have, or the responses to each.

    Example: `mrt plan pool.jsonl --model path/or/name --budget 2x --report plan.html`
    """
    from mrt_plugin.groups.paths import check_paths
    from mrt_plugin.planning.plan_report import plan_report

    options: dict[str, Any] = {"costs": given.costs(), "order": given.ngram}
    options |= {name: vars(given)[name] for name in ("budget", "layout", "p", "data")}
    check_paths([("--report", given.report)], [("the data", given.data)], given.folders())
    groups = mrt_plugin.load_groups(given.data)
    options |= given.measuring()
    with stages() as progress:
        found = mrt_plugin.make_plan(groups, progress=progress, **options)
    finish(given, found, plan_json, _show_plan, plan_report)


def plan_json(found: "Plan") -> dict[str, Any]:
    """Return a plan as `mrt plan --json` prints it."""
    from mrt_plugin.planning.plan_report import advise, cannot_know, yaml_block

    result: dict[str, Any] = json_ready(found)
    effective = found.diversity.effective_k
    result["diversity"]["effective_k"] = [{"k": k, "k_eff": k_eff} for k, k_eff in effective.items()]
    if result["model"] is not None:
        del result["model"]["costs"]["layout"]  # it stands beside the costs
    return result | {"advice": advise(found), "cannot_know": cannot_know(found), "yaml": yaml_block(found)}


def _show_plan(found: "Plan") -> None:
    from mrt_plugin.planning import plan_report as tell

    table(("the data", ""), tell.data_rows(found))
    model, name = found.model, found.data.name
    if model is not None:
        table(("the model's loss", "estimate", f"{model.level:.0%} interval"), tell.variance_rows(model))
        rows = [(f"{k} *" if int(k) == model.best.k else k, *rest) for k, *rest in tell.choice_rows(model)]
        columns = ("K", "prompts (shared)", "variance", "prompts (copied)", "variance")
        table(columns, rows, title=f"What {model.budget:,.0f} {model.cost_unit} an epoch buy")
        table(tell.OUTLOOK_COLUMNS, tell.outlook_rows(model), title="The best K by budget")
        if model.documents is not None:
            table(("documents", "estimate", f"{model.level:.0%} interval"), tell.document_rows(model))
            title = "What the same budget buys if a document is computed once (group_by_prefix)"
            table(tell.DOCUMENT_COLUMNS, tell.document_choices(model), title=title)
    say("", *tell.advise(found), "\nWhat this cannot know:", *(f"- {line}" for line in tell.cannot_know(found)))
    if model is None:
        return say(f"\nNext: mrt plan {name} --model path/or/name")
    say("\nFor your recipe:\n", tell.yaml_block(found) or "")
    again = f"mrt select {name} --selector random_k --k {model.best.k} --held-out 0.1 --output chosen.jsonl"
    say(f"Next: {again}, or train on this recipe.")


@dataclass(kw_only=True)
class AuditOptions(MeasureOptions):
    selection: str = argument(..., "The selected groups: JSONL, JSON or Parquet.", "data")
    pool: str = flag(..., "The groups they were selected from.", "data")
    selector: str | None = flag(None, "How the selection was made, if no manifest lies beside it.")
    alpha: float = training("alpha")
    similarity: Similarity = training("similarity")
    max_prompts: int = flag(200, "Prompts whose losses are measured.", min=2)
    gradient_prompts: int = flag(50, "Prompts whose gradients are; 0 for none.", min=0)
    splits: int = flag(20, "Halvings of each pool.", min=2)
    report: Path | None = flag(None, "Write the audit as one HTML file, to open offline.", "report")
    json: bool = switch("Print the audit as JSON.")


@command(AuditOptions)
def audit(given: AuditOptions) -> None:
    """Compare a selection with the pool it came from, and with random_k at the same K.

    Without a model, compare lengths and clusters. With one, compare loss and gradient too, and warn if the selection
    points away from its pool.

    Example: `mrt audit chosen.jsonl --pool pool.jsonl --model path/or/name --report audit.html`
    """
    from mrt_plugin.groups.paths import check_paths
    from mrt_plugin.pipeline.manifest import manifest_path
    from mrt_plugin.planning.audit import make_audit
    from mrt_plugin.planning.audit_report import audit_report

    selection, manifest = given.selection, manifest_path(given.selection)
    inputs: list[tuple[str, Any]] = [("the selection", selection), ("its manifest", manifest), ("--pool", given.pool)]
    check_paths([("--report", given.report)], inputs, given.folders())
    options: dict[str, Any] = {"rule": _selector_call(given, manifest), "name": selection}
    pool, chosen = mrt_plugin.load_groups(given.pool), mrt_plugin.load_groups(selection)
    options |= {"gradient_prompts": given.gradient_prompts, "splits": given.splits} | given.measuring()
    with stages() as progress:
        found = make_audit(chosen, pool, progress=progress, **options)
    finish(given, found, audit_json, _show_audit, audit_report)


def _selector_call(given: AuditOptions, manifest: Path) -> "SelectorCall | None":
    """Return how the selection was made, from the options or from its manifest."""
    from mrt_plugin.pipeline.manifest import read_manifest
    from mrt_plugin.planning.audit import SelectorCall
    from mrt_plugin.selection import get_selector

    if given.selector is not None:
        get_selector(given.selector)
        return SelectorCall(given.selector, {"alpha": given.alpha, "similarity": given.similarity})
    if not manifest.is_file():
        return None
    made = read_manifest(manifest)[0]["selection"]
    return SelectorCall(made["selector"], {name: made[name] for name in ("alpha", "similarity", "embedder")})


def audit_json(found: "Audit") -> dict[str, Any]:
    """Return an audit as `mrt audit --json` prints it."""
    from mrt_plugin.planning.audit_report import notes, warnings

    result: dict[str, Any] = json_ready(found)
    del result["with_model"]
    if found.splits is not None and found.splits.selection.cosine is None:
        del result["splits"]["cosine_difference_interval"]
    return result | {"warnings": warnings(found), "notes": notes(found)}


def _show_audit(found: "Audit") -> None:
    from mrt_plugin.planning import audit_report as tell

    table(tell.COLUMNS, tell.audit_rows(found))
    if found.splits is not None:
        table(("on halves of the pools", found.splits.selector, "random_k"), tell.split_rows(found.splits))
    warnings = tell.warnings(found)
    say("", *([f"WARNING: {line}" for line in warnings] or [tell.CALM]), *tell.notes(found))
    if found.loss is None:
        say(f"Next: mrt audit {found.name} --pool ... --model path/or/name")
    elif warnings:
        say("Next: select again, with random_k or a lower alpha, and audit that; or train on both and compare them.")
    else:
        say(f"Next: train on {found.name}, with type: mrt_plugin.axolotl.all in a recipe.")


@dataclass(kw_only=True)
class GridOptions(CostOptions):
    data: str | None = argument(None, "The pools: a file or a hub id. Not with --recipe.", "data")
    recipe: Path | None = flag(None, "An Axolotl recipe; one is written per run.", "file")
    output: Path | None = flag(None, "Folder for runs.jsonl and, with --recipe, the recipes.")
    k: str = flag("1,2,4,8", "Values of K.")
    arm: str | None = flag(None, "Only these, with commas: equal prompts, equal pairs, equal cost.")
    prompts: int | None = flag(None, "Of equal prompts; by default all.", min=1)
    pairs: int | None = flag(None, "Of equal pairs; by default as many as prompts.", min=1)
    budget: str = flag("1x", "Cost of an epoch for equal cost, as in `mrt plan`.", "budget")
    plan: Path | None = flag(None, "Output of `mrt plan --json`, for costs, layout and budget.", "file")
    tokenizer: str | None = flag(None, "For token costs: folder or name; the recipe's by default.", "tokenizer")
    repeats: int = flag(1, "Runs of each setting, with other responses drawn.", min=1)
    results: Path | None = flag(None, "Instead: runs.jsonl of a trained grid. Fits loss = a + b/K.", "file")
    json: bool = switch("Print the grid, or the results, as JSON.")


@command(GridOptions)
def grid(given: GridOptions) -> None:
    """Lay out training runs that hold prompts, pairs or cost fixed while K rises, and summarise their results.

    Example: `mrt grid --recipe recipe.yaml --output grid --repeats 3`

    Without Axolotl: `mrt grid pool.jsonl --tokenizer path/or/name --output grid`

    Afterwards: `mrt grid --results grid/runs.jsonl`
    """
    if given.results is not None:
        return _show_results(given.results, given.json)
    from mrt_plugin.groups.paths import Named, check_paths
    from mrt_plugin.planning.budget import parse_budget
    from mrt_plugin.planning.grid import ARMS, RUNS, make_grid, read_recipe, training_groups, write_grid

    if (given.data is None) == (given.recipe is None):
        raise ValueError("Give the data, or a --recipe whose dataset is taken, or the --results of runs.")
    stated, output = given.costs(), given.output
    ks = numbers(given.k, f"--k {given.k}: give whole numbers of at least 1 with commas, such as 1,2,4,8.")
    arms: Any = ARMS if given.arm is None else [name.strip() for name in given.arm.split(",")]
    for name in set(arms) - set(ARMS):
        raise ValueError(f"--arm {name!r} is unknown: choose of {', '.join(ARMS)}.")
    inputs: list[Named] = [("the data", given.data), ("--recipe", given.recipe), ("--plan", given.plan)]
    if output is not None:
        check_paths([("the list of runs", output / RUNS)], inputs, [given.tokenizer])
    base = None if given.recipe is None else read_recipe(given.recipe)
    if base is None:
        groups = mrt_plugin.load_groups(given.data)
    else:
        block = base.get("mrt") or {}
        groups = training_groups(mrt_plugin.load_groups(base["datasets"][0]["path"], source=block.get("source")), base)
    costs, budget = (stated, None) if given.plan is None else _planned(given.plan)
    costs = costs or _token_costs(groups, base, given)
    budget = budget or parse_budget(given.budget, len(groups) * costs.of_prompt(1))
    sizes = list(map(len, groups["responses"]))
    limits: dict[str, Any] = {"prompts": given.prompts, "pairs": given.pairs, "budget": budget}
    found = make_grid(sizes, costs, ks=ks, arms=arms, **limits)
    lines: list[dict[str, Any]] = []
    if output is not None:
        lines = write_grid(found.settings, output, recipe=base, repeats=given.repeats, read=inputs)
    if given.json:
        return as_json(json_ready({"costs": costs, "prompts_owned": len(groups)} | vars(found) | {"runs": lines}))
    rows = [
        (row.arm, f"{row.k}", f"{row.prompts:,}", f"{row.pairs:,.0f}", f"{row.cost:,.0f}") for row in found.settings
    ]
    title = f"{len(groups):,} prompts; a prompt costs {costs.prompt:.4g}, a response {costs.response:.4g}"
    table(("arm", "K", "prompts n", "pairs", "cost of an epoch"), rows, title=f"{title} ({costs.layout})")
    say(*(f"Left out: {line}" for line in found.left_out))
    if output is None:
        return say(
            "Next: add --output grid to write the list of runs, and --recipe recipe.yaml for a recipe for each."
        )
    if base is not None:
        count = len({line["recipe"] for line in lines})
        say(f"{count} recipes and {output / RUNS}. What two arms have in common is trained once.")
        say(f'Next: for recipe in {output}/*.yaml; do axolotl train "$recipe"; done')
    else:
        say("Next: train each with k=K on n prompts, load_groups(...).shuffle(seed=0).select(range(n)), and write its")
        say(f"held-out loss into {output / RUNS}")
    say(f"then: mrt grid --results {output / RUNS}")


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
    from mrt_plugin.planning.fit import read_results, weigh_results

    runs, missing = read_results(path)
    shown = ", ".join(missing[:8]) + (" ..." if len(missing) > 8 else "")
    if missing and not runs:
        remedy = "Train them with val_set_size in the recipe, or write each one's held-out `loss` into its line."
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
