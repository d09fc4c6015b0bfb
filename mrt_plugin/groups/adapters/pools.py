"""Formats with a prompt and its responses in fields of their own, from Alpaca to TRL's types."""

import math
from collections.abc import Generator
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from mrt_plugin.groups.adapters.adapter import Converted, LeftOut, Mismatch, adapter


class AlpacaRow(TypedDict):
    instruction: str
    input: NotRequired[str | None]
    output: str


class AlpacaEvalRow(TypedDict):
    instruction: str
    output: str
    generator: NotRequired[str | None]


class GoldRow(TypedDict):
    instruction: str
    input: NotRequired[str | None]
    answers: list[str]
    gold_scores: list[float]


def _with_input(instruction: str, given: str | None) -> str:
    """Return the instruction, then any `input` under a heading, as in the code of arXiv 2606.00544."""
    given = (given or "").strip()
    return f"{instruction.strip()}\n\nInput:\n{given}" if given else instruction


@adapter(prompt="instruction", responses="output")
def alpaca(row: AlpacaRow) -> Converted:
    """Yield one response of an Alpaca row (tatsu-lab/stanford_alpaca)."""
    yield {"prompt": _with_input(row["instruction"], row.get("input")), "completion": row["output"]}


@adapter(prompt="instruction", responses="output")
def alpaca_eval(row: AlpacaEvalRow) -> Converted:
    yield {"prompt": row["instruction"], "completion": row["output"]}


@adapter(prompt="instruction", responses="answers", scores="gold_scores")
def gold_labelled(row: GoldRow) -> Converted:
    """Yield one group of gold-labelled generations (tlc4418)."""
    prompt = _with_input(row["instruction"].strip(), row.get("input"))
    yield {"prompt": prompt, "responses": row["answers"], "scores": row["gold_scores"]}


Completion = TypedDict(
    "Completion",
    {
        "response": str,
        "overall_score": NotRequired[float | None],
        "fine-grained_score": NotRequired[float | None],
        "annotations": NotRequired[dict[str, Any] | None],
    },
)


class UltraFeedbackRow(TypedDict):
    instruction: str
    completions: list[Completion]


@adapter(prompt="instruction", responses="completions", scores="completions")
def ultrafeedback(
    row: UltraFeedbackRow,
    *,
    score: Literal[
        "overall", "fine_grained", "helpfulness", "honesty", "instruction_following", "truthfulness"
    ] = "overall",
) -> Converted:
    """Yield one group. Skip completions that GPT-4 did not give the requested score."""
    responses, scores = [], []
    for completion in row["completions"]:
        value = _rating(completion, score)
        if value is None:
            yield LeftOut(f"completions without the score `{score}`")
        else:
            responses.append(completion["response"])
            scores.append(value)
    yield {"prompt": row["instruction"], "responses": responses, "scores": scores}


def _rating(completion: Any, which: str) -> float | None:
    if field := {"overall": "overall_score", "fine_grained": "fine-grained_score"}.get(which):
        value = completion.get(field)
    else:
        rating = str(((completion.get("annotations") or {}).get(which) or {}).get("Rating"))
        value = float(rating) if rating.replace(".", "", 1).isdecimal() else None  # GPT-4 also wrote `N/A`
    return None if value is None or math.isnan(value) else value


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


@adapter(prompt="question", responses="175b_verification", scores="175b_verification")
def gsm8k_solutions(row: SolutionsRow) -> Converted:
    """Yield one group of five, the human's solution first. The score is 1 if the final answer is right, else 0."""
    solutions = [row[model] for model in MODELS]  # type: ignore[literal-required]
    yield {
        "prompt": row["question"],
        "responses": [row["ground_truth"], *(solution["solution"] for solution in solutions)],
        "scores": [1.0, *(float(solution["is_correct"]) for solution in solutions)],
    }


class Solutions(TypedDict):
    language: list[int]
    solution: list[str]


class ContestRow(TypedDict):
    description: str
    solutions: Solutions
    incorrect_solutions: NotRequired[Solutions | None]


LANGUAGES = {"python2": 1, "cpp": 2, "python3": 3, "java": 4}
"""The dataset's own language numbers. 0 is an unknown language."""


@adapter(prompt="description", responses="solutions")
def code_contests(
    row: ContestRow,
    *,
    language: Literal["python3", "python2", "cpp", "java", "any"] = "python3",
    incorrect: bool = False,
) -> Converted:
    """Yield one group: the problem and its solutions in one language. `incorrect` adds those, with score 0, not 1."""
    correct = yield from _in_language(row["solutions"], "solutions", language)
    group: dict[str, Any] = {"prompt": row["description"], "responses": correct}
    if incorrect:
        wrong = yield from _in_language(row.get("incorrect_solutions"), "incorrect_solutions", language)
        group |= {"responses": correct + wrong, "scores": [1.0] * len(correct) + [0.0] * len(wrong)}
    yield group


