"""Draw a model's samples, read them from an existing pool, and compute their rewards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Json, List, Value

from mrt_plugin.encoding.messages import prompt_messages
from mrt_plugin.evaluation.cases import Case
from mrt_plugin.groups import prompt_key
from mrt_plugin.groups.messages import response_text
from mrt_plugin.groups.problems import Problems
from mrt_plugin.groups.sources import open_source
from mrt_plugin.groups.write import spelled, whole_file
from mrt_plugin.models.named_model import NamedModel
from mrt_plugin.sampling.journal import journal_path
from mrt_plugin.sampling.options import SamplingSettings
from mrt_plugin.sampling.run import sample_pool
from mrt_plugin.sampling.settings import Draw, Sampler, SampleReport
from mrt_plugin.scoring.scores import Scorer, score_columns, scorer_list


@dataclass
class Samples:
    """A model's samples for one prompt, in the order of the draws. Samples that were cut off are included."""

    texts: list[str] = field(default_factory=list)
    cut_off: list[bool] = field(default_factory=list)
    """Whether each sample was stopped before its end; False if unknown."""


def draw_samples(
    cases: Sequence[Case], sampler: Sampler, output: Path, m: int, settings: SamplingSettings, **options: Any
) -> tuple[list[Samples], SampleReport]:
    """Draw m samples for each prompt into a file, as `sample_pool` does. `options` are its `partial` and `progress`.

    Raises:
        Unfinished, EndpointError, ValueError: as `sample_pool`. Samples that were drawn are saved.
    """
    prompts = _prompts_file(output)
    with whole_file(prompts) as file:
        for case in cases:
            file.write(json.dumps({"id": case.id, "prompt": case.prompt}, ensure_ascii=False).encode() + b"\n")
    try:
        report = sample_pool(prompts, sampler, output, n=m, settings=settings, keep_cut_off=True, **options)
    finally:
        prompts.unlink()
    return read_samples(output, cases), report


def sample_files(folder: Path, model: NamedModel) -> list[Path]:
    """Return the files with a model's samples, the pool first."""
    pool = folder / f"{model.file_name}.jsonl"
    return [pool, journal_path(pool), _prompts_file(pool)]


def _prompts_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.prompts.jsonl")


def read_samples(pool: Any, cases: Sequence[Case]) -> list[Samples]:
    """Read the samples of each case from a pool written by `mrt sample`, or from any groups.

    In an extended pool (`mrt sample --extend`), only the draws of the last model count as samples.

    Args:
        pool: rows with `prompt` and `responses`, and optionally `finish_reasons`, `samples` and `truncated`.
        cases: the cases to find. A prompt that is not in the pool has no samples.

    Raises:
        DataError: for rows of another shape, or if the pool has none of the prompts.
    """
    opened = open_source(pool, "train")
    problems = Problems(opened.name)
    found: dict[str, Samples] = {}
    for place, row in opened.rows(problems):
        responses = row.get("responses")
        if row.get("prompt") is None or not isinstance(responses, list):
            problems.add(place, "responses", "samples are rows with `prompt` and `responses`, as mrt sample writes.")
            continue
        texts, cut_off = _in_order(row)
        samples = found.setdefault(prompt_key(row["prompt"]), Samples())
        samples.texts += texts
        samples.cut_off += cut_off
    keys = [prompt_key(case.prompt) for case in cases]
    if not any(key in found for key in keys):
        problems.fail(f"it has samples for none of the {len(cases):,} prompts: sample the prompts of this data.")
    problems.raise_any()
    return [found.get(key, Samples()) for key in keys]


def _in_order(row: dict[str, Any]) -> tuple[list[str], list[bool]]:
    """Return a row's texts in the order of the draws, with the cut-off ones that `mrt sample` stores separately."""
    reasons = row.get("finish_reasons") or [None] * len(row["responses"])
    about = row.get("samples") or [{}] * len(row["responses"])
    drawn: list[tuple[int, str | None, str, bool]] = []
    for place, (response, how) in enumerate(zip(row["responses"], about, strict=True)):
        if how is not None:
            cut = Draw("", reasons[place]).ending == "cut off"
            drawn.append((how.get("draw", place), how.get("model"), response_text(response), cut))
    for place, sample in enumerate(row.get("truncated") or [], start=len(row["responses"])):
        drawn.append((sample.get("draw", place), sample.get("model"), sample["text"], True))
    drawn.sort(key=lambda one: one[0])
    kept = [one for one in drawn if one[1] == drawn[-1][1]]
    return [text for _, _, text, _ in kept], [cut for _, _, _, cut in kept]


def rewards(
    cases: Sequence[Case], samples: Sequence[Samples], scorer: Scorer, *, score_cache: str | Path | None = None
) -> list[np.ndarray]:
    """Compute the reward of every sample, [n] for a case with n samples.

    Args:
        cases: the prompts.
        samples: the samples of each prompt.
        scorer: name or path of a reward model, or a function of (prompt, responses) or its name.
        score_cache: as for `score_groups`.

    Raises:
        ValueError: if more than one scorer is given, or it does not return one finite number for each sample.
    """
    if len(scorer_list(scorer)) != 1:
        raise ValueError(f"scorer={scorer!r}: an evaluation takes one scorer. Run it once for each.")
    found = [np.zeros(0) for _ in cases]
    sampled = [place for place, one in enumerate(samples) if one.texts]
    if not sampled:
        return found
    prompts = [cases[place].prompt for place in sampled]
    texts = all(isinstance(prompt, str) for prompt in prompts)
    rows = {
        "id": [cases[place].id for place in sampled],
        "prompt": [spelled(prompt if texts else prompt_messages(prompt)) for prompt in prompts],
        "responses": [samples[place].texts for place in sampled],
    }
    string = Value("string")
    features = Features({"id": string, "prompt": string if texts else List(Json()), "responses": List(string)})
    scored = score_columns(Dataset.from_dict(rows, features=features), scorer, score_cache=score_cache)
    ((_, columns),) = scored.items()
    for place, given in zip(sampled, columns["scores"], strict=True):
        found[place] = np.asarray(given, dtype=np.float64)
    return found
