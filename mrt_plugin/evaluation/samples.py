"""Read a model's samples from a pool, and compute their rewards."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json, List, Value

from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.result import Sample
from mrt_plugin.groups import prompt_key
from mrt_plugin.groups.messages import response_text
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.sources import open_source
from mrt_plugin.groups.write import spelled
from mrt_plugin.models.named_model import NamedModel
from mrt_plugin.sampling.journal import journal_path
from mrt_plugin.sampling.settings import Draw
from mrt_plugin.scoring.scores import Scorer, score_columns, scorer_list


def sample_files(folder: Path, model: NamedModel) -> list[Path]:
    """Return the files with a model's samples: the pool and its journal."""
    pool = folder / f"{model.file_name}.jsonl"
    return [pool, journal_path(pool)]


def read_samples(pool: Any, cases: Sequence[Case]) -> list[list[Sample]]:
    """Read the samples of each case, in the order of the draws, from a pool by `mrt sample` or from any groups.

    In an extended pool (`mrt sample --extend`), only the draws of the last model count as samples.
    """
    opened = open_source(pool, "train")
    problems = Problems(opened.name)
    found: dict[str, list[Sample]] = {}
    for place, row in opened.rows(problems):
        if row.get("prompt") is None or not isinstance(row.get("responses"), list):
            problems.add(place, "responses", "samples are rows with `prompt` and `responses`, as mrt sample writes.")
            continue
        drawn = sorted(_draws(row), key=lambda draw: draw[0])
        samples = found.setdefault(prompt_key(row["prompt"]), [])
        samples += [sample for _, model, sample in drawn if model == drawn[-1][1]]
    keys = [prompt_key(case.prompt) for case in cases]
    if not any(key in found for key in keys):
        problems.fail(f"it has samples for none of the {len(cases):,} prompts: sample the prompts of this data.")
    problems.raise_any()
    return [found.get(key, []) for key in keys]


def _draws(row: dict[str, Any]) -> Iterator[tuple[int, str | None, Sample]]:
    """Yield a row's draws with their number and model, also the cut-off ones that `mrt sample` stores separately."""
    count = len(row["responses"])
    reasons, about = row.get("finish_reasons") or [None] * count, row.get("samples") or [{}] * count
    for place, (response, how) in enumerate(zip(row["responses"], about, strict=True)):
        if how is not None:
            cut_off = Draw("", reasons[place]).ending == "cut off"
            yield how.get("draw", place), how.get("model"), Sample(response_text(response), cut_off)
    for place, sample in enumerate(row.get("truncated") or [], start=count):
        yield sample.get("draw", place), sample.get("model"), Sample(sample["text"], True)


def add_rewards(
    cases: Sequence[Case], samples: Sequence[list[Sample]], scorer: Scorer, score_cache: str | Path | None = None
) -> None:
    """Compute the reward of every sample with one scorer."""
    if len(scorer_list(scorer)) != 1:
        raise ValueError(f"scorer={scorer!r}: an evaluation takes one scorer. Run it once for each.")
    sampled = [(case, some) for case, some in zip(cases, samples, strict=True) if some]
    if sampled:
        groups = dataset_of([case for case, _ in sampled], [[one.text for one in some] for _, some in sampled])
        ((_, columns),) = score_columns(groups, scorer, score_cache=score_cache).items()
        for (_, some), given in zip(sampled, columns["scores"], strict=True):
            for one, reward in zip(some, given, strict=True):
                one.reward = float(reward)


def dataset_of(cases: Sequence[Case], responses: list[list[str]] | None = None) -> Dataset:
    """Return ids, prompts and responses. If some prompts are messages, all are."""
    prompts, string = [case.prompt for case in cases], Value("string")
    texts = all(isinstance(prompt, str) for prompt in prompts)
    if not texts:
        prompts = [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in prompts]
    features: dict[str, Any] = {"id": string, "prompt": string if texts else List(Json())}
    rows: dict[str, Any] = {"id": [case.id for case in cases], "prompt": spelled(prompts)}
    if responses is not None:
        features["responses"], rows["responses"] = List(string), responses
    return Dataset.from_dict(rows, features=Features(features))
