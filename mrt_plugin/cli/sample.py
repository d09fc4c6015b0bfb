"""`mrt sample`: draw responses for prompts, from an endpoint or a local model."""

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mrt_plugin.cli.option import existing_adapter, existing_data, within
from mrt_plugin.cli.show import as_json, log_to_stderr, plain_errors, say, stages
from mrt_plugin.models.named_model import check_folders, parse_models
from mrt_plugin.options import Api, PromptFormat


def sample(
    prompts: Annotated[
        str | None,
        typer.Argument(
            help="Prompts: JSONL, JSON, Parquet, a hub id, or .txt with one a line.", callback=existing_data
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The pool to write, .jsonl; OUTPUT.journal is kept beside it.")] = Path(
        "pool.jsonl"
    ),
    endpoint: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible server, http://localhost:8000/v1 for example.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="With --endpoint the name of one of its models; without, a local model's path or name."),
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Responses per prompt.")] = 16,
    extend: Annotated[
        str | None, typer.Option(help="A pool, to be filled up to --to responses per prompt.", callback=existing_data)
    ] = None,
    to: Annotated[
        int | None, typer.Option(min=1, help="With --extend: responses that each prompt shall have.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="The public format the prompts or the pool are in.")] = None,
    temperature: Annotated[
        float, typer.Option(help="1 is the model's own distribution.", callback=within(ge=0, le=10))
    ] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(help="Draw from the likeliest tokens that reach this probability.", callback=within(gt=0, le=1)),
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=0, help="Of one response; 0 leaves it to the endpoint.")] = 1024,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends a response; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other draws.")] = 0,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Keep the log-probability of each token.")] = False,
    api: Annotated[Api, typer.Option(help="chat, or completions for text as it is.")] = "chat",
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the API key. It is never written down.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 16,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="At most so many are started.", callback=within(gt=0))
    ] = None,
    per_request: Annotated[
        int | None, typer.Option(min=1, help="Responses asked for at once; 1 where the endpoint refuses more.")
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="Of a request that failed in passing.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds that one request may take.", callback=within(gt=0))] = 600.0,
    backoff: Annotated[
        float, typer.Option(help="Seconds before the first retry; doubled for each further.", callback=within(gt=0))
    ] = 1.0,
    extra: Annotated[
        str, typer.Option(help='More fields of the request as JSON: {"top_k": 20}; null takes one out.')
    ] = "{}",
    adapter: Annotated[
        Path | None, typer.Option(help="A PEFT adapter for the local model.", callback=existing_adapter)
    ] = None,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Load the local model in 4 bit.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Responses that the local model draws at once.")] = 32,
    prompt_format: Annotated[PromptFormat, typer.Option(help="Local model: auto, chat or plain.")] = "auto",
    keep_cut_off: Annotated[
        bool, typer.Option("--keep-cut-off", help="Put cut-off responses among the others, marked by finish_reasons.")
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Write the pool even if some draws failed.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Draw N responses for each prompt, or fill up a pool. A run that was stopped goes on where it was.

    Example: `mrt sample prompts.jsonl --endpoint http://localhost:8000/v1 --n 16 --output pool.jsonl`

    Example: `mrt sample --extend pairs.jsonl --to 4 --model path/to/model --output pool.jsonl`
    """
    with plain_errors():
        log_to_stderr()
        data = _data(prompts, extend, to)
        fields = _extra(extra)
        if model is not None and endpoint is None:
            check_folders(parse_models([model]))
        from mrt_plugin.sampling import SamplingSettings, sample_pool

        settings = SamplingSettings(
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens or None,
            stop=tuple(stop or ()),
            seed=seed,
            logprobs=logprobs,
        )
        sampler: Any
        if endpoint:
            from mrt_plugin.sampling import Endpoint

            sampler = Endpoint(
                endpoint,
                model,
                api=api,
                api_key_env=api_key_env,
                concurrency=concurrency,
                requests_per_minute=requests_per_minute,
                per_request=per_request,
                retries=retries,
                timeout=timeout,
                backoff=backoff,
                extra=fields,
            )
        elif model:
            from mrt_plugin.sampling import LocalModel

            sampler = LocalModel(
                model,
                adapter,
                load_in_4bit=load_in_4bit,
                batch_size=batch_size,
                prompt_format=prompt_format,
            )
        else:
            raise ValueError("Nothing to draw from: give --endpoint URL, or --model PATH for a local model.")
        with stages() as progress:
            report = sample_pool(
                data,
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
    say(
        f"{output}: {report.whole + report.unknown:,} responses for {report.prompts - report.rejected:,} prompts"
        + (f", and {report.cut_off:,} cut off" if report.cut_off else "")
        + (f"; {report.rejected:,} prompts turned away" if report.rejected else "")
        + "."
    )
    say(f"Next: mrt select {output} --output chosen.jsonl")


def _data(prompts: str | None, extend: str | None, to: int | None) -> str:
    """The file of prompts, or the pool."""
    if (prompts is None) == (extend is None):
        raise ValueError("Give either a file of prompts, or --extend POOL --to N.")
    if (extend is None) != (to is None):
        raise ValueError("--extend POOL and --to N go together.")
    return str(prompts if extend is None else extend)


def _extra(text: str) -> dict[str, Any]:
    from mrt_plugin.sampling.masking import mask_typed

    try:
        value = json_module.loads(text)
    except ValueError as problem:
        raise ValueError(f"--extra {mask_typed(text)!r} is not JSON: {problem}.") from None
    if not isinstance(value, dict):
        raise ValueError(f'--extra {mask_typed(text)!r} must be an object, {{"top_k": 20}} for example.')
    return value
