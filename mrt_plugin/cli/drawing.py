"""`mrt sample` and `mrt evaluate`: draw responses from models, and measure what models have learned."""

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrt_plugin
from mrt_plugin.cli.option import again, argument, command, flag, numbers, part_of, switch
from mrt_plugin.cli.progress import loading, stages
from mrt_plugin.cli.show import as_json, command_line, finish, say, table
from mrt_plugin.models.named_model import add_pools, check_folders, parse_models
from mrt_plugin.places import check_file
from mrt_plugin.sampling.options import EndpointOptions, LocalOptions, SamplingSettings

if TYPE_CHECKING:
    from mrt_plugin.evaluation.result import Evaluation


@dataclass(kw_only=True)
class SampleOptions:
    prompts: str | None = argument(None, "Prompts: JSONL, JSON, Parquet, a hub id, or .txt with one per line.", "data")
    output: Path = flag(Path("pool.jsonl"), "The pool to write, .jsonl. Also writes OUTPUT.journal.")
    endpoint: str | None = flag(None, "An OpenAI-compatible server, http://localhost:8000/v1 for example.")
    model: str | None = flag(None, "With --endpoint, one of its models. Else a local model's path or name.")
    n: int = flag(16, "Responses per prompt.", min=1)
    extend: str | None = flag(None, "A pool to fill up to --to responses per prompt.", "data")
    to: int | None = flag(None, "With --extend: responses that each prompt must have.", min=1)
    source: str | None = flag(None, "The public format of the prompts or the pool.")
    max_tokens: int = flag(1024, "Of one response; 0 leaves it to the endpoint.", min=0)
    stop: list[str] | None = flag(None, "A text that ends a response; may be repeated.")
    logprobs: bool = switch("Keep the log-probability of each token.")
    requests_per_minute: float | None = flag(None, "The most requests started per minute.", gt=0)
    extra: str = flag("{}", 'More fields of the request as JSON: {"top_k": 20}; null leaves one out.')
    adapter: Path | None = flag(None, "A PEFT adapter for the local model.", "adapter")
    keep_cut_off: bool = switch("Put cut-off responses among the others, marked by finish_reasons.")
    partial: bool = switch("Write the pool even if some draws failed.")
    json: bool = switch("Print the counts as JSON.")


@command(SampleOptions, SamplingSettings, EndpointOptions, LocalOptions)
def sample(given: SampleOptions, **options: Any) -> None:
    """Draw N responses for each prompt, or fill up a pool. The same command resumes a stopped run.

    Example: `mrt sample prompts.jsonl --endpoint http://localhost:8000/v1 --n 16 --output pool.jsonl`

    Example: `mrt sample --extend pairs.jsonl --to 4 --model path/to/model --output pool.jsonl`
    """
    if (given.prompts is None) == (given.extend is None):
        raise ValueError("Give either a file of prompts, or --extend POOL --to N.")
    if (given.extend is None) != (given.to is None):
        raise ValueError("--extend POOL and --to N go together.")
    options |= vars(given) | {"max_tokens": given.max_tokens or None, "stop": tuple(given.stop or ())}
    settings = SamplingSettings(**part_of(SamplingSettings, options))
    how = {name: options[name] for name in ("source", "keep_cut_off", "partial")}
    how |= {"n": given.to or given.n, "extend": given.extend is not None, "settings": settings}
    check_sampler(options)
    with loading():
        from mrt_plugin.endpoint.journal import journal_path
        from mrt_plugin.groups.paths import check_paths

    if given.output != Path(given.extend or ""):  # a pool may be filled up in place
        written = [("--output", given.output), ("its journal", journal_path(given.output))]
        check_paths(written, [("the prompts", given.prompts or given.extend)])
    with stages() as progress:
        progress(f"opening {given.model or given.endpoint}")
        sampler = open_sampler(options)
        from mrt_plugin.sampling import sample_pool

        progress(f"reading {given.extend or given.prompts}")
        draws = partial(progress, "draws")
        report = sample_pool(given.extend or given.prompts, sampler, given.output, progress=draws, **how)
    if given.json:
        return as_json(asdict(report))
    drawn = report.whole + report.unknown + report.cut_off
    cut_off = f", and {report.cut_off:,} of {drawn:,} draws cut off" if report.cut_off else ""
    rejected = f"; {report.rejected:,} prompts were rejected" if report.rejected else ""
    responses, answered = report.whole + report.unknown, report.prompts - report.rejected
    say(f"{given.output}: {responses:,} responses for {answered:,} prompts{cut_off}{rejected}.")
    if report.cut_off > MANY_CUT_OFF * drawn:
        longer = given.output.with_name(f"{given.output.stem}_longer.jsonl")
        more = again(max_tokens=4 * given.max_tokens or 4096, output=longer)
        say(f"Next: {more}")
    else:
        say(f"Next: {command_line('mrt select', given.output, output=given.output.with_name('chosen.jsonl'))}")


