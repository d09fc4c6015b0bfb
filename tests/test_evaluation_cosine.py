"""Coverage, alignment and diversity against their definitions written out as loops."""

import numpy as np
import pytest

from mrt_plugin.scoring.cosine import coverage, diversity


def cosine(a, b):
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / length if length else 0.0


@pytest.fixture
def vectors():
    generator = np.random.default_rng(0)
    samples, references = generator.normal(size=(5, 7)), generator.normal(size=(3, 7))
    samples[1] = 0.0  # a response that the embedder knows nothing of
    return samples, references


def test_the_formulas(vectors):
    samples, references = vectors
    assert coverage(samples, references) == pytest.approx(
        np.mean([max(cosine(r, s) for s in samples) for r in references])
    )
    assert coverage(references, samples) == pytest.approx(
        np.mean([max(cosine(r, s) for r in references) for s in samples])
    )
    pairs = [cosine(samples[i], samples[j]) for i in range(5) for j in range(5) if i != j]
    assert diversity(samples) == pytest.approx(1 - np.mean(pairs))


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_the_length_of_vectors_makes_no_difference(vectors, scale):
    samples, references = vectors
    assert coverage(samples * scale, references * scale) == pytest.approx(coverage(samples, references))
    assert diversity(samples * scale) == pytest.approx(diversity(samples))


def test_equal_samples_have_no_diversity_and_one_has_none_to_speak_of():
    assert diversity(np.ones((4, 3))) == pytest.approx(0.0)
    assert np.isnan(diversity(np.ones((1, 3))))


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="at least one sample and one reference"):
        coverage(np.zeros((0, 3)), np.ones((2, 3)))
