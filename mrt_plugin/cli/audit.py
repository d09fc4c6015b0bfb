"""`mrt audit`: what a selection did to the data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mrt_plugin.cli.option import (
    existing_adapter,
    existing_data,
    existing_embedder,
    existing_model,
    existing_tokenizer,
    report_file,
    within,
)
from mrt_plugin.cli.show import as_json, log_to_stderr, plain_errors, say, stages, table
from mrt_plugin.options import LossAggregation, PromptFormat, Similarity


def audit(
    selection: Annotated[
        str, typer.Argument(help="The selected groups: JSONL, JSON or Parquet.", callback=existing_data)
    ],
    pool: Annotated[str, typer.Option(help="The groups they were selected from.", callback=existing_data)],
    model: Annotated[
        str | None, typer.Option(help="For loss and gradient: folder or name.", callback=existing_model)
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Folder of an adapter to put on the model.", callback=existing_adapter)
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or name; the model's by default.", callback=existing_tokenizer)
    ] = None,
    selector: Annotated[
        str | None, typer.Option(help="How the selection was made, if no manifest lies beside it.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="With --selector diverse_best_k.", callback=within(ge=0))] = 0.25,
    similarity: Annotated[Similarity, typer.Option(help="With --selector diverse_k, diverse_best_k.")] = "rescaled",
    loss_aggregation: Annotated[
        LossAggregation, typer.Option(help="Of your training loss: token, prompt or response.")
    ] = "token",
    prompt_format: Annotated[PromptFormat, typer.Option(help="auto, chat or plain.")] = "auto",
    embedder: Annotated[
        str,
        typer.Option(
            help="For clusters: lexical, sentence-transformers, or a model's name or path.",
            callback=existing_embedder,
        ),
    ] = "lexical",
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens of a prompt with one response.")] = None,
    max_prompts: Annotated[int, typer.Option(min=2, help="Prompts whose losses are measured.")] = 200,
    gradient_prompts: Annotated[int, typer.Option(min=0, help="Prompts whose gradients are; 0 for none.")] = 50,
    splits: Annotated[int, typer.Option(min=2, help="Halvings of each pool.")] = 20,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="As QLoRA loads it.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the audit as one HTML file, to open offline.", callback=report_file())
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the audit as JSON.")] = False,
) -> None:
    """Compare a selection with the pool it came from, and with random_k at the same K.

    Lengths and clusters without a model; with one also the loss and the gradient, and a warning in words where the
    selection points away from its pool.

    Example: `mrt audit chosen.jsonl --pool pool.jsonl --model path/or/name --report audit.html`
    """
    with plain_errors():
        log_to_stderr()
        from mrt_plugin.groups import load_groups
        from mrt_plugin.groups.paths import Named, check_paths
        from mrt_plugin.models.named_model import parse_models
        from mrt_plugin.pipeline.manifest import manifest_path
        from mrt_plugin.planning.audit import Rule, make_audit
        from mrt_plugin.planning.audit_report import audit_report
        from mrt_plugin.selection import get_selector

        opened = [] if model is None else parse_models([model], adapter=adapter)
        folders = [tokenizer, embedder, *(path for one in opened for path in (one.path, one.adapter))]
        inputs: list[Named] = [
            ("the selection", selection),
            ("its manifest", manifest_path(selection)),
            ("--pool", pool),
        ]
        check_paths([("--report", report)], inputs, folders)
        parts: dict[str, Any] = {}
        if selector is not None:
            get_selector(selector)
            parts["rule"] = Rule(selector, {"alpha": alpha, "similarity": similarity})
        else:
            parts["rule"] = _rule_of(selection)
        groups, chosen = load_groups(pool), load_groups(selection)
        if opened:
            from mrt_plugin.models.load import open_model

            parts["model"], parts["encoder"] = open_model(
                opened[0],
                tokenizer=tokenizer,
                prompt_format=prompt_format,
                load_in_4bit=load_in_4bit,
            )
        with stages() as progress:
            found = make_audit(
                chosen,
                groups,
                **parts,
                loss_aggregation=loss_aggregation,
                embedder=embedder,
                max_length=max_length,
                max_prompts=max_prompts,
                gradient_prompts=gradient_prompts,
                splits=splits,
                seed=seed,
                name=selection,
                progress=progress,
            )
        if report is not None:
            from mrt_plugin.groups.write import write_text

            write_text(report, audit_report(found))
    if json:
        as_json(found)
        return
    _show(found)
    if report is not None:
        say(f"\nThe same with pictures: {report}")


def _rule_of(selection: str) -> Any:
    """How `mrt select` made the file, from its manifest; None without one."""
    from mrt_plugin.pipeline.manifest import manifest_path, read_manifest
    from mrt_plugin.planning.audit import Rule

    path = manifest_path(selection)
    if not path.is_file():
        return None
    made = read_manifest(path)[0]["selection"]
    return Rule(made["selector"], {name: made[name] for name in ("alpha", "similarity", "embedder")})


def _show(found: dict[str, Any]) -> None:
    from mrt_plugin.planning.audit_report import COLUMNS, audit_rows, split_rows

    table(COLUMNS, audit_rows(found))
    if found["splits"] is not None:
        columns = ("on halves of the pools", found["splits"]["selector"], "random_k")
        table(columns, split_rows(found["splits"]))
    say("")
    for line in found["warnings"]:
        say(f"WARNING: {line}")
    if not found["warnings"]:
        say("Nothing here sets this selection apart from random_k for the worse.")
    for line in found["notes"]:
        say(line)
    if found["loss"] is None:
        say(f"Next: mrt audit {found['name']} --pool ... --model path/or/name")
    elif found["warnings"]:
        say("Next: select again, with random_k or a lower alpha, and audit that; or train on both and compare them.")
    else:
        say(f"Next: train on {found['name']}, with type: mrt_plugin.axolotl.all in a recipe.")