MANY_CUT_OFF = 0.1
"""Share of cut-off draws above which more tokens come before the selection."""


def check_sampler(options: dict[str, Any]) -> None:
    """Check what responses are drawn from, before anything is imported for it. Parse `extra`, which is a text."""
    try:
        options["extra"] = json.loads(given := options["extra"])
    except ValueError:
        options["extra"] = None
    if not isinstance(options["extra"], dict):
        from mrt_plugin.endpoint.masking import mask_typed

        raise ValueError(f'--extra {mask_typed(given)!r} is not JSON as in {{"top_k": 20}}.')
    if options["model"] is not None and options["endpoint"] is None:
        check_folders(parse_models([options["model"]]))
    if not (options["endpoint"] or options["model"]):
        raise ValueError("Nothing to draw from: give --endpoint URL, or --model PATH for a local model.")


def open_sampler(options: dict[str, Any]) -> Any:
    """Return the endpoint or the local model that the checked options of a command name."""
    if options["endpoint"]:
        from mrt_plugin.sampling import Endpoint

        return Endpoint(options["endpoint"], options["model"], **part_of(EndpointOptions, options))
    from mrt_plugin.sampling import LocalModel

    return LocalModel(options["model"], options["adapter"], **part_of(LocalOptions, options))


@dataclass(kw_only=True)
class EvaluateOptions:
    data: str = flag(..., "Held-out groups: prompts, with references if there are any.", "data")
    model: list[str] | None = flag(
        None, "[NAME=]PATH or [NAME=]BASE+ADAPTER; may be repeated. With --endpoint: names."
    )
    adapter: str | None = flag(None, "Folder of an adapter for the only --model.", "adapter")
    pool: list[str] | None = flag(None, "[NAME=]FILE of existing samples (mrt sample); none are drawn.")
    output: Path = flag(Path("evaluation"), "Folder for the samples. A stopped run resumes from it.")
    baseline: str | None = flag(None, "Name of the model to compare with; by default the first.")
    source: str | None = flag(None, "The public format of the data.")
    max_prompts: int | None = flag(None, "The most prompts to evaluate on, drawn by a hash.", min=1)
    m: int = flag(16, "Samples per prompt; 0 for the NLL alone.", min=0)
    at: str | None = flag(None, "Numbers of samples to report at, with commas; by default 1,2,4,... up to M.")
    embedder: str = flag("lexical", "lexical, sentence-transformers, a model's name or path, or none.", "embedder")
    scorer: str | None = flag(None, "For the reward: a reward model, module:function, or a judge.", "scorer")
    score_cache: Path | None = flag(None, "Folder of the cache of vectors and scores.")
    judge: str | None = flag(None, "MODEL@URL or FILE.yaml: a judge compares samples in both orders.", "judge")
    judge_samples: int = flag(1, "Samples per prompt that the judge compares.", min=1)
    max_calls: int | None = flag(None, "The most requests to a judge, retries included.", min=1)
    dry_run: bool = switch("Say what judging would cost at most, and stop.")
    checker: str | None = flag(None, "For pass@M: exact, numeric, module:function or file.py:function.")
    truth: Path | None = flag(None, "All right responses with their probabilities: exact KL and coverage.", "file")
    probe: bool = flag(True, "Measure the general probe before and after fine-tuning.")
    lm_eval: str | None = flag(None, "Tasks of the lm-evaluation-harness, or abilities, with commas.")
    lm_eval_include: Path | None = flag(None, "A folder with your own task files.", "folder")
    lm_eval_limit: int | None = flag(None, "The most examples of each task.", min=1)
    lm_eval_chat: bool = switch("Put the tasks' questions in the chat template.")
    lm_eval_run_code: bool = switch("Let tasks run code that the model writes. Use a sandbox.")
    max_tokens: int = flag(512, "Of one sample; 0 leaves it to the endpoint.", min=0)
    stop: list[str] | None = flag(None, "A text that ends a sample; may be repeated.")
    seed: int = flag(0, "Of the samples, the bootstrap and the outputs to read.", min=0)
    endpoint: str | None = flag(None, "Draw from an OpenAI-compatible server: http://localhost:8000/v1.")
    partial: bool = switch("Continue if some samples could not be drawn.")
    tokenizer: str | None = flag(None, "Folder or name; by default the adapter's own, else the model's.", "tokenizer")
    max_length: int | None = flag(None, "The most tokens of a prompt with one reference.", min=2)
    outputs: int = flag(30, "Outputs to read in the report, of all models together.", min=0)
    report: Path | None = flag(None, "Write everything to one offline HTML file.", "report")
    json: bool = switch("Print the result as JSON.")


