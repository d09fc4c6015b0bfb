"""`mrt select`: keep K of N responses per prompt, and write what was kept."""

from pathlib import Path
from typing import Annotated

import typer

from mrt_plugin.cli.show import as_json, log_to_stderr, plain_errors, say


def select(
    data: Annotated[str, typer.Argument(help="The pool: a JSONL, JSON or Parquet file, or a hub id.")],
    output: Annotated[Path, typer.Option(help="Where to write: .jsonl or .parquet.")],
    selector: Annotated[str, typer.Option(help="random_k, best_k, diverse_k, diverse_best_k or all.")] = "random_k",
    k: Annotated[int, typer.Option(min=1, help="Responses to keep per prompt.")] = 4,
    alpha: Annotated[float, typer.Option(min=0, help="diverse_best_k: the exponent on the scores.")] = 1.0,
    similarity: Annotated[str, typer.Option(help="diverse_k, diverse_best_k: paper or rescaled.")] = "paper",
    embedder: Annotated[
        str, typer.Option(help="lexical, sentence-transformers, or a model's name or path.")
    ] = "lexical",
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another choice.")] = 0,
    source: Annotated[str | None, typer.Option(help="The public format the file is in, by name.")] = None,
    num_proc: Annotated[int | None, typer.Option(min=1, help="Processes; the result does not depend on it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Keep K of N responses per prompt, and write the kept groups to a file that any recipe can read.

    Example: `mrt select pool.jsonl --output chosen.jsonl --selector diverse_best_k --k 4 --alpha 0.75`
    """
    with plain_errors():
        log_to_stderr()
        from mrt_plugin.groups import load_groups
        from mrt_plugin.groups.write import write_groups
        from mrt_plugin.selection import select as keep

        chosen = keep(
            load_groups(data, source=source),
            selector,
            k=k,
            alpha=alpha,
            similarity=similarity,  # type: ignore[arg-type]  # checked by select
            embedder=embedder,
            seed=seed,
            num_proc=num_proc,
        )
        written = write_groups(chosen, output)
    if json:
        as_json({"output": str(output), "groups": len(chosen), "responses": written})
    else:
        say(f"{output}: {len(chosen):,} groups, {written:,} responses.")
