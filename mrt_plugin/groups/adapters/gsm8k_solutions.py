"""GSM8K model solutions (openai/grade-school-math, `example_model_solutions.jsonl`): one human's and four models'."""

from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Adapter, Converted


class Solution(TypedDict):
    solution: str
    is_correct: bool


MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
SolutionsRow = TypedDict(
    "SolutionsRow",
    {
        "question": str,
        "ground_truth": str,
        "6b_finetuning": Solution,
        "6b_verification": Solution,
        "175b_finetuning": Solution,
        "175b_verification": Solution,
    },
)


def convert(row: SolutionsRow) -> Converted:
    """Yield one group of five, the human's solution first. The score is 1 if the final answer is right, else 0."""
    solutions = [row[model] for model in MODELS]  # type: ignore[literal-required]
    yield {
        "prompt": row["question"],
        "responses": [row["ground_truth"], *(solution["solution"] for solution in solutions)],
        "scores": [1.0, *(float(solution["is_correct"]) for solution in solutions)],
    }


GSM8K_SOLUTIONS = Adapter(
    "gsm8k_solutions",
    "GSM8K test problems with a human's and four models' solutions; the score is 1 if the answer is right",
    SolutionsRow,
    convert,
    {"prompt": "question", "responses": "175b_verification", "scores": "175b_verification"},
)
