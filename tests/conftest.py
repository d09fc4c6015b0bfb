"""Settings that every test runs under, and the fixtures that most of them share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tiny
import torch
from transformers import PreTrainedTokenizerFast

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A ChatML tokenizer with a pad token."""
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a 2-layer Llama saved with its ChatML tokenizer; do not write into it."""
    return tiny.model_dir(tmp_path_factory.mktemp("tiny_model"))