def _in_language(solutions: Solutions | None, name: str, language: str) -> Generator[LeftOut, None, list[str]]:
    numbers, texts = (solutions["language"], solutions["solution"]) if solutions else ([], [])
    if len(numbers) != len(texts):
        raise Mismatch(name, f"{len(numbers)} languages for {len(texts)} solutions.")
    chosen = []
    for number, text in zip(numbers, texts, strict=True):
        if language == "any" or number == LANGUAGES[language]:
            chosen.append(text)
        else:
            yield LeftOut(f"solutions in another language than {language}")
    return chosen


class OpenR1Row(TypedDict):
    problem: str
    generations: list[str]
    correctness_math_verify: list[bool | None]
    correctness_llama: NotRequired[list[bool | None] | None]
    finish_reasons: NotRequired[list[str | None] | None]


@adapter(prompt="problem", responses="generations", scores="correctness_math_verify")
def openr1(row: OpenR1Row, *, score: Literal["math_verify", "llama", "either"] = "math_verify") -> Converted:
    """Yield one group of reasoning traces. The score is 1 if the checker found the answer right, else 0.

    The checkers are Math-Verify and, for some problems, a Llama as judge. `either` takes the better verdict.
    """
    names = {"math_verify": ["math_verify"], "llama": ["llama"], "either": ["math_verify", "llama"]}[score]
    count = len(row["generations"])
    verdicts = [_for_each(row, f"correctness_{name}", count) for name in names]
    reasons = _for_each(row, "finish_reasons", count)
    kept, scores = [], []
    for number, found in enumerate(zip(*verdicts, strict=True)):
        given = [verdict for verdict in found if verdict is not None]
        if given:
            kept.append(number)
            scores.append(float(any(given)))
        else:
            yield LeftOut(f"generations without a verdict of `{score}`")
    responses = [row["generations"][number] for number in kept]
    finished = [reasons[number] for number in kept]
    yield {"prompt": row["problem"], "responses": responses, "scores": scores, "finish_reasons": finished}


def _for_each(row: Any, name: str, count: int) -> list[Any]:
    """Return a field with a value for each generation, all None if it is absent."""
    values = row.get(name)
    if values is None:
        return [None] * count
    if len(values) != count:
        raise Mismatch(name, f"{len(values)} for {count} generations.")
    return list(values)


class MosaicText(TypedDict):
    text: str


class MosaicRow(TypedDict):
    id: str | int
    prompt_variants: list[str]
    responses: list[list[str | MosaicText]]


@adapter(prompt="prompt_variants")
def mosaic_1k(
    row: MosaicRow,
    *,
    variants: Annotated[int, Field(ge=1, le=4)] = 1,
    responses: Literal["all", "cyclic_one", "same_one"] = "all",
    index: Annotated[int, Field(ge=0)] = 0,
) -> Converted:
    """Yield a group for each of the first `variants` prompts of a cluster (arXiv 2606.00544)."""
    pools, prompts = row["responses"], row["prompt_variants"]
    if len(prompts) != len(pools):
        raise Mismatch("responses", f"{len(pools)} lists for {len(prompts)} prompt variants.")
    for number, (prompt, pool) in enumerate(zip(prompts, pools, strict=True)):
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


Said = str | list[dict[str, Any]]
"""A text or a conversation in TRL's dataset types: https://huggingface.co/docs/trl/dataset_formats"""


class PreferenceRow(TypedDict):
    prompt: NotRequired[Said | None]
    chosen: Said
    rejected: Said
    score_chosen: NotRequired[float | None]
    score_rejected: NotRequired[float | None]


class CompletionRow(TypedDict):
    prompt: Said
    completion: Said
    label: NotRequired[bool | None]
    score: NotRequired[float | None]
    weight: NotRequired[float | None]


@adapter(responses="chosen", scores="score_chosen")
def trl_preference(row: PreferenceRow) -> Converted:
    """Yield one group of two. The scores are `score_chosen` and `score_rejected` if given, else 1 and 0."""
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Mismatch("rejected", "one of chosen and rejected is a string, the other a list of messages.")
    conversations = [side for side in (chosen, rejected) if isinstance(side, list)]
    answers = [side for side in conversations if side and side[0].get("role") == "assistant"]
    if len(answers) < len(conversations) or (not conversations and prompt is None):
        length = _prompt_length(chosen, rejected)
        prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    if not prompt:
        raise Mismatch("prompt", "there is none, and chosen and rejected have no beginning in common.")
    scores = [row.get("score_chosen"), row.get("score_rejected")]
    yield {"prompt": prompt, "responses": [chosen, rejected], "scores": [1.0, 0.0] if None in scores else scores}


def _prompt_length(chosen: Any, rejected: Any) -> int:
    """Return the length of the common beginning, up to a space, or without an answer at the end of its messages."""
    pairs = zip(chosen, rejected, strict=False)
    length = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(chosen), len(rejected)))
    while length:
        last = chosen[length - 1]
        if last.isspace() if isinstance(last, str) else last.get("role") != "assistant":
            break
        length -= 1
    return length


@adapter(responses="completion", scores="score", weights="weight")
def trl_completion(row: CompletionRow) -> Converted:
    """Yield one response. A `label` becomes the score 1 or 0."""
    score, label = row.get("score"), row.get("label")
    if score is None and label is not None:
        score = float(label)
    yield {"prompt": row["prompt"], "completion": row["completion"], "score": score, "weight": row.get("weight")}
