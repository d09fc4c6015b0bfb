"""`mrt select`: from pools to a selected, ready-to-train file with its manifest."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mrt_plugin.cli.option import existing_data, existing_file, existing_tokenizer, with_options
from mrt_plugin.cli.show import as_json, log_to_stderr, plain_errors, say, table
from mrt_plugin.pipeline.job import PoolFile, SelectJob


@with_options(SelectJob)
def select(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="The pools: JSONL, JSON or Parquet files, or hub ids. Several are put together.",
            callback=existing_data,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "--out", help="Where to write: .jsonl or .parquet.")
    ] = None,
    *,
    source: Annotated[
        list[str] | None, typer.Option(help="The public format of the pools, by name; once, or once per pool.")
    ] = None,
    curation: Annotated[
        str | None,
        typer.Option(help="Rules: `default`, a .yaml file (a list, or a recipe's mrt.curation), or YAML as text."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Name or path; counts tokens in rules and statistics. Else estimated.", callback=existing_tokenizer
        ),
    ] = None,
    proportion: Annotated[
        list[str] | None, typer.Option(help="NAME=SHARE for each pool, NAME being its file's without the ending.")
    ] = None,
    export: Annotated[list[str] | None, typer.Option(help="sft=FILE.jsonl or dpo=FILE.jsonl, also.")] = None,
    from_manifest: Annotated[
        Path | None,
        typer.Option(
            help="Make the selection of this manifest once more; the other options are in it.", callback=existing_file
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
    **options: Any,
) -> None:
    """Keep K of N responses per prompt, and write the kept groups to a file that any recipe can read.

    Beside the file lies its manifest, from which the same file can be made again, byte for byte. Train on it with
    `type: mrt_plugin.axolotl.all`, or `selector="all"`.

    Example: `mrt select pool.jsonl --output chosen.jsonl --selector diverse_best_k --k 4 --curation default`

    Again: `mrt select --from-manifest chosen.jsonl.manifest.jsonl --output again.jsonl`
    """
    with plain_errors():
        log_to_stderr()
        if output is None:
            raise ValueError("say where to write: --output chosen.jsonl.")
        if from_manifest is not None:
            _remake(from_manifest, output, options["held_out_output"], data or [], json)
            return
        if not data:
            raise ValueError("say what to select from: a pool's file, or --from-manifest.")
        from mrt_plugin.pipeline.files import check_job_paths, select_file

        job = SelectJob(
            pools=_pools(data, source or []),
            output=output,
            proportions=_shares(proportion),
            exports={kind: Path(path) for kind, path in _pairs(export or [], "--export", "sft=FILE.jsonl")},
            also_read=[path for path in (curation, tokenizer) if path is not None],
            **options,
        )
        check_job_paths(job)
        result = select_file(replace(job, curation=_rules(curation), tokenizer=_tokenizer(tokenizer)))
    if json:
        as_json(_as_dict(result))
    else:
        _show(result)


def _remake(manifest: Path, output: Path, held_out_output: Path | None, pools: list[str], json: bool) -> None:
    from mrt_plugin.pipeline.remake import remake

    files = remake(manifest, output, held_out_output=held_out_output, pools=pools)
    if json:
        as_json({"files": [_entry(written) for written in files]})
    for written in [] if json else files:
        say(f"{written.path}: {written.groups:,} groups, {written.responses:,} responses, the same bytes as before.")


def _pools(data: list[str], sources: list[str]) -> list[PoolFile]:
    if len(sources) not in (0, 1, len(data)):
        raise ValueError(f"{len(sources)} sources for {len(data)} pools: give one for all, or one for each.")
    each = sources if len(sources) == len(data) else (sources or [""]) * len(data)
    return [PoolFile(path, source or None) for path, source in zip(data, each, strict=True)]


def _rules(text: str | None) -> Any:
    """`default`, the rules in a YAML file, or rules as YAML text."""
    if text is None or text == "default":
        return text
    import yaml

    path = Path(text)
    try:
        rules = yaml.safe_load(path.read_text() if path.suffix in (".yaml", ".yml") else text)
    except yaml.YAMLError as problem:
        raise ValueError(f"--curation {text}: not YAML: {problem}") from None
    if isinstance(rules, dict) and isinstance(rules.get("mrt", rules), dict):
        found = rules.get("mrt", rules)
        rules = found.get("curation", [rules])
    return rules


def _tokenizer(name: str | None) -> Any:
    if name is None:
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def _shares(texts: list[str] | None) -> dict[str, float] | None:
    if not texts:
        return None
    shares = {}
    for name, value in _pairs(texts, "--proportion", "chat=0.7"):
        try:
            shares[name] = float(value)
        except ValueError:
            raise ValueError(f"--proportion {name}={value}: {value!r} is not a number.") from None
    return shares


def _pairs(texts: list[str], option: str, example: str) -> list[tuple[str, str]]:
    pairs = [text.partition("=") for text in texts]
    wrong = next((text for text, (_, sign, value) in zip(texts, pairs, strict=True) if not sign or not value), None)
    if wrong is not None:
        raise ValueError(f"{option} {wrong}: write it as in {option} {example}.")
    return [(name, value) for name, _, value in pairs]


def _entry(written: Any) -> dict[str, Any]:
    """Return the fields of a written file, for JSON."""
    return {**asdict(written), "path": str(written.path)}


def _as_dict(result: Any) -> dict[str, Any]:
    return {
        "output": str(result.output.path),
        "groups": result.output.groups,
        "responses": result.output.responses,
        "sha256": result.output.sha256,
        "manifest": str(result.manifest),
        "held_out": result.held_out and _entry(result.held_out),
        "exports": [_entry(item) for item in result.exports],
        "summary": result.summary,
        "ledger": result.ledger.as_dict(),
        "statistics": result.statistics,
    }


def _show(result: Any) -> None:
    table(*result.ledger.table())
    say(result.ledger.lines()[-1])
    for line in result.summary:
        say(line)
    if result.statistics:
        _show_statistics(result.statistics)
    for item in result.exports:
        without = f", {item.skipped:,} groups without a pair" if item.skipped else ""
        say(f"{item.path}: {item.rows:,} rows ({item.kind}){without}.")
    if result.held_out:
        say(f"{result.held_out.path}: {result.held_out.groups:,} held-out groups.")
    written = result.output
    say(f"{written.path}: {written.groups:,} groups, {written.responses:,} responses. Manifest: {result.manifest}")
    say(
        f"Next: mrt audit {written.path} --pool YOUR_POOL shows what the selection changed; or train on it, with "
        'type: mrt_plugin.axolotl.all in a recipe, selector="all" in Python.'
    )


def _show_statistics(found: dict[str, Any]) -> None:
    kinds = {**found["pool"]["task_types"], **found["selected"]["task_types"]}
    rows = []
    for kind in kinds:
        before, after = (found[part]["task_types"].get(kind) for part in ("pool", "selected"))
        rows.append(
            (
                kind,
                *(f"{part['share']:.1%}" if part else "0" for part in (before, after)),
                *(f"{part['median_response_length']:.0f}" if part else "" for part in (before, after)),
            )
        )
    table(("task type", "pool", "selected", "median tokens", "selected"), rows)
    for part in ("pool", "selected"):
        lengths, prompts = found[part]["response_length"], found[part]["prompt_length"]
        spread = f"5 % {lengths['p5']:.0f}, median {lengths['p50']:.0f}, 95 % {lengths['p95']:.0f}"
        say(f"{part}: tokens ({found[part]['tokens']}) of a response: mean {lengths['mean']:.0f}, {spread}.")
        say(f"{part}: tokens of a prompt: median {prompts['p50']:.0f}.")
