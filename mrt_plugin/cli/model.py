"""Options that several planning commands share, and how they open a model."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from mrt_plugin.cli.option import (
    existing_adapter,
    existing_tokenizer,
    within,
)
from mrt_plugin.options import LossAggregation, PaidLayout, PromptFormat

Adapter = Annotated[
    str | None, typer.Option(help="Folder of an adapter to put on the model.", callback=existing_adapter)
]
Tokenizer = Annotated[
    str | None, typer.Option(help="Folder or name; the model's by default.", callback=existing_tokenizer)
]
Aggregation = Annotated[LossAggregation, typer.Option(help="Of your training loss: token, prompt or response.")]
Format = Annotated[PromptFormat, typer.Option(help="auto, chat or plain.")]
MaxLength = Annotated[int | None, typer.Option(min=2, help="Tokens of a prompt with one response.")]
In4Bit = Annotated[bool, typer.Option("--load-in-4bit", help="As QLoRA loads it.")]
CostPrompt = Annotated[
    float | None, typer.Option(help="C_p as you measured it, in any unit; with C_r.", callback=within(gt=0))
]
CostResponse = Annotated[float | None, typer.Option(help="C_r, likewise.", callback=within(gt=0))]
Layout = Annotated[PaidLayout, typer.Option(help="The layout you will train in: shared_prefix or expanded.")]
Power = Annotated[float, typer.Option(help="Exponent of the prompt diversity.", callback=within(ge=0))]


def given_costs(prompt: float | None, response: float | None, layout: PaidLayout) -> Any:
    """Return the costs that the user gave, or None.

    Raises:
        ValueError: if only one of the two is given.
    """
    from mrt_plugin.planning.budget import Costs

    if (prompt is None) != (response is None):
        raise ValueError("Give --cost-prompt and --cost-response together.")
    return None if prompt is None or response is None else Costs(prompt, response, layout)


def local_model(
    model: str | None, adapter: str | None, tokenizer: str | None, **options: Any
) -> tuple[list[str | None], Callable[[], dict[str, Any]]]:
    """Return the folders that a model is read from, and a function that opens the model and its encoder.

    The function returns an empty dictionary if there is no model. `options` are those of `open_model`.
    """
    from mrt_plugin.models.named_model import parse_models

    named = [] if model is None else parse_models([model], adapter=adapter)

    def opened() -> dict[str, Any]:
        if not named:
            return {}
        from mrt_plugin.models.load import open_model

        return dict(zip(("model", "encoder"), open_model(named[0], tokenizer=tokenizer, **options), strict=True))

    return [tokenizer, *(path for one in named for path in (one.path, one.adapter))], opened
