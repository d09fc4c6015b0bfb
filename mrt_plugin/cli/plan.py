"""`mrt plan`: how many responses to keep."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mrt_plugin.cli.show import as_json, log_to_stderr, plain_errors, say, stages, table


def plan(
    data: Annotated[str, typer.Argument(help="The pools: a JSONL, JSON or Parquet file, or a hub id.")],
    model: Annotated[
        str | None, typer.Option(help="What you will fine-tune: PATH or BASE+ADAPTER. Without it there is no K.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Folder of an adapter to put on the model.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or name; by default the adapter's own, else the model's.")
    ] = None,
    budget: Annotated[
        str, typer.Option(help="Cost of an epoch: tokens, or a multiple of one response per prompt, such as 4x.")
    ] = "1x",
    layout: Annotated[str, typer.Option(help="The layout you will train in: shared_prefix or expanded.")] = (
        "shared_prefix"
    ),
    loss_aggregation: Annotated[str, typer.Option(help="Of your training loss: token, prompt or response.")] = "token",
    prompt_format: Annotated[str, typer.Option(help="auto, chat or plain.")] = "auto",
    cost_prompt: Annotated[float | None, typer.Option(help="C_p as you measured it, in any unit; with C_r.")] = None,
    cost_response: Annotated[float | None, typer.Option(help="C_r, likewise.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a prompt with one response.")] = None,
    max_prompts: Annotated[int, typer.Option(min=2, help="Prompts that the model is measured on.")] = 500,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="As QLoRA loads it.")] = False,
    embedder: Annotated[
        str, typer.Option(help="lexical, sentence-transformers, or a model's name or path.")
    ] = "lexical",
    ngram: Annotated[int, typer.Option(min=1, help="Tokens of an n-gram in the prompt diversity.")] = 2,
    p: Annotated[float, typer.Option(min=0, help="Exponent of the prompt diversity.")] = 0.5,
    report: Annotated[Path | None, typer.Option(help="Write the plan as one HTML file, to open offline.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts drawn and of the bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Tell how many responses per prompt to keep, on your data and your model, for what you can spend.

    Measures where the variance of the loss comes from: the prompts you have, or the responses to each.

    Example: `mrt plan pool.jsonl --model path/or/name --budget 2x --report plan.html`
    """
    with plain_errors():
        log_to_stderr()
        from mrt_plugin.evaluation.named_model import parse_models
        from mrt_plugin.groups import load_groups
        from mrt_plugin.groups.paths import check_paths
        from mrt_plugin.planning.budget import Costs
        from mrt_plugin.planning.plan import make_plan
        from mrt_plugin.planning.plan_report import plan_report

        if (cost_prompt is None) != (cost_response is None):
            raise ValueError("Give --cost-prompt and --cost-response together.")
        _one_of("--layout", layout, ("shared_prefix", "expanded"))
        _one_of("--loss-aggregation", loss_aggregation, ("token", "prompt", "response"))
        opened = [] if model is None else parse_models([model], adapter=adapter)
        folders = [tokenizer, embedder, *(path for one in opened for path in (one.path, one.adapter))]
        check_paths([("--report", report)], [("the data", data)], folders)
        groups = load_groups(data)
        parts: dict[str, Any] = {}
        if opened:
            from mrt_plugin.evaluation.load import open_model

            parts["model"], parts["encoder"] = open_model(
                opened[0],
                tokenizer=tokenizer,
                prompt_format=prompt_format,  # type: ignore[arg-type]  # checked by the encoder
                load_in_4bit=load_in_4bit,
            )
        with stages() as progress:
            found = make_plan(
                groups,
                **parts,
                budget=budget,
                layout=layout,  # type: ignore[arg-type]
                loss_aggregation=loss_aggregation,  # type: ignore[arg-type]
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


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{option} {value} is unknown: choose one of {', '.join(allowed)}.")
