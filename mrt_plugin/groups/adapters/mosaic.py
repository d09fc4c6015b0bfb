"""MOSAIC-1K (arXiv 2606.00544): clusters of four prompt variants, each with four responses.

The modes come from the paper's experiments. The number of variants per cluster sets the redundancy of the prompts.
The responses kept for each variant set whether repeated prompts add new responses.
"""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Adapter, Converted, LeftOut, Mismatch


class Text(TypedDict):
    text: str


class MosaicRow(TypedDict):
    id: str | int
    prompt_variants: list[str]
    responses: list[list[str | Text]]


Modes = Literal["all", "cyclic_one", "same_one"]


def convert(
    row: MosaicRow,
    *,
    variants: Annotated[int, Field(ge=1, le=4)] = 1,
    responses: Modes = "all",
    index: Annotated[int, Field(ge=0)] = 0,
) -> Converted:
    """Yield a group for each of the first `variants` prompts.

    The values of `responses`:

    - `all` keeps every response of a variant.
    - `cyclic_one` keeps one: the v-th of variant v (paraphrases with different answers).
    - `same_one` keeps one: the response at `index` (paraphrases with corresponding answers).
    """
    if len(row["prompt_variants"]) != len(row["responses"]):
        raise Mismatch(
            "responses", f"{len(row['responses'])} lists for {len(row['prompt_variants'])} prompt variants."
        )
    for number, (prompt, pool) in enumerate(zip(row["prompt_variants"], row["responses"], strict=True)):
        if number >= variants:
            yield LeftOut(f"prompt variants beyond variants={variants}")
            continue
        texts = [response if isinstance(response, str) else response["text"] for response in pool]
        if responses != "all" and texts:
            chosen = (number if responses == "cyclic_one" else index) % len(texts)
            for _ in range(len(texts) - 1):
                yield LeftOut(f"responses beyond responses={responses}")
            texts = [texts[chosen]]
        yield {"id": f"{row['id']}_v{number}", "prompt": prompt, "responses": texts}


MOSAIC_1K = Adapter(
    "mosaic_1k",
    "MOSAIC-1K: prompt variants x responses, without scores; how many variants and which responses can be chosen",
    MosaicRow,
    convert,
    {"prompt": "prompt_variants"},
)
