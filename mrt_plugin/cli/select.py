"""`mrt select`: choose responses, and write a file that is ready to train on, with its manifest."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrt_plugin.cli.option import argument, command, flag, switch
from mrt_plugin.cli.progress import stages
from mrt_plugin.cli.show import as_json, command_line, finish, json_ready, say, table
from mrt_plugin.pipeline.job import PoolFile, SelectJob

if TYPE_CHECKING:
    from mrt_plugin.pipeline.files import SelectResult


@dataclass(kw_only=True)
class SelectOptions:
    data: list[str] | None = argument(None, "The pools: JSONL, JSON, CSV, TSV or Parquet files, or hub ids.", "data")
    output: Path | None = flag(None, "The file to write: .jsonl or .parquet.", "", "--output", "--out")
    source: list[str] | None = flag(None, "The public format of the pools, by name. Give it once, or once per pool.")
    split: list[str] | None = flag(None, "The split of pools on the hub. Give it once, or once per pool.")
    subset: list[str] | None = flag(None, "The subset of pools on the hub. Give it once, or once per pool.")
    curation: str | None = flag(
        None, "Rules: `default`, a .yaml file (a list, or a recipe's mrt.curation), or YAML.", "curation"
    )
    tokenizer: str | None = flag(None, "Counts tokens in rules and statistics. Estimated by default.", "tokenizer")
    proportion: list[str] | None = flag(None, "NAME=SHARE for each pool. NAME is the file's name without its ending.")
    export: list[str] | None = flag(None, "Also write sft=, dpo= or divpo=FILE.jsonl; divpo pairs the complete pools.")
    from_manifest: Path | None = flag(None, "Make the selection of this manifest again, with its options.", "file")
    max_calls: int | None = flag(None, "With a judge as --scorer: the most requests, retries included.", min=1)
    dry_run: bool = switch("With a judge as --scorer: say what judging would cost, and stop.")
    json: bool = switch("Print the counts as JSON.")


@command(SelectOptions, SelectJob)
def select(given: SelectOptions, **options: Any) -> None:
    """Keep K of N responses per prompt, and write the kept groups to a file that any recipe can read.

    Also writes a manifest, from which the same file can be made again, byte for byte. Train on the file with
    `type: mrt_plugin.axolotl.all`, or `selector="all"`.

    Example: `mrt select pool.jsonl --output chosen.jsonl --selector diverse_best_k --k 4 --curation default`

    Again: `mrt select --from-manifest chosen.jsonl.manifest.jsonl --output again.jsonl`
    """
    if given.output is None:
        raise ValueError("say where to write: --output chosen.jsonl.")
    if given.from_manifest is not None:
        from mrt_plugin.pipeline.files import remake

        aside, pools = options["held_out_output"], given.data or []
        with stages() as progress:
            progress(f"making {given.output} again")
            files = remake(given.from_manifest, given.output, held_out_output=aside, pools=pools)
        lines = [f"{one.path}: {one.groups:,} groups, {one.responses:,} responses" for one in files]
        again = [f"{line}, the same bytes as before." for line in lines]
        return finish(given, {"files": files}, json_ready, lambda found: say(*again))
    if not given.data:
        raise ValueError("say what to select from: a pool's file, or --from-manifest.")
    job = SelectJob(
        pools=_pools(given.data, given),
        output=given.output,
        proportions=_pairs(given.proportion, float, "--proportion", "chat=0.7") or None,
        exports=_pairs(given.export, Path, "--export", "sft=FILE.jsonl"),
        also_read=[path for path in (given.curation, given.tokenizer) if path is not None],
        **options,
    )
    with stages() as progress:
        progress("reading the pools")
        from mrt_plugin.pipeline.files import check_job_paths, select_file

        check_job_paths(job)
        job = replace(job, curation=_rules(given.curation))
        if job.scorer is not None:
            from mrt_plugin.scoring.scores import judges_of

            scorers: Any = judges_of(job.scorer, max_calls=given.max_calls)
            if given.dry_run:
                return _show_costs(job, scorers, given.json)
            job.scorer = scorers
        if given.tokenizer is not None:
            from transformers import AutoTokenizer

            job.tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
        found = select_file(job, progress)
    finish(given, found, _as_dict, lambda found: _show(found, job))


def _show_costs(job: SelectJob, scorers: list[Any], as_document: bool) -> None:
    """Say what the judges would cost on the pools as they are read. Curation can only make it less."""
    from mrt_plugin.pipeline.files import read_pools
    from mrt_plugin.scoring.judge import Judge
    from mrt_plugin.scoring.judge_run import cost_of_scores

    judges = [one for one in scorers if isinstance(one, Judge)]
    groups = read_pools(job.pools).groups
    costs = cost_of_scores(judges, groups, job.score_cache)
    if as_document:
        return as_json(json_ready(costs))
    for name, cost in costs.items():
        say(f"{name}: {cost.line()}")
    say("Tokens are estimated as UTF-8 bytes / 4. Nothing was asked, and nothing written.")


def _pools(data: list[str], given: SelectOptions) -> list[PoolFile]:
    parts = {"source": given.source, "split": given.split, "subset": given.subset}
    each: list[dict[str, str]] = [{} for _ in data]
    for name, values in parts.items():
        if len(values or []) not in (0, 1, len(data)):
            raise ValueError(f"{len(values or [])} {name}s for {len(data)} pools: give one for all, or one for each.")
        for place, options in enumerate(each):
            if values and (value := values[place % len(values)]):
                options[name] = value
    return [PoolFile(path, **options) for path, options in zip(data, each, strict=True)]


def _rules(text: str | None) -> Any:
    if text is None or text == "default":
        return text
    import yaml

    path = Path(text)
    try:
        rules = yaml.safe_load(path.read_text() if path.suffix in (".yaml", ".yml") else text)
    except yaml.YAMLError as problem:
        raise ValueError(f"--curation {text}: not YAML: {problem}") from None
    if isinstance(rules, dict) and isinstance(rules.get("mrt", rules), dict):
        rules = rules.get("mrt", rules).get("curation", [rules])
    return rules


def _pairs(texts: list[str] | None, read: Callable[[str], Any], option: str, example: str) -> dict[str, Any]:
    pairs = {}
    for text in texts or []:
        name, _, value = text.partition("=")
        try:
            pairs[name] = read(value)
        except ValueError:
            value = ""
        if not value:
            raise ValueError(f"{option} {text}: write it as in {option} {example}.")
    return pairs


def _as_dict(result: "SelectResult") -> dict[str, Any]:
    found = json_ready(result) | {"output": str(result.output.path), "ledger": result.ledger.as_dict()}
    return found | {name: getattr(result.output, name) for name in ("groups", "responses", "sha256")}


def _show(result: "SelectResult", job: SelectJob) -> None:
    table(*result.ledger.table(), zeros=False)
    notes = []
    for entry in result.ledger.entries:
        reasons = [f"{reason} {count:,}" for reason, count in sorted(entry.reasons.items())]
        if reasons and entry.rule not in ("held out", "selection"):  # which have one, and it is their name
            notes.append(f"{entry.rule}: {', '.join(reasons)}.")
        notes += [f"{entry.rule}: {note}." for note in entry.notes]
    say(*notes, result.ledger.lines()[-1], *result.summary)
    if result.statistics:
        _show_statistics(result.statistics)
    for item in result.exports:
        without = f", {item.skipped:,} groups without a pair" if item.skipped else ""
        say(f"{item.path}: {item.rows:,} rows ({item.kind}){without}.")
    if result.held_out:
        say(f"{result.held_out.path}: {result.held_out.groups:,} held-out groups.")
    written = result.output
    say(
        f"{written.path}: {written.groups:,} groups, {written.responses:,} responses. Manifest: {result.manifest}",
        'To train on it: type: mrt_plugin.axolotl.all in a recipe, selector="all" in Python.',
    )
    pool = job.pools[0]  # `mrt audit` reads one, of the usual format
    if job.pools != [PoolFile(pool.path)]:
        return say(f"Next: {command_line('mrt init', data=written.path)}")
    say(f"Next: {command_line('mrt audit', written.path, pool=pool.path)}")


def _show_statistics(found: dict[str, Any]) -> None:
    rows = []
    for kind in found["pool"]["task_types"] | found["selected"]["task_types"]:
        parts = [found[part]["task_types"].get(kind) for part in ("pool", "selected")]
        shares = [f"{part['share']:.1%}" if part else "0" for part in parts]
        rows.append((kind, *shares, *(f"{part['median_response_length']:.0f}" if part else "" for part in parts)))
    table(("task type", "pool", "selected", "median tokens", "selected"), rows)
    before, after = (found[part]["task_entropy"] for part in ("pool", "selected"))
    say(f"entropy of the task types: {before:.2f} bits in the pool, {after:.2f} selected.")
    for part in ("pool", "selected"):
        lengths, prompts = found[part]["response_length"], found[part]["prompt_length"]
        spread = f"5 % {lengths['p5']:.0f}, median {lengths['p50']:.0f}, 95 % {lengths['p95']:.0f}"
        say(
            f"{part}: tokens ({found[part]['tokens']}) of a response: mean {lengths['mean']:.0f}, {spread}.",
            f"{part}: tokens of a prompt: median {prompts['p50']:.0f}.",
        )
