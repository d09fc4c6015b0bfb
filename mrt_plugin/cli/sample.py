"""`mrt sample`: draw responses for prompts, from an endpoint or a local model."""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mrt_plugin.cli.option import existing_adapter, existing_data, part_of, with_options, within
from mrt_plugin.cli.show import as_json, log_to_stderr, plain_errors, say, stages
from mrt_plugin.models.named_model import check_folders, parse_models
from mrt_plugin.sampling.options import EndpointOptions, LocalOptions, SamplingSettings


@with_options(SamplingSettings)
@with_options(EndpointOptions)
@with_options(LocalOptions)
def sample(
    prompts: Annotated[
        str | None,
        typer.Argument(
            help="Prompts: JSONL, JSON, Parquet, a hub id, or .txt with one per line.", callback=existing_data
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The pool to write, .jsonl. Also writes OUTPUT.journal.")] = Path(
        "pool.jsonl"
    ),
    endpoint: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server, http://localhost:8000/v1 for example.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="With --endpoint, the name of one of its models. Else a local model's path or name."),
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Responses per prompt.")] = 16,
    extend: Annotated[
        str | None, typer.Option(help="A pool to fill up to --to responses per prompt.", callback=existing_data)
    ] = None,
    to: Annotated[int | None, typer.Option(min=1, help="With --extend: responses that each prompt must have.")] = None,
    source: Annotated[str | None, typer.Option(help="The public format of the prompts or the pool.")] = None,
    max_tokens: Annotated[int, typer.Option(min=0, help="Of one response; 0 leaves it to the endpoint.")] = 1024,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends a response; may be repeated.")] = None,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Keep the log-probability of each token.")] = False,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="The most requests started per minute.", callback=within(gt=0))
    ] = None,
    extra: Annotated[
        str, typer.Option(help='More fields of the request as JSON: {"top_k": 20}; null leaves one out.')
    ] = "{}",
    adapter: Annotated[
        Path | None, typer.Option(help="A PEFT adapter for the local model.", callback=existing_adapter)
    ] = None,
    keep_cut_off: Annotated[
        bool, typer.Option("--keep-cut-off", help="Put cut-off responses among the others, marked by finish_reasons.")
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Write the pool even if some draws failed.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
    **options: Any,
) -> None:
    """Draw N responses for each prompt, or fill up a pool. The same command resumes a stopped run.

    Example: `mrt sample prompts.jsonl --endpoint http://localhost:8000/v1 --n 16 --output pool.jsonl`

    Example: `mrt sample --extend pairs.jsonl --to 4 --model path/to/model --output pool.jsonl`
    """
    with plain_errors():
        log_to_stderr()
        if (prompts is None) == (extend is None):
            raise ValueError("Give either a file of prompts, or --extend POOL --to N.")
        if (extend is None) != (to is None):
            raise ValueError("--extend POOL and --to N go together.")
        fields = _extra(extra)
        if model is not None and endpoint is None:
            check_folders(parse_models([model]))
        from mrt_plugin.sampling import Endpoint, sample_pool

        settings = SamplingSettings(
            max_tokens=max_tokens or None,
            stop=tuple(stop or ()),
            logprobs=logprobs,
            **part_of(SamplingSettings, options),
        )
        sampler: Any
        if endpoint:
            asked = part_of(EndpointOptions, options)
            sampler = Endpoint(endpoint, model, requests_per_minute=requests_per_minute, extra=fields, **asked)
        elif model:
            from mrt_plugin.sampling import LocalModel

            sampler = LocalModel(model, adapter, **part_of(LocalOptions, options))
        else:
            raise ValueError("Nothing to draw from: give --endpoint URL, or --model PATH for a local model.")
        with stages() as progress:
            report = sample_pool(
                extend or prompts,
                sampler,
                output,
                n=to or n,
                settings=settings,
                extend=extend is not None,
                source=source,
                keep_cut_off=keep_cut_off,
                partial=partial,
                progress=lambda done, total: progress("draws", done, total),
            )
    if json:
        as_json(asdict(report))
        return
    cut_off = f", and {report.cut_off:,} cut off" if report.cut_off else ""
    rejected = f"; {report.rejected:,} prompts were rejected" if report.rejected else ""
    responses, answered = report.whole + report.unknown, report.prompts - report.rejected
    say(f"{output}: {responses:,} responses for {answered:,} prompts{cut_off}{rejected}.")
    say(f"Next: mrt select {output} --output chosen.jsonl")


def _extra(text: str) -> dict[str, Any]:
    from mrt_plugin.sampling.masking import mask_typed

    try:
        value = json_module.loads(text)
    except ValueError as problem:
        raise ValueError(f"--extra {mask_typed(text)!r} is not JSON: {problem}.") from None
    if not isinstance(value, dict):
        raise ValueError(f'--extra {mask_typed(text)!r} must be an object, {{"top_k": 20}} for example.')
    return value
