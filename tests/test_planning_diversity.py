"""Diversity, redundancy, the augmentation filter and the adaptive allocation."""

import itertools
import json
import math

import numpy as np
import pytest
from datasets import Dataset

from mrt_plugin.groups import DataError
from mrt_plugin.groups.messages import prompt_text
from mrt_plugin.options import SelectionOptions
from mrt_plugin.planning.diversity import (
    Candidate,
    PromptDiversity,
    augment_file,
    effective_k,
    filter_candidates,
    fit_diversity,
    ngrams,
    prompt_diversity,
    prompt_redundancy,
    response_diversity,
    words,
)
from mrt_plugin.planning.fit import read_results, read_runs
from mrt_plugin.scoring.cosine import mean_distance
from mrt_plugin.scoring.embedders import lexical, load_embedder
from mrt_plugin.selection.allocation import allocate, spread_batch


def test_diversity_by_hand():
    found = prompt_diversity(["a b c", "a b d"], order=2, p=0.5)
    assert (found.distinct, found.total, found.prompts) == (3, 4, 2)
    assert found.r == 0.75
    assert found.d == pytest.approx(0.75 * math.sqrt(2))
    assert prompt_diversity(["a b c", "a b d"], order=1, p=0).d == pytest.approx(4 / 6)
    # One prompt repeated: r falls with the copies, and d stays below that of different prompts.
    assert prompt_diversity(["a b c"] * 8).d < prompt_diversity([f"a{i} b{i} c{i}" for i in range(8)]).d


def test_a_prompt_counts_up_to_512_tokens_and_a_tokenizer_may_be_given():
    long = " ".join(f"w{index}" for index in range(1000))
    assert prompt_diversity([long], order=2).total == 511
    assert prompt_diversity(["abcd"], order=2, tokenize=list).total == 3
    with pytest.raises(ValueError, match="there are no 2-grams"):
        prompt_diversity(["one", "two"])


def test_words_keep_every_sign_and_script():
    assert words("Wie heißt's? 你好") == ["Wie", "heißt", "'", "s", "?", "你好"]
    assert ngrams("abc", 2) == [("a", "b"), ("b", "c")]
    assert prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]) == (
        "Be brief.\nHi"
    )


def test_fit_finds_the_power_that_made_the_scores():
    random = np.random.default_rng(0)
    sets = [PromptDiversity(0, r, n, 2, 0.5, 0, 0) for r, n in itertools.product((0.2, 0.5, 0.8), (100, 1000, 10000))]
    scores = [3 + 0.02 * item.r * item.prompts**0.6 + 0.001 * random.standard_normal() for item in sets]
    fit = fit_diversity(sets, scores)
    assert fit.p == pytest.approx(0.6)
    assert fit.slope == pytest.approx(0.02, rel=0.01)
    assert fit.mse < 1e-5
    assert fit.slope * 0.5 * 1000**fit.p + fit.intercept == pytest.approx(3 + 0.02 * 0.5 * 1000**0.6, abs=0.01)
    assert fit_diversity(sets, scores, powers=[0.5]).p == 0.5
    assert fit_diversity(sets, scores, powers=[0.5]).mse > fit.mse
    with pytest.raises(ValueError, match="at least 3"):
        fit_diversity(sets[:2], scores[:2])


def test_redundancy_and_response_diversity_see_copies():
    embedder = load_embedder("lexical")
    different = ["How do magnets work?", "Write a poem about rain.", "List ten rivers of Asia."]
    copies = [
        "How do magnets work in the rain?",
        "How do magnets work in the rain",
        "how do magnets work in the rain?",
    ]
    assert prompt_redundancy(different, embedder).share == 0
    assert prompt_redundancy(copies, embedder).share == 1
    assert response_diversity(["same", "same"], embedder) == pytest.approx(0)
    assert response_diversity(different, embedder) > 0.7
    assert math.isnan(response_diversity(["one"], embedder))
    assert effective_k(4, 1.0) == 1
    assert effective_k(4, 0.0) == 4


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_redundancy_does_not_depend_on_the_length_of_vectors(scale):
    prompts = ["How do magnets work?", "How do magnets work now?", "List ten rivers of Asia."]
    scaled = load_embedder(lambda texts: lexical(texts) * np.float64(scale))
    plain = prompt_redundancy(prompts, load_embedder("lexical"))
    assert prompt_redundancy(prompts, scaled).nearest == pytest.approx(plain.nearest, abs=1e-6)


def test_lines_of_candidates_and_runs_end_at_line_ends_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "One\u2028line\x85here", "k": 2, "loss": 1.5, "arm": "a\u2028b"}]
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), encoding="utf-8", newline=""
    )
    owned = Dataset.from_dict({"prompt": ["Something else."]})
    assert augment_file(path, owned, tmp_path / "kept.jsonl").kept == 1
    assert json.loads((tmp_path / "kept.jsonl").read_text()) == rows[0]
    assert read_runs(path)[0].arm == read_results(path)[0][0].arm == "a\u2028b"
    path.write_text("[" * 100_000)
    for read in (read_runs, read_results, lambda path: augment_file(path, owned, tmp_path / "kept.jsonl")):
        with pytest.raises(DataError, match="line 1"):
            read(path)


