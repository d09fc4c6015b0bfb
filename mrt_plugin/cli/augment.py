"""`mrt augment`: more prompts, generated from those at hand or given, and filtered for what is new."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mrt_plugin
from mrt_plugin.cli.drawing import check_sampler, open_sampler
from mrt_plugin.cli.option import argument, command, flag, numbers, part_of, switch
from mrt_plugin.cli.progress import loading, stages
from mrt_plugin.cli.show import command_line, finish, json_ready, say, table
from mrt_plugin.sampling.options import EndpointOptions, LocalOptions, SamplingSettings

if TYPE_CHECKING:
    from mrt_plugin.pipeline.augment import Generated
    from mrt_plugin.planning.diversity import Augmented, Novelty


@dataclass(kw_only=True)
class AugmentOptions:
    candidates: Path | None = argument(
        None, "JSONL of `prompt` and, if known, `supports` (prompts). Without it they are generated.", "file"
    )
    data: str = flag(..., "The groups whose prompts you have: a file or a hub id.", "data")
    source: str | None = flag(None, "The public format of the data.")
    output: Path = flag(..., "Where the kept candidates go, as JSONL. Generating also writes OUTPUT.journal.")
    threshold: float = flag(0.3, "Jaccard overlap from which a candidate is dropped.", gt=0, le=1)
    ngram: int = flag(2, "Tokens of an n-gram.", min=1)
    p: float = flag(0.5, "Exponent of the prompt diversity.", ge=0)
    tokenizer: str | None = flag(None, "Folder or name; words are the tokens without it.", "tokenizer")
    endpoint: str | None = flag(None, "Generate: an OpenAI-compatible server, http://localhost:8000/v1 for example.")
    model: str | None = flag(None, "With --endpoint, one of its models. Else a local model's path or name.")
    adapter: Path | None = flag(None, "A PEFT adapter for the local model.", "adapter")
    supports: str = flag("2", "Prompts that a candidate is generated from; several numbers with commas.")
    per_step: int = flag(100, "Candidates of a step, for each number of supports.", min=1)
    steps: int = flag(1, "Steps; later ones also draw supports from what was kept before.", min=1)
    instruction: Path | None = flag(
        None, "A text file with the instruction; {examples} stands for the supports.", "file"
    )
    max_tokens: int = flag(512, "Of one candidate; 0 leaves it to the endpoint.", min=0)
    stop: list[str] | None = flag(None, "A text that ends a candidate; may be repeated.")
    requests_per_minute: float | None = flag(None, "The most requests started per minute.", gt=0)
    extra: str = flag("{}", 'More fields of the request as JSON: {"top_k": 20}; null leaves one out.')
    json: bool = switch("Print the counts as JSON.")


@command(AugmentOptions, SamplingSettings, EndpointOptions, LocalOptions)
def augment(given: AugmentOptions, **options: Any) -> None:
    """Generate prompts from random ones of yours, and keep those that overlap little with them and with each other.

    Their responses are sampled next (`mrt sample`). The same command resumes a stopped run. Candidates from elsewhere
    are only filtered, and their rows written unchanged.

    Example: `mrt augment --data pool.jsonl --model path/to/model --supports 1,2,4 --output new_prompts.jsonl`

    Example: `mrt augment generated.jsonl --data pool.jsonl --output new_prompts.jsonl`
    """
    with loading():
        from mrt_plugin.groups.paths import check_paths
        from mrt_plugin.planning.diversity import augment_file, token_ids

    source, output = given.candidates, given.output
    if source is None and not (given.endpoint or given.model):
        raise ValueError("give a file of candidates, or what generates them: --endpoint URL, or --model PATH.")
    read = [("the candidates", source), ("--data", given.data), ("--instruction", given.instruction)]
    check_paths([("--output", output)], read, [given.tokenizer, None if given.endpoint else given.model])
    how: dict[str, Any] = {"threshold": given.threshold, "order": given.ngram, "p": given.p}
    if given.tokenizer is not None:
        from transformers import AutoTokenizer

        how["tokenize"] = token_ids(AutoTokenizer.from_pretrained(given.tokenizer))
    if source is not None:
        with stages() as progress:
            progress("filtering the candidates")
            found = augment_file(source, mrt_plugin.load_groups(given.data, source=given.source), output, **how)
        return finish(given, found, _filtered_document, lambda found: _show_filtered(found, given))
    from mrt_plugin.pipeline.augment import PROMPT_FILE, AugmentSettings, as_document, generate_prompts

    counts = tuple(numbers(given.supports, f"--supports {given.supports}: write whole numbers from 1, as in 1,2,4."))
    settings = AugmentSettings(counts, given.per_step, given.steps, **how)
    checked = options | vars(given)
    check_sampler(checked)
    options |= {"max_tokens": given.max_tokens or None, "stop": tuple(given.stop or ())}
    sampling = SamplingSettings(**part_of(SamplingSettings, options))
    with stages() as progress:
        progress(f"opening {given.model or given.endpoint}")
        sampler = open_sampler(checked)
        progress(f"reading {given.data}")
        groups = mrt_plugin.load_groups(given.data, source=given.source)
        made = generate_prompts(
            groups,
            sampler,
            output,
            settings,
            sampling,
            instruction=given.instruction or PROMPT_FILE,
            progress=progress,
        )
    finish(given, made, lambda made: json_ready(as_document(made)), lambda made: _show_generated(made, given))


def _filtered_document(found: "Augmented") -> dict[str, Any]:
    dropped = [{name: vars(one)[name] for name in ("prompt", "overlap", "nearest")} for one in found.dropped]
    return {**json_ready(found), "dropped": dropped}


def _title(given: AugmentOptions) -> str:
    return f"Prompt diversity d = r·n^p ({given.ngram}-grams, p = {given.p:g})"


def _show_filtered(found: "Augmented", given: AugmentOptions) -> None:
    named = (("your prompts", found.before), ("with the kept candidates", found.after))
    rows = [(name, f"{row.prompts:,}", f"{row.r:.3f}", f"{row.d:.3f}") for name, row in named]
    table(("", "prompts", "r", "d"), rows, title=_title(given))
    say(f"{found.kept:,} of {found.candidates:,} candidates kept, in {given.output}; the others overlap too much:")
    _show_end(found.kept, found.dropped, given)


def _show_generated(found: "Generated", given: AugmentOptions) -> None:
    rows = [("yours", "", "", f"{found.before.r:.3f}", "", f"{found.before.d:.3f}", "", "")]
    for one in found.gains:
        name = f"step {one.step}, " + ("all" if one.supports is None else f"n = {one.supports}")
        gains = (f"{one.after.r:.3f}", f"{one.r:+.3f}", f"{one.after.d:.3f}", f"{one.d:+.3f}")
        equal = "" if one.d_at_equal is None else f"{one.d_at_equal:+.3f}"
        rows.append((name, f"{one.candidates:,}", f"{one.kept:,}", *gains, equal))
    table(("", "drawn", "kept", "r", "gain", "d", "gain", "at equal"), rows, title=_title(given))
    say("At equal: the gain in d from as many candidates of each n as the n with the fewest has kept.")
    total, unusable = (
        sum(getattr(one, name) for one in found.gains if one.supports is None) for name in ("candidates", "unusable")
    )
    say(f"{found.kept:,} of {total:,} candidates kept, in {given.output}.")
    say(f"{unusable:,} replies were cut off, empty or rejected; {len(found.dropped):,} overlap too much, most of all:")
    _show_end(found.kept, sorted(found.dropped, key=lambda one: -one.overlap), given)


def _show_end(kept: int, dropped: "list[Novelty]", given: AugmentOptions) -> None:
    if kept == 0:
        say("Nothing new: raise --threshold, or generate with another --instruction, --supports or model.")
    for item in dropped[:3]:
        say(f"  {item.overlap:.2f}  {item.prompt[:80]!r}  like  {(item.nearest or '')[:80]!r}")
    if kept:
        pool = given.output.with_name(f"{given.output.stem}_pool.jsonl")
        who = {"endpoint": given.endpoint, "model": given.model, "adapter": given.adapter}
        why = ""
        if not (given.endpoint or given.model):
            who["model"], why = "MODEL", "with the model that is to answer as MODEL: "
        say(f"Next: {why}{command_line('mrt sample', given.output, **who, output=pool)}")
