"""`mrt augment`: keep the generated prompts that are new."""

from pathlib import Path
from typing import Annotated

import typer

from mrt_plugin.cli.model import Power
from mrt_plugin.cli.option import existing_data, existing_file, existing_tokenizer, within
from mrt_plugin.cli.show import as_json, json_ready, plain_errors, say, table


def augment(
    candidates: Annotated[
        Path,
        typer.Argument(help="JSONL of `prompt` and, if known, `supports` (prompts).", callback=existing_file),
    ],
    data: Annotated[
        str, typer.Option(help="The groups whose prompts you have: a file or a hub id.", callback=existing_data)
    ],
    output: Annotated[Path, typer.Option(help="Where the kept candidates go, as JSONL.")],
    threshold: Annotated[
        float,
        typer.Option(help="Jaccard overlap from which a candidate is dropped.", callback=within(gt=0, le=1)),
    ] = 0.3,
    ngram: Annotated[int, typer.Option(min=1, help="Tokens of an n-gram.")] = 2,
    p: Power = 0.5,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or name; words are the tokens without it.", callback=existing_tokenizer)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Keep the generated prompts that overlap little with their supports, with your prompts, and with each other.

    The rows of kept candidates are written unchanged. Their responses are sampled next (`mrt sample`).

    Example: `mrt augment generated.jsonl --data pool.jsonl --output new_prompts.jsonl`
    """
    with plain_errors():
        from mrt_plugin.groups import load_groups
        from mrt_plugin.groups.paths import check_paths
        from mrt_plugin.planning.diversity import Tokenize, augment_file, token_ids, words

        check_paths([("--output", output)], [("the candidates", candidates), ("--data", data)], [tokenizer])
        tokenize: Tokenize = words
        if tokenizer is not None:
            from transformers import AutoTokenizer

            tokenize = token_ids(AutoTokenizer.from_pretrained(tokenizer))
        found = augment_file(
            candidates, load_groups(data), output, threshold=threshold, order=ngram, p=p, tokenize=tokenize
        )
    if json:
        dropped = [{"prompt": one.prompt, "overlap": one.overlap, "nearest": one.nearest} for one in found.dropped]
        as_json(json_ready(found) | {"dropped": dropped})
        return
    rows = [
        (name, f"{row.prompts:,}", f"{row.r:.3f}", f"{row.d:.3f}")
        for name, row in (("your prompts", found.before), ("with the kept candidates", found.after))
    ]
    table(("", "prompts", "r", "d"), rows, title=f"Prompt diversity d = r·n^p ({ngram}-grams, p = {p:g})")
    say(f"{found.kept:,} of {found.candidates:,} candidates kept, in {output}; the others overlap too much:")
    for item in found.dropped[:3]:
        say(f"  {item.overlap:.2f}  {item.prompt[:80]!r}  like  {(item.nearest or '')[:80]!r}")
    say(f"Next: mrt sample {output} --help")