def test_augmentation_is_greedy_and_never_lets_an_overlap_through():
    owned = ["Explain how a magnet works.", "Write a poem about the rain in spring."]
    candidates = [
        Candidate("Explain how a magnet works today."),
        Candidate("Describe the life of a honey bee in summer."),
        Candidate("Describe the life of a honey bee in winter."),
        Candidate("Translate a menu from French.", supports=["Translate a menu from Greek."]),
        Candidate("Hm"),
    ]
    found = filter_candidates(candidates, owned, threshold=0.4)
    assert [item.kept for item in found] == [False, True, False, False, False]
    assert found[0].nearest == owned[0]
    assert found[2].nearest == candidates[1].prompt
    assert found[3].overlap == pytest.approx(3 / 7)
    # Reversed, the other of the two bees comes first and stays.
    assert [item.kept for item in filter_candidates(candidates[2:0:-1], owned, threshold=0.4)] == [True, False]
    with pytest.raises(ValueError, match="threshold"):
        filter_candidates(candidates, owned, threshold=0)


def test_augmentation_against_the_plain_quadratic_comparison():
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(list("abcdefgh"), size=12)) for _ in range(60)]
    owned, rest = texts[:20], texts[20:]
    found = filter_candidates([Candidate(text) for text in rest], owned, threshold=0.2)
    kept = [set(ngrams(words(text), 2)) for text in owned]
    for text, verdict in zip(rest, found, strict=True):
        grams = set(ngrams(words(text), 2))
        overlap = max(len(grams & other) / len(grams | other) for other in kept)
        assert verdict.overlap == pytest.approx(overlap)
        assert verdict.kept == (overlap < 0.2)
        if verdict.kept:
            kept.append(grams)
    assert 0 < sum(item.kept for item in found) < len(rest)


def test_allocation_reaches_the_least_variance_of_all_allocations():
    scores, sizes = [3.0, 1.0, 0.2], [6, 4, 6]
    found = allocate(scores, sizes, ["a", "b", "c"], target_total=9)
    every = [k for k in itertools.product(range(1, 7), range(1, 5), range(1, 7)) if sum(k) == 9]
    least = min(sum(u / k for u, k in zip(scores, ks, strict=True)) for ks in every)
    assert sum(u / k for u, k in zip(scores, found.k, strict=True)) == pytest.approx(least)
    assert found.total == found.wanted == 9


def test_allocation_keeps_its_limits_and_reports_clamping():
    scores, sizes, names = [9.0, 1.0, 0.0, 4.0], [10, 1, 10, 10], ["a", "b", "c", "d"]
    found = allocate(scores, sizes, names, mean_k=3, min_k=2, max_k=5)
    assert found.k == [5, 1, 2, 4]
    assert (found.at_least, found.at_most) == (1, 2)
    few = allocate(scores, sizes, names, target_total=2, min_k=2)
    assert (few.wanted, few.total) == (2, 7)
    assert "2 were asked for, the limits allow 7 at least" in few.summary()
    many = allocate(scores, sizes, names, target_total=100, max_k=4)
    assert many.k == [4, 1, 4, 4]
    assert "at most" in many.summary()
    equal = allocate(scores, [10] * 4, names, mean_k=2, power=0)
    assert equal.k == [2, 2, 2, 2]


def test_allocation_does_not_depend_on_the_order_of_prompts():
    random = np.random.default_rng(2)
    scores = random.integers(0, 3, size=50).astype(float).tolist()
    names = [f"group {index}" for index in range(50)]
    order = random.permutation(50)
    one = allocate(scores, [8] * 50, names, target_total=137)
    other = allocate([scores[i] for i in order], [8] * 50, [names[i] for i in order], target_total=137)
    assert [one.k[i] for i in order] == other.k


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.5])
def test_allocation_refuses_a_score_that_is_no_spread(score):
    with pytest.raises(ValueError, match=r"Group b has the allocation score .* at least 0"):
        allocate([1.0, score], [4, 4], ["a", "b"], mean_k=2)


@pytest.mark.parametrize("unit", [1e-300, 1e-7, 0.3, 1e7, 1e300])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_allocation_does_not_depend_on_the_scores_unit(unit, power):
    scores = [0.0, 1.0, 1.0, 3.0, 7.0, 1e-3]
    options = {"pool_sizes": [9] * 6, "names": list("abcdef"), "mean_k": 4, "power": power}
    assert allocate([unit * score for score in scores], **options).k == allocate(scores, **options).k


def test_equal_responses_have_no_diversity():
    assert [mean_distance(np.full((count, count), 1.0 + 1e-16)) for count in (2, 3)] == [0.0, 0.0]
    assert math.isnan(mean_distance(np.ones((1, 1))))
    alone = {"id": ["g"], "responses": [["one"]]}
    found = spread_batch(alone, options=SelectionOptions(), seed=0, embedder=load_embedder("lexical"))
    assert found["spread"] == [0.0]
    assert mean_distance(np.array([[1.0, 1.0000001], [1.0000001, 1.0]])) == 0.0, "never negative, whatever was rounded"
