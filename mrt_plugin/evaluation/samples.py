"""Read a model's samples from a pool, and measure them: the expected best of m, closeness to references, rewards."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, Json, List, Value

from mrt_plugin.evaluation.cases import Case
from mrt_plugin.evaluation.result import ReferenceMeans, Sample
from mrt_plugin.groups import prompt_key
from mrt_plugin.groups.messages import response_text, units
from mrt_plugin.groups.sources import open_source
from mrt_plugin.groups.write import spelled
from mrt_plugin.models.named_model import NamedModel
from mrt_plugin.planning.paired import Measured
from mrt_plugin.planning.progress import Progress, counting
from mrt_plugin.sampling.journal import journal_path
from mrt_plugin.sampling.settings import Draw
from mrt_plugin.scoring.cosine import cosines, diversity
from mrt_plugin.scoring.embedders import Embedder
from mrt_plugin.scoring.scores import Scorer, score_columns, scorer_list

if TYPE_CHECKING:
    from mrt_plugin.evaluation.subject import How, Subject

NAN = float("nan")


def sample_files(folder: Path, model: NamedModel) -> list[Path]:
    """Return the files with a model's samples: the pool and its journal."""
    pool = folder / f"{model.file_name}.jsonl"
    return [pool, journal_path(pool)]


def read_samples(pool: Any, cases: Sequence[Case]) -> list[list[Sample]]:
    """Read the samples of each case, in the order of the draws, from a pool by `mrt sample` or from any groups.

    In an extended pool (`mrt sample --extend`), only the draws of the last model count as samples.
    """
    problems, rows = open_source(pool)
    found: dict[str, list[Sample]] = {}
    for place, row in rows:
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


def expected_best(values: np.ndarray, m: int) -> np.ndarray:
    """Return the largest of m values, averaged over all ways to choose m of n: [...] for values [..., n].

    The result is exact. With the values in rising order, the j-th of n is the largest in C(j-1, m-1) of the C(n, m)
    subsets. For values of 0 and 1 this is pass@k with k = m (Chen et al., "Evaluating Large Language Models Trained on
    Code", arXiv 2107.03374, equation 1).

    Example:

    >>> float(expected_best(np.array([3.0, 1.0, 2.0]), 2))  # of (3, 1), (3, 2) and (1, 2)
    2.6666666666666665
    """
    n = values.shape[-1]
    if not 1 <= m <= n:
        raise ValueError(f"The best of m={m} cannot be computed from {n} samples: m must be between 1 and {n}.")
    subsets = math.comb(n, m)
    weights = np.array([math.comb(rank, m - 1) / subsets for rank in range(n)])
    return np.asarray(np.sort(values, axis=-1) @ weights)


def levels(most: int, asked: Sequence[int] | None = None) -> list[int]:
    """Return the numbers of samples to report at, up to `most`: those `asked` for, or powers of two and `most`."""
    every = asked or [2**power for power in range(most.bit_length())] + [most]
    return sorted({m for m in every if 1 <= m <= most})


def closeness(references: Sequence[str], samples: Sequence[str], embedder: Embedder) -> tuple[np.ndarray, float]:
    """Return the cosines [R, n] of one prompt's references and samples, and the diversity of the samples."""
    texts = list(dict.fromkeys([*references, *samples]))
    vectors = embedder(texts) if texts else np.zeros((0, 1))
    place = {text: index for index, text in enumerate(texts)}
    known, drawn = (vectors[[place[text] for text in some]] for some in (references, samples))
    near = cosines(known, drawn) if len(known) and len(drawn) else np.zeros((len(known), len(drawn)))
    return near, diversity(drawn)


def reference_means(cases: Sequence[Case], embedder: Embedder | None) -> ReferenceMeans | None:
    """Measure the references against each other. Their coverage is that of R - 1 draws from their source."""
    texts = [case.texts for case in cases if case.references]
    if not texts:
        return None
    length = float(np.mean([_mean([len(units(text)) for text in some]) for some in texts]))
    several = [some for some in texts if len(some) > 1]
    if embedder is None or not several:
        return ReferenceMeans(length)
    found = [closeness(some, some, embedder) for some in several]
    for near, _ in found:
        np.fill_diagonal(near, -np.inf)
    coverages, diversities = [near.max(axis=1).mean() for near, _ in found], [spread for _, spread in found]
    return ReferenceMeans(length, float(np.mean(coverages)), float(np.mean(diversities)))


def measure_samples(
    subject: "Subject", samples: list[list[Sample]], cases: Sequence[Case], how: "How", progress: Progress
) -> None:
    """Compute the measures on samples. A prompt with fewer than m samples has no value at m."""
    name, texts = subject.model.name, [[one.text for one in some] for some in samples]
    most = max(map(len, texts), default=0)
    at = levels(most, how.at)
    beyond = [str(m) for m in how.at or () if m > most]
    if beyond:
        subject.notes.append(f"{name}: no prompt has more than {most} samples, so nothing at M = {', '.join(beyond)}.")

    def put(measure: str, values: Iterable[float], m: int | None = None) -> None:
        subject.measured[measure, m] = Measured.mean(np.array(list(values)))

    put("length", (_mean([len(units(text)) for text in some]) for some in texts))
    if how.embedder is not None:
        if how.embedder.prepare is not None:
            how.embedder.prepare([*case.texts, *some] for case, some in zip(cases, texts, strict=True))
        advance, found = counting(progress, f"{name}: coverage", len(cases)), []
        for case, some in zip(cases, texts, strict=True):
            found.append(closeness(case.texts, some, how.embedder))
            advance(1)
        for m in at:
            put("coverage", (best_of(near, m) for near, _ in found), m)
        put("alignment", (_mean(near.max(axis=0)) if near.size else NAN for near, _ in found))
        put("diversity", (spread for _, spread in found))
    if how.scorer is not None:
        add_rewards(cases, samples, how.scorer, how.score_cache)
        rewards = [np.array([one.reward for one in some], np.float64) for some in samples]
        put("reward", map(_mean, rewards))
        for m in [m for m in at if m > 1]:  # the best of 1 equals the mean
            put("best_reward", (best_of(row, m) for row in rewards), m)
    if how.checker is not None:
        advance = counting(progress, f"{name}: checks", len(cases))
        for case, drawn in zip(cases, samples, strict=True):
            for one in drawn:
                one.right = how.checker(case, one.text)
            advance(1)
        right = [np.array([one.right for one in some], np.float64) for some in samples]  # NaN where unknown
        for m in at:
            put("pass", (NAN if np.isnan(row).any() else best_of(row, m) for row in right), m)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else NAN


def best_of(values: np.ndarray, m: int) -> float:
    """Return the mean of the expected best of m, for values [..., n]; NaN if there are fewer than m."""
    return float(expected_best(values, m).mean()) if values.size and m <= values.shape[-1] else NAN
