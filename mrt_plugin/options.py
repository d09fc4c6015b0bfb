"""The one definition of every user-facing option: its type, default, bounds and help text.

`MultiResponseSFTConfig` inherits these fields, the Axolotl schema and the command line are built from them, and
`docs/options.md` is printed from them by `python -m mrt_plugin.options`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

Layout = Literal["auto", "shared_prefix", "expanded"]
PrefixBackend = Literal["auto", "flex", "sdpa", "fork", "dense"]
LossAggregation = Literal["token", "prompt", "response"]
Similarity = Literal["paper", "rescaled"]
PromptFormat = Literal["auto", "chat", "plain"]


def option(default: Any, help: str, *, ge: float | None = None) -> Any:
    """A dataclass field with its help text and its lower bound."""
    return field(default=default, metadata={"help": help, "ge": ge})


@dataclass
class MultiResponseOptions:
    """Every option that multi-response training adds to a trainer.

    Example:

    ```python
    from mrt_plugin.options import MultiResponseOptions, check_options

    check_options(MultiResponseOptions(k=4, layout="shared_prefix"))
    ```
    """

    source: str | None = option(
        None,
        "The public format that the data is in, with its options: `nectar`, `ultrafeedback:score=fine_grained`, "
        "`fields:prompt=question,responses=answers.text`; see docs/sources.md. By default rows hold groups, or one "
        "response each.",
    )
    selector: str = option(
        "random_k",
        "Which responses of a prompt's pool are kept: random_k, best_k, diverse_k, diverse_best_k, filter_then_spread "
        "or all. In an Axolotl recipe the dataset's `type` names it instead.",
    )
    k: int = option(4, "Responses kept per prompt. A pool with fewer is kept whole, and counted.", ge=1)
    alpha: float = option(
        1.0,
        "diverse_best_k: the exponent on the scores. 0 ignores them, larger values favour quality over diversity.",
        ge=0,
    )
    similarity: Similarity = option(
        "paper",
        "diverse_k and diverse_best_k: `paper` is (cosine + 1) / 2; `rescaled` stretches the cosines of each pool "
        "to [0, 1], so that later picks still gain something.",
    )
    embedder: str = option(
        "lexical",
        "The selectors that compare responses: `lexical` (character n-grams, nothing to download), "
        "`sentence-transformers` (all-MiniLM-L6-v2), or the name or path of any sentence-transformers model.",
    )
    selection_seed: int | None = option(
        None, "Seed of the selection. By default the run's data_seed, or its seed.", ge=0
    )
    prompt_format: PromptFormat = option(
        "auto",
        "How string prompts become text: `chat` makes them a user turn of the tokenizer's chat template, `plain` "
        "takes them as they are; `auto` is `chat` where the tokenizer has a template. Messages are always chat.",
    )
    layout: Layout = option(
        "auto",
        "How a group becomes tokens: `shared_prefix` computes the prompt once for all its responses, `expanded` "
        "copies it for each; `auto` shares where that is exact and saves tokens.",
    )
    prefix_backend: PrefixBackend = option(
        "auto", "How attention handles a shared prefix; `auto` picks the fastest one that is exact for the model."
    )
    prefix_check: bool = option(
        True, "Prove before training, on the model and data at hand, that the shared prefix computes the same numbers."
    )
    loss_aggregation: LossAggregation = option(
        "token",
        "What has one vote in the mean: every `token`, every `prompt` (responses keep their likelihood weights), or "
        "every `response` (tilts towards short responses).",
    )
    row_length: int | None = option(
        None,
        "Tokens a row may hold. At least max_length, which is the default (in Axolotl: sequence_len); larger rows "
        "keep long groups whole.",
        ge=2,
    )
    row_packing: bool = option(
        True, "Put several groups of a batch into one row of at most row_length. Groups never see each other."
    )


def check_options(options: MultiResponseOptions) -> None:
    """Check every option against its type and bounds.

    Raises:
        ValueError: naming the option, the value found and the values allowed.
    """
    hints = get_type_hints(MultiResponseOptions)
    for item in dataclasses.fields(MultiResponseOptions):
        value = getattr(options, item.name)
        hint = hints[item.name]
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{item.name}={value!r} is unknown: choose one of {', '.join(get_args(hint))}.")
        lowest = item.metadata["ge"]
        if lowest is not None and value is not None and not value >= lowest:
            raise ValueError(f"{item.name}={value!r} is too small: it must be at least {lowest:g}.")


def markdown() -> str:
    """The reference page `docs/options.md`, one row per option."""
    hints = get_type_hints(MultiResponseOptions)
    lines = ["| option | type | default | what it does |", "| --- | --- | --- | --- |"]
    for item in dataclasses.fields(MultiResponseOptions):
        hint = hints[item.name]
        if get_origin(hint) is Literal:
            kind = " or ".join(f"`{value}`" for value in get_args(hint))
        else:
            kind = f"`{hint.__name__ if isinstance(hint, type) else hint}`".replace(" | ", " or ")
        lines.append(f"| `{item.name}` | {kind} | `{item.default}` | {item.metadata['help']} |".replace(" | None", ""))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
