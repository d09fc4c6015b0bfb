"""`mrt evaluate`: compare several models on held-out prompts."""

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
    part_of,
    report_file,
    with_options,
)
from mrt_plugin.cli.show import as_json, log_to_stderr, plain_errors, say, stages, table
from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.places import check_file
from mrt_plugin.sampling.options import EndpointOptions, LocalOptions, SamplingSettings

if TYPE_CHECKING:
    from mrt_plugin.evaluation.result import Evaluation


@with_options(SamplingSettings)
@with_options(EndpointOptions)
@with_options(LocalOptions)
def evaluate(
    data: Annotated[
        str, typer.Option(help="Held-out groups: prompts, with references if there are any.", callback=existing_data)
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="PATH, BASE+ADAPTER, or NAME= before either; may be repeated. With --endpoint, its models' names."
        ),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Folder of an adapter for the only --model.", callback=existing_adapter)
    ] = None,
    pool: Annotated[
        list[str] | None, typer.Option(help="[NAME=]FILE of existing samples (mrt sample); none are drawn.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the samples. A stopped run resumes from it.")] = Path(
        "evaluation"
    ),
    baseline: Annotated[
        str | None, typer.Option(help="Name of the model to compare with; by default the first.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="The public format of the data.")] = None,
    max_prompts: Annotated[
        int | None, typer.Option(min=1, help="The most prompts to evaluate on, drawn by a hash.")
    ] = None,
    m: Annotated[int, typer.Option(min=0, help="Samples per prompt; 0 for the NLL alone.")] = 16,
    at: Annotated[
        str | None, typer.Option(help="Numbers of samples to report at, with commas; by default 1,2,4,... up to M.")
    ] = None,
    embedder: Annotated[
        str,
        typer.Option(
            help="lexical, sentence-transformers, a model's name or path, or none.", callback=existing_embedder
        ),
    ] = MultiResponseOptions.embedder,
    scorer: Annotated[
        str | None,
        typer.Option(
            help="For the reward: a reward model's path or name, or module:function.", callback=existing_scorer
        ),
    ] = None,
    score_cache: Annotated[Path | None, typer.Option(help="Folder of the cache of vectors and scores.")] = None,
    checker: Annotated[
        str | None, typer.Option(help="For pass@M: exact, numeric, module:function or file.py:function.")
    ] = None,
    probe: Annotated[bool, typer.Option(help="Measure the general probe before and after fine-tuning.")] = True,
    lm_eval: Annotated[
        str | None, typer.Option("--lm-eval", help="Tasks of the lm-evaluation-harness, with commas.")
    ] = None,
    lm_eval_include: Annotated[
        Path | None,
        typer.Option("--lm-eval-include", help="A folder with your own task files.", callback=existing_folder),
    ] = None,
    lm_eval_limit: Annotated[
        int | None, typer.Option("--lm-eval-limit", min=1, help="The most examples of each task.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=0, help="Of one sample; 0 leaves it to the endpoint.")] = 512,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends a sample; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples, the bootstrap and the outputs to read.")] = 0,
    endpoint: Annotated[
        str | None, typer.Option(help="Draw from an OpenAI-compatible server: http://localhost:8000/v1.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Continue if some samples could not be drawn.")] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Folder or name; by default the adapter's own, else the model's.", callback=existing_tokenizer
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="The most tokens of a prompt with one reference.")
    ] = None,
    outputs: Annotated[int, typer.Option(min=0, help="Outputs to read in the report, of all models together.")] = 30,
    report: Annotated[
        Path | None, typer.Option(help="Write everything to one offline HTML file.", callback=report_file())
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    **options: Any,
) -> None:
    """Measure what models have learned: held-out NLL; coverage, diversity, reward and pass@M on samples; and what
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
                return Endpoint(endpoint, name, **part_of(EndpointOptions, options))

            if not model and not pool:
                model = [serve(None).identity()["model"]]
        models = parse_models(model, adapter=adapter, local=serve is None) if model else []
        models = add_pools(models, pool or [])
        if not models:
            raise ValueError("Name what to evaluate: --model PATH, or --pool FILE with its samples.")
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
        from mrt_plugin.evaluation.forgetting import check_tasks
        from mrt_plugin.evaluation.subject import How
        from mrt_plugin.scoring import load_embedder

        tasks = [name.strip() for name in (lm_eval or "").split(",") if name.strip()]
        drawing = {**part_of(SamplingSettings, options), "seed": seed}
        how = How(
            folder=output,
            m=m,
            at=counts,
            settings=SamplingSettings(max_tokens=max_tokens or None, stop=tuple(stop or ()), **drawing),
            endpoint=serve,
            partial=partial,
            embedder=None if embedder == "none" else load_embedder(embedder, score_cache=score_cache),
            scorer=scorer,
            score_cache=score_cache,
            checker=None if checker is None else load_checker(checker),
            local=LocalOptions(**part_of(LocalOptions, options)),
            tokenizer=tokenizer,
            max_length=max_length,
            probe=probe,
            tasks=tasks,
            task_manager=check_tasks(tasks, lm_eval_include) if tasks else None,
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
