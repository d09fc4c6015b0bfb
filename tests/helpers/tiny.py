"""Small real tokenizers and models, built in memory in well under a second: no hub, no mocks.

```python
tok = tiny.tokenizer()                                    # ChatML, with pad token
tok = tiny.tokenizer(family="gemma")                      # a template of tests/helpers/templates.py with its tokens
tok = tiny.tokenizer(chat_template=None, pad_token=None)  # a base model's
path = tiny.model_dir(tmp_path, tok)                      # a seeded Llama saved with its tokenizer, to load by path
```
"""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.templates import CHATML, FAMILIES, SPECIAL_TOKENS
from mrt_plugin.models.tiny_model import build_llama, train_byte_level

TEXT = """
Name a fruit that grows on trees. An apple is a fruit. A pear is a fruit too, and so is a plum or a cherry.
What is the capital of France? The capital of France is Paris. What is the capital of Italy? It is Rome.
Write one sentence about the sea. The sea is calm tonight and the moon is bright over the water.
How many apples are left if Tom has twelve and eats five? Tom has 12 - 5 = 7 apples left. The answer is 7.
Explain why the sky is blue. Light from the sun is scattered by the air, and blue light is scattered the most.
Give me a short story about a dog. Once upon a time there was a small brown dog who lived near the river.
user assistant system tool model developer answer question think final analysis You are a helpful assistant.
Please list three colours: red, green and blue. Then tell me which of them you like best, and say why you do.
""".strip().split("\n")  # fmt: skip

VOCABULARY = 1000
"""At most; TEXT yields 566. A model has 1024 rows, more than its tokenizer uses, as many real ones do."""


@cache
def _byte_level() -> str:
    """A byte-level BPE tokenizer of at most `VOCABULARY` tokens as JSON; any text round-trips through it."""
    return str(train_byte_level(TEXT * 4, VOCABULARY, SPECIAL_TOKENS).to_str())


@cache
def _sentencepiece() -> str:
    """A BPE tokenizer as SentencePiece makes them (Llama 2, Mistral, Gemma): ▁ for a space, bytes where all fails."""
    first = Tokenizer(models.BPE())
    first.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    first.train_from_iterator(
        TEXT * 4,
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL_TOKENS, show_progress=False),
    )
    trained = json.loads(first.to_str())["model"]
    vocabulary = dict(trained["vocab"])
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [tuple(merge) for merge in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return str(tokenizer.to_str())


def tokenizer(
    directory: Path | str | None = None,
    *,
    family: str | None = None,
    chat_template: str | None = CHATML,
    eos_token: str | None = None,
    bos_token: str | None = None,
    pad_token: str | None = "<|pad|>",
    add_bos: bool = False,
    add_eos: bool = False,
    padding_side: str = "right",
    kind: str = "byte_level",
    trim_offsets: bool = False,
) -> PreTrainedTokenizerFast:
    """A fast BPE tokenizer of at most 1000 tokens.

    Args:
        directory: save it there too.
        family: a name in `templates.FAMILIES`; sets the template, EOS and BOS that belong to it.
        chat_template: Jinja text, or None for a base model's tokenizer.
        eos_token: by default `<|im_end|>` with a template and `<|endoftext|>` without.
        bos_token: one of the special tokens, or None for a tokenizer without BOS.
        pad_token: None for a tokenizer without one.
        add_bos: the tokenizer puts BOS in front of every text (as Llama's does).
        add_eos: the tokenizer puts EOS behind every text (as T5's does).
        kind: `byte_level` (GPT-2, Llama 3, Qwen) or `sentencepiece` (Llama 2, Mistral, Gemma).
        trim_offsets: offsets leave out the space in front of a word (as Llama 3's do); only `byte_level`.
    """
    if family is not None:
        known = FAMILIES[family]
        chat_template, eos_token, bos_token = known.template, eos_token or known.eos_token, known.bos_token
        add_bos = add_bos or known.add_bos
    eos_token = eos_token or ("<|endoftext|>" if chat_template is None else "<|im_end|>")
    backend = Tokenizer.from_str(_byte_level() if kind == "byte_level" else _sentencepiece())
    steps = [processors.ByteLevel(trim_offsets=True)] if trim_offsets else []
    if add_bos or add_eos:
        bos_token = bos_token or ("<|bos|>" if add_bos else None)
        single = [*([bos_token] if add_bos else []), "$A", *([eos_token] if add_eos else [])]
        ids = [(token, backend.token_to_id(token)) for token in single if token != "$A"]
        steps.append(processors.TemplateProcessing(single=single, special_tokens=ids))
    if steps:
        backend.post_processor = processors.Sequence(steps)
    special = {"eos_token": eos_token, "bos_token": bos_token, "pad_token": pad_token}
    built = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=padding_side,
        model_max_length=4096,
        **{name: token for name, token in special.items() if token is not None},
    )
    built.chat_template = chat_template
    if directory is not None:
        built.save_pretrained(directory)
    return built


def llama(
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    layers: int = 2,
    hidden: int = 64,
    seed: int = 0,
    **config: Any,
) -> LlamaForCausalLM:
    """A seeded Llama in float32: 2 layers, hidden 64, 4 heads, 2 key-value heads, about 1000 tokens.

    Its linear layers are multiples of 64 in both directions, so that bitsandbytes loads it in 4 bit.
    """
    settings = {"vocab_size": 1024, "num_hidden_layers": layers, "max_position_embeddings": 4096, **config}
    return build_llama(tokenizer, seed, hidden=hidden, **settings)


def model_dir(directory: Path | str, tokenizer_: PreTrainedTokenizerFast | None = None, **config: Any) -> str:
    """Save a `llama(**config)` with its tokenizer and return the path, to load like any model by name."""
    if tokenizer_ is None:
        shutil.copytree(_saved(tuple(sorted(config.items()))).name, directory, dirs_exist_ok=True)
    else:
        llama(tokenizer_, **config).save_pretrained(directory)
        tokenizer_.save_pretrained(directory)
    return str(directory)


@cache
def _saved(config: tuple[tuple[str, Any], ...]) -> TemporaryDirectory[str]:
    """A saved model with the default tokenizer, to copy: building one takes 20 times as long."""
    folder = TemporaryDirectory()
    model_dir(folder.name, tokenizer(), **dict(config))
    return folder


def trained_runs(tokenizer_: PreTrainedTokenizerFast, pair: Any) -> list[str]:
    """The text of each run of trained tokens in an encoded pair."""
    runs: list[list[int]] = []
    for position, (token, trained) in enumerate(zip(pair.input_ids, pair.trained, strict=True)):
        if trained:
            if position == 0 or not pair.trained[position - 1]:
                runs.append([])
            runs[-1].append(token)
    return [tokenizer_.decode(run) for run in runs]
