"""`mrt plan`: how many responses to keep."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mrt_plugin.cli.option import (
    budget_text,
    existing_adapter,
    existing_data,
    existing_embedder,
    existing_model,
    existing_tokenizer,
    report_file,
    within,
)
from mrt_plugin.cli.show import as_json, log_to_stderr, plain_errors, say, stages, table
from mrt_plugin.options import LossAggregation, PaidLayout, PromptFormat


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
    adapter: Annotated[
        str | None, typer.Option(help="Folder of an adapter to put on the model.", callback=existing_adapter)
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or name; the model's by default.", callback=existing_tokenizer)
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            help="Cost of an epoch: tokens, or a multiple of one response per prompt, such as 4x.",
            callback=budget_text,
        ),
    ] = "1x",
    layout: Annotated[PaidLayout, typer.Option(help="The layout you will train in: shared_prefix or expanded.")] = (
        "shared_prefix"
    ),
    loss_aggregation: Annotated[
        LossAggregation, typer.Option(help="Of your training loss: token, prompt or response.")
    ] = "token",
    prompt_format: Annotated[PromptFormat, typer.Option(help="auto, chat or plain.")] = "auto",
    cost_prompt: Annotated[
        float | None, typer.Option(help="C_p as you measured it, in any unit; with C_r.", callback=within(gt=0))
    ] = None,
    cost_response: Annotated[float | None, typer.Option(help="C_r, likewise.", callback=within(gt=0))] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens of a prompt with one response.")] = None,
    max_prompts: Annotated[int, typer.Option(min=2, help="Prompts that the model is measured on.")] = 500,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="As QLoRA loads it.")] = False,
    embedder: Annotated[
        str,
        typer.Option(help="lexical, sentence-transformers, or a model's name or path.", callback=existing_embedder),
    ] = "lexical",
    ngram: Annotated[int, typer.Option(min=1, help="Tokens of an n-gram in the prompt diversity.")] = 2,
    p: Annotated[float, typer.Option(help="Exponent of the prompt diversity.", callback=within(ge=0))] = 0.5,
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
        from mrt_plugin.models.named_model import parse_models
        from mrt_plugin.planning.budget import Costs
        from mrt_plugin.planning.plan import make_plan
        from mrt_plugin.planning.plan_report import plan_report

        if (cost_prompt is None) != (cost_response is None):
            raise ValueError("Give --cost-prompt and --cost-response together.")
        opened = [] if model is None else parse_models([model], adapter=adapter)
        folders = [tokenizer, embedder, *(path for one in opened for path in (one.path, one.adapter))]
        check_paths([("--report", report)], [("the data", data)], folders)
        groups = load_groups(data)
        parts: dict[str, Any] = {}
        if opened:
            from mrt_plugin.models.load import open_model

            parts["model"], parts["encoder"] = open_model(
                opened[0],
                tokenizer=tokenizer,
                prompt_format=prompt_format,
                load_in_4bit=load_in_4bit,
            )
        with stages() as progress:
            found = make_plan(
                groups,
                **parts,
                budget=budget,
                layout=layout,
                loss_aggregation=loss_aggregation,
                costs=None if cost_prompt is None or cost_response is None else Costs(cost_prompt, cost_response),
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
        as_json(found)
        return
    _show(found)
    if report is not None:
        say(f"\nThe same with pictures: {report}")


def _show(found: dict[str, Any]) -> None:
    from mrt_plugin.planning.plan_report import OUTLOOK_COLUMNS, data_rows, number, outlook_rows, variance_rows

    table(("the data", ""), data_rows(found))
    model = found["model"]
    if model is not None:
        table(("the model's loss", "estimate", f"{model['level']:.0%} interval"), variance_rows(model))
        shared, expanded = model["choices"]["shared_prefix"], model["choices"]["expanded"]
        rows = [
            (
                f"{one['k']}{' *' if one['k'] == model['best']['k'] else ''}",
                f"{one['prompts']:,}",
                number(one["variance"]),
                f"{two['prompts']:,}",
                number(two["variance"]),
            )
            for one, two in zip(shared, expanded, strict=True)
        ]
        columns = ("K", "prompts (shared)", "variance", "prompts (copied)", "variance")
        table(columns, rows, title=f"What {model['budget']:,.0f} {model['cost_unit']} an epoch buy")
        table(OUTLOOK_COLUMNS, outlook_rows(model), title="The best K by budget")
    say("")
    for line in found["advice"]:
        say(line)
    say("\nWhat this cannot know:")
    for line in found["cannot_know"]:
        say(f"- {line}")
    if found["yaml"] is not None:
        say("\nFor your recipe:\n")
        say(found["yaml"])
        name, k = found["data"]["name"], model["best"]["k"]
        say(
            f"Next: mrt select {name} --selector random_k --k {k} --held-out 0.1 --output chosen.jsonl, or train on "
            "this recipe."
        )
    else:
        say(f"\nNext: mrt plan {found['data']['name']} --model path/or/name")