@command(EvaluateOptions, SamplingSettings, EndpointOptions, LocalOptions)
def evaluate(given: EvaluateOptions, **options: Any) -> None:
    """Measure what models have learned: held-out NLL; coverage, diversity, reward and pass@M on samples; and what
    they forgot. Several models are compared on the same prompts.

    Example: `mrt evaluate --model path/to/base --model path/to/base+outputs/run --data held_out.jsonl --m 8 --report
    evaluation.html`
    """
    refusal = f"--at {given.at}: write numbers with commas, each at least 1, as in --at 1,4,16."
    counts = None if given.at is None else numbers(given.at, refusal)
    serve, url = None, given.endpoint
    if url is not None:
        from mrt_plugin.endpoint.masking import mask_typed
        from mrt_plugin.sampling import Endpoint

        def serve(name: str | None) -> Any:
            return Endpoint(url, name, **part_of(EndpointOptions, options))

        if not given.model and not given.pool:
            given.model = [serve(None).identity()["model"]]
    models = parse_models(given.model, adapter=given.adapter, local=serve is None) if given.model else []
    models = add_pools(models, given.pool or [])
    if not models:
        raise ValueError("Name what to evaluate: --model PATH, or --pool FILE with its samples.")
    if serve is None:
        check_folders(models)
    for file in [*(one.pool for one in models), given.truth]:
        if file is not None:
            check_file(file)
    with loading():
        from mrt_plugin.endpoint.journal import journal_path
        from mrt_plugin.groups.paths import Named, check_paths
        from mrt_plugin.scoring.cache import cache_file

    written: list[Named] = []
    for one in [one for one in models if given.m and one.path is not None and one.pool is None]:
        samples = given.output / f"{one.file_name}.jsonl"
        written += [(f"the samples of {one.name}", path) for path in (samples, journal_path(samples))]
    inputs: list[Named] = [("--data", given.data), *(("--pool", one.pool) for one in models)]
    inputs += [("--scorer", given.scorer), ("--checker", given.checker), ("--lm-eval-include", given.lm_eval_include)]
    inputs.append(("--truth", given.truth))
    from mrt_plugin.scoring.judge import journal_file, judge_files, parse_judge
    from mrt_plugin.scoring.scores import judges_of

    judge = None
    if given.judge is not None:
        judge = parse_judge(given.judge, max_calls=given.max_calls)
        written += [("the judge's answers", journal_file(judge, given.output))]
        inputs += [("--judge", path) for path in judge_files(f"judge:{given.judge.removeprefix('judge:')}")]
    scorers: Any = judges_of(given.scorer, max_calls=given.max_calls)
    folders = [given.tokenizer, given.embedder, *(path for one in models for path in (one.path, one.adapter))]
    cache = cache_file(given.score_cache)
    check_paths([*written, ("--report", given.report), ("the score cache", cache)], inputs, folders)
    with loading():
        from mrt_plugin.evaluation import How, evaluation_report, load_checker, read_cases
        from mrt_plugin.evaluation.abilities import expand_abilities
        from mrt_plugin.evaluation.forgetting import check_tasks
        from mrt_plugin.scoring import load_embedder

    options |= vars(given) | {"max_tokens": given.max_tokens or None, "stop": tuple(given.stop or ())}
    named = [name.strip() for name in (given.lm_eval or "").split(",") if name.strip()]
    tasks = expand_abilities(named, run_code=given.lm_eval_run_code)
    options |= {
        "folder": given.output,
        "at": counts,
        "settings": SamplingSettings(**part_of(SamplingSettings, options)),
        "endpoint": serve,
        "address": None if url is None else mask_typed(url),
        "embedder": None if given.embedder == "none" else load_embedder(given.embedder, score_cache=given.score_cache),
        "checker": None if given.checker is None else load_checker(given.checker),
        "judge": judge,
        "scorer": scorers[0] if len(scorers) == 1 else given.scorer,
        "local": LocalOptions(**part_of(LocalOptions, options)),
        "tasks": tasks,
        "task_manager": check_tasks(tasks, given.lm_eval_include) if tasks else None,
        "task_limit": given.lm_eval_limit,
        "task_chat": given.lm_eval_chat,
        "task_code": given.lm_eval_run_code,
    }
    how = How(**part_of(How, options))
    shown = {name: options[name] for name in ("baseline", "outputs", "seed", "data")}
    with stages() as progress:
        progress(f"reading {given.data}")
        cases = read_cases(given.data, source=given.source, max_prompts=given.max_prompts, seed=given.seed)
        if given.dry_run:
            return _show_costs(how, cases, models, given)
        progress(f"opening {models[0].name}")
        result = mrt_plugin.evaluate(cases, models, how, progress=progress, **shown)
    finish(given, result, type(result).as_dict, _show, evaluation_report, " and outputs to read")
    if not given.json:
        say(result.next)


