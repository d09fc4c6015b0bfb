"""`mrt evaluate`: several models side by side on held-out prompts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrt_plugin.cli.option import (
    existing_adapter,
    existing_data,
    existing_embedder,
    existing_folder,
    existing_scorer,
    existing_tokenizer,
    report_file,
    within,
)
from mrt_plugin.cli.show import as_json, log_to_stderr, plain_errors, say, stages, table
from mrt_plugin.options import Api, PromptFormat
from mrt_plugin.places import check_file

if TYPE_CHECKING:
    from mrt_plugin.evaluation.result import Evaluation


def evaluate(
    data: Annotated[
        str,
        typer.Option(help="Held-out groups: prompts, with references where there are any.", callback=existing_data),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="PATH, BASE+ADAPTER, or NAME= before either; repeat for several. With --endpoint its names."
        ),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Folder of an adapter to put on the only --model.", callback=existing_adapter)
    ] = None,
    pool: Annotated[
        list[str] | None, typer.Option(help="[NAME=]FILE of samples drawn before (mrt sample), instead of drawing.")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for the samples; a run that was stopped goes on from there.")
    ] = Path("evaluation"),
    baseline: Annotated[
        str | None, typer.Option(help="Name of the model to compare with; by default the first.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="The public format the data is in.")] = None,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="Evaluate on so many, drawn by a hash.")] = None,
    m: Annotated[int, typer.Option(min=0, help="Samples per prompt; 0 for the NLL alone.")] = 16,
    at: Annotated[
        str | None, typer.Option(help="Numbers of samples to report at, with commas; by default 1,2,4,... up to M.")
    ] = None,
    embedder: Annotated[
        str,
        typer.Option(
            help="lexical, sentence-transformers, a model's name or path, or none.", callback=existing_embedder
        ),
    ] = "lexical",
    scorer: Annotated[
        str | None,
        typer.Option(
            help="For the reward: a reward model's path or name, or module:function.", callback=existing_scorer
        ),
    ] = None,
    score_cache: Annotated[Path | None, typer.Option(help="Folder of the cache of vectors and scores.")] = None,
    checker: Annotated[str | None, typer.Option(help="For pass@M: exact, numeric, or module:function.")] = None,
    probe: Annotated[bool, typer.Option(help="Measure the general probe, before and after.")] = True,
    lm_eval: Annotated[
        str | None, typer.Option("--lm-eval", help="Tasks of the lm-evaluation-harness, with commas.")
    ] = None,
    lm_eval_include: Annotated[
        Path | None,
        typer.Option("--lm-eval-include", help="A folder with task files of your own.", callback=existing_folder),
    ] = None,
    lm_eval_limit: Annotated[int | None, typer.Option("--lm-eval-limit", min=1, help="Examples of each task.")] = None,
    temperature: Annotated[
        float, typer.Option(help="1 is the model's own distribution.", callback=within(ge=0, le=10))
    ] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(help="Draw from the likeliest tokens that reach this probability.", callback=within(gt=0, le=1)),
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=0, help="Of one sample; 0 leaves it to the endpoint.")] = 512,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends a sample; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of samples, bootstrap and the outputs laid out.")] = 0,
    endpoint: Annotated[
        str | None, typer.Option(help="Draw from an OpenAI-compatible server: http://localhost:8000/v1.")
    ] = None,
    api: Annotated[Api, typer.Option(help="chat, or completions for text as it is.")] = "chat",
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable that holds the API key. It is never written down.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 16,
    per_request: Annotated[int | None, typer.Option(min=1, help="Samples asked for at once.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="Of a request that failed in passing.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds that one request may take.", callback=within(gt=0))] = 600.0,
    backoff: Annotated[
        float, typer.Option(help="Seconds before the first retry; doubled for each further.", callback=within(gt=0))
    ] = 1.0,
    partial: Annotated[bool, typer.Option("--partial", help="Go on if some samples could not be had.")] = False,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="As QLoRA loads it.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples that a model on this machine draws at once.")] = 32,
    prompt_format: Annotated[PromptFormat, typer.Option(help="auto, chat or plain.")] = "auto",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder or name; by default the adapter's own, else the model's.", callback=existing_tokenizer
        ),
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=2, help="Tokens of a prompt with one reference.")] = None,
    outputs: Annotated[int, typer.Option(min=0, help="Outputs laid out for reading, of all models together.")] = 30,
    report: Annotated[
        Path | None, typer.Option(help="Write all of it as one HTML file, to open offline.", callback=report_file())
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure what models have learned: held-out NLL, and on samples coverage, diversity, reward, pass@M; and what
    they forgot. Several models are compared on the same prompts.

    Example: `mrt evaluate --model path/to/base --model path/to/base+outputs/run --data held_out.jsonl --m 8 --report
    evaluation.html`
    """
    with plain_errors():
        log_to_stderr()
        counts = _numbers(at)
        from mrt_plugin.models.named_model import add_pools, check_folders, parse_models

        serve = None
        if endpoint is not None:
            from mrt_plugin.sampling import Endpoint

            def serve(name: str | None) -> Any:
                return Endpoint(
                    endpoint,
                    name,
                    api=api,
                    api_key_env=api_key_env,
                    concurrency=concurrency,
                    per_request=per_request,
                    retries=retries,
                    timeout=timeout,
                    backoff=backoff,
                )

            if not model and not pool:
                model = [serve(None).identity()["model"]]
        models = parse_models(model, adapter=adapter, local=serve is None) if model else []
        models = add_pools(models, pool or [])
        if not models:
            raise ValueError("Say what to evaluate: --model PATH, or --pool FILE with its samples.")
        if serve is None:
            check_folders(models)
        for one in models:
            if one.pool is not None:
                check_file(one.pool)
        from mrt_plugin.evaluation.samples import sample_files
        from mrt_plugin.groups.paths import Named, check_paths
        from mrt_plugin.scoring.cache import cache_file

        drawn = [] if m == 0 else [one for one in models if one.path is not None and one.pool is None]
        written = [(f"the samples of {one.name}", path) for one in drawn for path in sample_files(output, one)]
        inputs: list[Named] = [("--data", data), *(("--pool", one.pool) for one in models)]
        inputs += [("--scorer", scorer), ("--checker", checker), ("--lm-eval-include", lm_eval_include)]
        folders = [tokenizer, embedder, *(path for one in models for path in (one.path, one.adapter))]
        check_paths([*written, ("--report", report), ("the score cache", cache_file(score_cache))], inputs, folders)
        from mrt_plugin.evaluation.cases import read_cases
        from mrt_plugin.evaluation.checkers import load_checker
        from mrt_plugin.evaluation.evaluate import evaluate as run
        from mrt_plugin.evaluation.evaluate_report import evaluation_report
        from mrt_plugin.evaluation.subject import How
        from mrt_plugin.sampling.options import LocalOptions, SamplingSettings
        from mrt_plugin.scoring import load_embedder

        tasks = [name.strip() for name in (lm_eval or "").split(",") if name.strip()]
        manager = None
        if tasks:
            from mrt_plugin.evaluation.harness import check_tasks

            manager = check_tasks(tasks, lm_eval_include)

        how = How(
            folder=output,
            m=m,
            at=counts,
            settings=SamplingSettings(
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_tokens or None,
                stop=tuple(stop or ()),
                seed=seed,
            ),
            endpoint=serve,
            partial=partial,
            embedder=None if embedder == "none" else load_embedder(embedder, score_cache=score_cache),
            scorer=scorer,
            score_cache=score_cache,
            checker=None if checker is None else load_checker(checker),
            local=LocalOptions(load_in_4bit=load_in_4bit, batch_size=batch_size, prompt_format=prompt_format),
            tokenizer=tokenizer,
            max_length=max_length,
            probe=probe,
            tasks=tasks,
            task_manager=manager,
            task_limit=lm_eval_limit,
        )
        cases = read_cases(data, source=source, max_prompts=max_prompts, seed=seed)
        with stages() as progress:
            result = run(
                cases, models, how, baseline=baseline, outputs=outputs, seed=seed, data=data, progress=progress
            )
        if report is not None:
            from mrt_plugin.groups.write import write_text

            write_text(report, evaluation_report(result))
    if json:
        as_json(result.as_dict())
        return
    _show(result)
    if report is not None:
        say(f"\nThe same with pictures and outputs to read: {report}")
    say(result.next)


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--at {text}: write numbers with commas, as in --at 1,4,16.") from None
    if min(found) < 1:
        raise ValueError(f"--at {text}: a number of samples is at least 1.")
    return found


def _show(result: "Evaluation") -> None:
    from mrt_plugin.evaluation.evaluate_report import curve_rows, difference_rows, forgetting_rows, measure_rows

    say(f"{result.data.name}: {result.data.prompts:,} prompts, {result.data.with_references:,} with references.")
    few = len(result.models) <= 2  # with more, intervals would not fit beside each other
    title = f"{result.intervals['level']:.0%} intervals, by a bootstrap over prompts" if few else None
    table(*measure_rows(result, intervals=few), title=title)
    columns, rows = curve_rows(result)
    if len(columns) > 2:
        table(columns, rows)
    for name in result.others:
        table(*difference_rows(result, name))
    for row in result.forgetting:
        table(*forgetting_rows(row))
    say("")
    for line in result.notes:
        say(line)
