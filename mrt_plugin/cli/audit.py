"""`mrt audit`: what a selection did to the data."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrt_plugin.cli.model import Adapter, Aggregation, Format, In4Bit, MaxLength, Tokenizer, local_model
from mrt_plugin.cli.option import existing_data, existing_embedder, existing_model, report_file, within
from mrt_plugin.cli.show import as_json, json_ready, log_to_stderr, plain_errors, say, stages, table
from mrt_plugin.options import Similarity

if TYPE_CHECKING:
    from mrt_plugin.planning.audit import Audit


def audit(
    selection: Annotated[
        str, typer.Argument(help="The selected groups: JSONL, JSON or Parquet.", callback=existing_data)
    ],
    pool: Annotated[str, typer.Option(help="The groups they were selected from.", callback=existing_data)],
    model: Annotated[
        str | None, typer.Option(help="For loss and gradient: folder or name.", callback=existing_model)
    ] = None,
    adapter: Adapter = None,
    tokenizer: Tokenizer = None,
    selector: Annotated[
        str | None, typer.Option(help="How the selection was made, if no manifest lies beside it.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="With --selector diverse_best_k.", callback=within(ge=0))] = 0.25,
    similarity: Annotated[Similarity, typer.Option(help="With --selector diverse_k, diverse_best_k.")] = "rescaled",
    loss_aggregation: Aggregation = "token",
    prompt_format: Format = "auto",
    embedder: Annotated[
        str,
        typer.Option(
            help="For clusters: lexical, sentence-transformers, or a model's name or path.",
            callback=existing_embedder,
        ),
    ] = "lexical",
    max_length: MaxLength = None,
    max_prompts: Annotated[int, typer.Option(min=2, help="Prompts whose losses are measured.")] = 200,
    gradient_prompts: Annotated[int, typer.Option(min=0, help="Prompts whose gradients are; 0 for none.")] = 50,
    splits: Annotated[int, typer.Option(min=2, help="Halvings of each pool.")] = 20,
    load_in_4bit: In4Bit = False,
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
        from mrt_plugin.pipeline.manifest import manifest_path, read_manifest
        from mrt_plugin.planning.audit import SelectorCall, make_audit
        from mrt_plugin.planning.audit_report import audit_report
        from mrt_plugin.selection import get_selector

        folders, opened = local_model(
            model, adapter, tokenizer, prompt_format=prompt_format, load_in_4bit=load_in_4bit
        )
        manifest = manifest_path(selection)
        inputs: list[Named] = [("the selection", selection), ("its manifest", manifest), ("--pool", pool)]
        check_paths([("--report", report)], inputs, [*folders, embedder])
        rule = None
        if selector is not None:
            get_selector(selector)
            rule = SelectorCall(selector, {"alpha": alpha, "similarity": similarity})
        elif manifest.is_file():
            made = read_manifest(manifest)[0]["selection"]
            rule = SelectorCall(made["selector"], {name: made[name] for name in ("alpha", "similarity", "embedder")})
        groups, chosen = load_groups(pool), load_groups(selection)
        parts = opened()
        with stages() as progress:
            found = make_audit(
                chosen,
                groups,
                rule=rule,
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
        as_json(audit_json(found))
        return
    _show(found)
    if report is not None:
        say(f"\nThe same with pictures: {report}")


def audit_json(found: "Audit") -> dict[str, Any]:
    """Return an audit as `mrt audit --json` prints it."""
    from mrt_plugin.planning.audit_report import notes, warnings

    result: dict[str, Any] = json_ready(found)
    del result["with_model"]
    if found.splits is not None and found.splits.selection.cosine is None:
        del result["splits"]["cosine_difference_interval"]
    return result | {"warnings": warnings(found), "notes": notes(found)}


def _show(found: "Audit") -> None:
    from mrt_plugin.planning import audit_report as tell

    table(tell.COLUMNS, tell.audit_rows(found))
    if found.splits is not None:
        table(("on halves of the pools", found.splits.selector, "random_k"), tell.split_rows(found.splits))
    say("")
    warnings = tell.warnings(found)
    for line in warnings:
        say(f"WARNING: {line}")
    if not warnings:
        say(tell.CALM)
    for line in tell.notes(found):
        say(line)
    if found.loss is None:
        say(f"Next: mrt audit {found.name} --pool ... --model path/or/name")
    elif warnings:
        say("Next: select again, with random_k or a lower alpha, and audit that; or train on both and compare them.")
    else:
        say(f"Next: train on {found.name}, with type: mrt_plugin.axolotl.all in a recipe.")