def _show_costs(how: Any, cases: Any, models: Any, given: EvaluateOptions) -> None:
    """Say what the judges would cost at most, before a sample is drawn."""
    from mrt_plugin.evaluation.judging import cost_of_judging, cost_of_rewards
    from mrt_plugin.scoring.judge import Judge

    costs = {}
    if how.judge is not None:
        costs[f"comparisons by {how.judge.name}"] = cost_of_judging(
            how.judge, cases, models, given.baseline or models[0].name, how
        )
    if isinstance(how.scorer, Judge):
        costs[f"scores by {how.scorer.name}"] = cost_of_rewards(how.scorer, cases, models, how)
    if given.json:
        return as_json({name: asdict(cost) for name, cost in costs.items()})
    for name, cost in costs.items():
        say(f"{name}: {cost.line()}")
    say("Tokens are estimated as UTF-8 bytes / 4. Nothing was asked, drawn or written.")


def _show(result: "Evaluation") -> None:
    from mrt_plugin.evaluation.evaluate_report import (
        curve_rows,
        difference_rows,
        example_rows,
        forgetting_rows,
        judged_rows,
        measure_rows,
        reward_rows,
    )
    from mrt_plugin.evaluation.findings import headline

    say(*headline(result), "")
    say(f"{result.data.name}: {result.data.prompts:,} prompts, {result.data.with_references:,} with references.")
    few = len(result.models) <= 2  # with more, intervals would not fit beside each other
    title = f"{result.intervals['level']:.0%} intervals, by a bootstrap over prompts" if few else None
    table(*measure_rows(result, intervals=few), title=title)
    columns, rows = curve_rows(result)
    if len(columns) > 2:
        table(columns, rows)
    for name in result.others:
        table(*difference_rows(result, name))
    for columns, rows in (judged_rows(result), reward_rows(result)):
        if rows:
            table(columns, rows)
    if result.example is not None:
        table(*example_rows(result))
    for row in result.forgetting:
        table(*forgetting_rows(row))
    say("", *result.notes)
