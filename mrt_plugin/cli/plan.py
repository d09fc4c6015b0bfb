"""`mrt plan`: how many responses to keep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrt_plugin.cli.model import (
    Adapter,
    Aggregation,
    CostPrompt,
    CostResponse,
    Format,
    In4Bit,
    Layout,
    MaxLength,
    Power,
    Tokenizer,
    given_costs,
    local_model,
)
from mrt_plugin.cli.option import budget_text, existing_data, existing_embedder, existing_model, report_file
from mrt_plugin.cli.show import as_json, json_ready, log_to_stderr, plain_errors, say, stages, table

if TYPE_CHECKING:
    from mrt_plugin.planning.plan import Plan


def plan(
    data: Annotated[
        str, typer.Argument(help="The pools: a JSONL, JSON or Parquet file, or a hub id.", callback=existing_data)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="What you will fine-tune: folder or name. Without it there is no K.", callback=existing_model
        ),
    ] = None,
    adapter: Adapter = None,
    tokenizer: Tokenizer = None,
    budget: Annotated[
        str,
        typer.Option(
            help="Cost of an epoch: tokens, or a multiple of one response per prompt, such as 4x.",
            callback=budget_text,
        ),
    ] = "1x",
    layout: Layout = "shared_prefix",
    loss_aggregation: Aggregation = "token",
    prompt_format: Format = "auto",
    cost_prompt: CostPrompt = None,
    cost_response: CostResponse = None,
    max_length: MaxLength = None,
    max_prompts: Annotated[int, typer.Option(min=2, help="Prompts that the model is measured on.")] = 500,
    load_in_4bit: In4Bit = False,
    embedder: Annotated[
        str,
        typer.Option(help="lexical, sentence-transformers, or a model's name or path.", callback=existing_embedder),
    ] = "lexical",
    ngram: Annotated[int, typer.Option(min=1, help="Tokens of an n-gram in the prompt diversity.")] = 2,
    p: Power = 0.5,
    report: Annotated[
        Path | None, typer.Option(help="Write the plan as one HTML file, to open offline.", callback=report_file())
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts drawn and of the bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Tell how many responses per prompt to keep, on your data and your model, for what you can spend.

    Measures where the variance of the loss comes from: the prompts you have, or the responses to each.

    Example: `mrt plan pool.jsonl --model path/or/name --budget 2x --report plan.html`
    """
    with plain_errors():
        log_to_stderr()
        from mrt_plugin.groups import load_groups
        from mrt_plugin.groups.paths import check_paths
        from mrt_plugin.planning.plan import make_plan
        from mrt_plugin.planning.plan_report import plan_report

        costs = given_costs(cost_prompt, cost_response, layout)
        folders, opened = local_model(
            model, adapter, tokenizer, prompt_format=prompt_format, load_in_4bit=load_in_4bit
        )
        check_paths([("--report", report)], [("the data", data)], [*folders, embedder])
        groups = load_groups(data)
        parts = opened()
        with stages() as progress:
            found = make_plan(
                groups,
                **parts,
                budget=budget,
                layout=layout,
                loss_aggregation=loss_aggregation,
                costs=costs,
                max_length=max_length,
                max_prompts=max_prompts,
                embedder=embedder,
                order=ngram,
                p=p,
                seed=seed,
                data=data,
                progress=progress,
            )
        if report is not None:
            from mrt_plugin.groups.write import write_text

            write_text(report, plan_report(found))
    if json:
        as_json(plan_json(found))
        return
    _show(found)
    if report is not None:
        say(f"\nThe same with pictures: {report}")


def plan_json(found: "Plan") -> dict[str, Any]:
    """Return a plan as `mrt plan --json` prints it."""
    from mrt_plugin.planning.plan_report import advise, cannot_know, yaml_block

    result: dict[str, Any] = json_ready(found)
    if result["model"] is not None:
        del result["model"]["costs"]["layout"]  # it stands beside the costs
    return result | {"advice": advise(found), "cannot_know": cannot_know(found), "yaml": yaml_block(found)}


def _show(found: "Plan") -> None:
    from mrt_plugin.planning import plan_report as tell

    table(("the data", ""), tell.data_rows(found))
    model, name = found.model, found.data.name
    if model is not None:
        table(("the model's loss", "estimate", f"{model.level:.0%} interval"), tell.variance_rows(model))
        rows = [(f"{k} *" if int(k) == model.best.k else k, *rest) for k, *rest in tell.choice_rows(model)]
        columns = ("K", "prompts (shared)", "variance", "prompts (copied)", "variance")
        table(columns, rows, title=f"What {model.budget:,.0f} {model.cost_unit} an epoch buy")
        table(tell.OUTLOOK_COLUMNS, tell.outlook_rows(model), title="The best K by budget")
    say("")
    for line in tell.advise(found):
        say(line)
    say("\nWhat this cannot know:")
    for line in tell.cannot_know(found):
        say(f"- {line}")
    if model is None:
        say(f"\nNext: mrt plan {name} --model path/or/name")
        return
    say("\nFor your recipe:\n")
    say(tell.yaml_block(found) or "")
    say(
        f"Next: mrt select {name} --selector random_k --k {model.best.k} --held-out 0.1 --output chosen.jsonl, or "
        "train on this recipe."
    )
