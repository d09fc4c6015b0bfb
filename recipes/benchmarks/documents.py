"""What prompts of one document do to the variance of a step, measured against the formula of three levels.

A small Llama is trained on questions about generated documents. Then steps of `--prompts` prompts are drawn from
fresh documents, with 1, 2, 4 and 8 prompts of each document. The variance of their loss and of their gradient is
compared with V_d/n + V_p/(n·m) + V_r/(n·m·K). `python -m recipes.benchmarks.documents` prints the table of
docs/planning-explained.md.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from mrt_plugin.encoding import Encoder
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import build_group_row, sequences_of
from mrt_plugin.layout.tree import build_tree
from mrt_plugin.models.log_likelihood import log_likelihoods, pad_pairs
from mrt_plugin.models.tiny_model import build_llama, build_tokenizer, pretrain
from mrt_plugin.planning.nested import estimate_nested, nested_intervals

THINGS = "river tower garden market temple bridge library harbour".split()
NAMES = "Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas Karla Lukas Maria Nils Olga Peter".split()
VALUES = (
    "amber azure black blue bronze brown copper cream crimson cyan ebony emerald gold green grey indigo ivory jade "
    "khaki lilac lime maroon mauve navy ochre olive orange pearl pink plum purple red rose ruby rust sand scarlet "
    "silver slate tan teal umber violet white wine yellow zinc"
).split()
WORDINGS = ("{value}.", "It is {value}.", "The {thing} of {name} is {value}.", "I read that it is {value} there.")
SKETCH = 256
"""Dimensions of the random projection of a gradient. It keeps squared lengths on average."""


@dataclass(frozen=True)
class Question:
    prompt: str
    responses: list[str]


def draw_document(random: np.random.Generator, questions: int, responses: int) -> list[Question]:
    """Draw a document and its questions. A document has its own number of values and its own habits of wording."""
    name = str(random.choice(NAMES))
    things = random.permutation(THINGS).tolist()
    values = random.choice(VALUES, size=random.integers(1, len(things) + 1), replace=False)
    facts = [(thing, str(random.choice(values))) for thing in things]
    habits = random.dirichlet([0.5] * len(WORDINGS))
    text = " ".join(f"In the year {random.integers(1500, 2000)} the {t} of {name} was painted {v}." for t, v in facts)
    found = []
    for thing, value in facts[:questions]:
        drawn = random.choice(len(WORDINGS), size=responses, p=habits)
        prompt = f"{text} What colour is the {thing} of {name}?"
        pool = [WORDINGS[index].format(thing=thing, name=name, value=value) for index in drawn]
        found.append(Question(prompt, pool))
    return found


def train_model(steps: int, batch: int = 16) -> tuple[LlamaForCausalLM, Encoder]:
    """Train a small Llama on documents of its own."""
    random = np.random.default_rng(1)
    texts = [q.prompt + " " + " ".join(q.responses) for _ in range(100) for q in draw_document(random, 2, 2)]
    tokenizer: PreTrainedTokenizerBase = build_tokenizer(texts)
    encoder = Encoder(tokenizer)
    model = build_llama(tokenizer, hidden=64)

    def draw(step: int) -> list[Pair]:
        questions = [draw_document(random, 1, 1)[0] for _ in range(batch)]
        return [encoder.encode_group(q.prompt, q.responses)[0] for q in questions]

    pretrain(model, draw, steps=steps, progress=lambda step: _show("training", step, steps))
    return model, encoder


def linear_losses(nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return each response's linear part of the ratio sum(nll)/sum(tokens), as `mrt plan` does for `token`.

    `nll` is [documents, m, K], or [documents, m, K, dimensions] for gradients.
    """
    tokens = tokens.reshape(tokens.shape + (1,) * (nll.ndim - tokens.ndim))
    ratio = nll.mean(axis=(0, 1, 2)) / tokens.mean()
    return np.asarray((nll - ratio * tokens) / tokens.mean())


def step_variance(nll: np.ndarray, tokens: np.ndarray, m: int, prompts: int, rounds: int, seed: int) -> float:
    """Return the variance of sum(nll)/sum(tokens) over steps of `prompts` prompts, m of each document.

    In each round the documents are dealt to steps at random, so that no two steps of a round share one. For gradients
    it is the sum over dimensions.
    """
    random, count = np.random.default_rng(seed), prompts // m
    found = []
    for _ in range(rounds):
        order = random.permutation(len(nll))[: len(nll) // count * count]
        chosen = np.argsort(random.random((len(order), nll.shape[1])), axis=1)[:, :m]
        picked, weights = nll[order[:, None], chosen], tokens[order[:, None], chosen]
        steps = picked.reshape(-1, count * m * nll.shape[2], *nll.shape[3:]).sum(axis=1)
        sums = weights.reshape(-1, count * m * nll.shape[2]).sum(axis=1)
        found.append((steps / sums.reshape(-1, *[1] * (steps.ndim - 1))).var(axis=0, ddof=1).sum())
    return float(np.mean(found))


def components_of(losses: np.ndarray) -> tuple[float, float, float]:
    """Return V_d, V_p and V_r of losses [documents, m, K], or their sums over dimensions [..., dimensions]."""
    columns = np.moveaxis(losses.reshape(*losses.shape[:3], -1), -1, 0)
    parts = [estimate_nested(list(map(list, column))) for column in columns]
    v_d, v_p, v_r = np.sum([(part.v_d, part.v_p, part.v_r) for part in parts], axis=0)
    return float(v_d), float(v_p), float(v_r)


def sketched_gradients(model: LlamaForCausalLM, pairs: list[Pair]) -> np.ndarray:
    """Return the gradient of each pair's summed NLL with respect to all weights, projected at random, [n, SKETCH]."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(0)
    size = sum(parameter.numel() for parameter in parameters)
    places = torch.randint(SKETCH, (size,), generator=generator)
    signs = torch.randint(2, (size,), generator=generator) * 2.0 - 1
    found = []
    for done, pair in enumerate(pairs, 1):
        input_ids, labels, mask = pad_pairs([pair], 0)
        loss = model(input_ids=input_ids, attention_mask=mask, labels=labels).loss * pair.trained_length
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])
        found.append(torch.zeros(SKETCH).index_add_(0, places, gradient * signs).double().numpy())
        _show("gradients", done, len(pairs))
    return np.array(found)


def tokens_of_step(documents: list[list[list[Pair]]], m: int, prompts: int) -> float:
    """Return the mean tokens of a step whose documents are each computed once."""
    found = []
    for start in range(0, len(documents) - prompts // m, prompts // m):
        tokens = 0
        for document in documents[start : start + prompts // m]:
            rows = [build_group_row(pairs) for pairs in document[:m]]
            tokens += len(build_tree([sequence for row in rows for sequence in sequences_of(row)]).input_ids)
        found.append(tokens)
    return float(np.mean(found[:20]))


def measure(documents: int, gradients: int, prompts: int, responses: int, steps: int) -> dict[str, Any]:
    """Measure everything on fresh documents, the gradients on the first of them."""
    questions = 8
    model, encoder = train_model(steps)
    random = np.random.default_rng(2)
    pool = [draw_document(random, questions, responses) for _ in range(documents)]
    encoded = [[encoder.encode_group(q.prompt, q.responses) for q in document] for document in pool]
    pairs = [pair for document in encoded for group in document for pair in group]
    nll = -log_likelihoods(model, pairs, progress=_counter("losses", len(pairs)))
    shape = (documents, questions, responses)
    nll, tokens = nll.reshape(shape), np.array([pair.trained_length for pair in pairs], dtype=float).reshape(shape)
    losses = linear_losses(nll, tokens)
    v_d, v_p, v_r = components_of(losses)
    intervals = nested_intervals(list(map(list, losses)))
    assert intervals is not None
    few = pairs[: gradients * questions * responses]
    sketch = sketched_gradients(model, few).reshape(gradients, questions, responses, SKETCH)
    part = components_of(linear_losses(sketch, tokens[:gradients]))
    rows = []
    for m in (1, 2, 4, 8):
        n = prompts // m

        def predicted(parts: tuple[float, float, float], n: int = n, m: int = m) -> float:
            return parts[0] / n + parts[1] / (n * m) + parts[2] / (n * m * responses)

        # Ten disjoint sets of documents give the standard error.
        tenths = [step_variance(nll[place::10], tokens[place::10], m, prompts, 100, seed=place) for place in range(10)]
        rows.append(
            {
                "m": m,
                "documents": n,
                "tokens": tokens_of_step(encoded, m, prompts),
                "loss_variance": float(np.mean(tenths)),
                "loss_error": float(np.std(tenths, ddof=1) / np.sqrt(10)),
                "loss_predicted": predicted((v_d, v_p, v_r)),
                "gradient_variance": step_variance(sketch, tokens[:gradients], m, prompts, 20, seed=0),
                "gradient_predicted": predicted(part),
            }
        )
    return {
        "nll_per_token": float(nll.sum() / tokens.sum()),
        "loss": {"v_d": v_d, "v_p": v_p, "v_r": v_r, "intervals": asdict(intervals)},
        "gradient": dict(zip(("v_d", "v_p", "v_r"), part, strict=True)),
        "steps": rows,
    }


def _counter(stage: str, total: int) -> Any:
    done = [0]

    def advance(count: int) -> None:
        done[0] += count
        _show(stage, done[0], total)

    return advance


def _show(stage: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{stage}: {done:,} of {total:,}", end="\n" if done >= total else "", file=sys.stderr)


def main() -> None:
    """Print the measurements as a table, or with `--json` as JSON."""
    parser = argparse.ArgumentParser(prog="python -m recipes.benchmarks.documents", description=__doc__)
    parser.add_argument("--documents", type=int, default=1600, help="documents whose losses are measured")
    parser.add_argument("--gradients", type=int, default=400, help="of them, those whose gradients are measured")
    parser.add_argument("--prompts", type=int, default=32, help="prompts of a step")
    parser.add_argument("--responses", type=int, default=2, help="K")
    parser.add_argument("--steps", type=int, default=600, help="training steps of the model")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    found = measure(given.documents, given.gradients, given.prompts, given.responses, given.steps)
    if given.json:
        print(json.dumps(found))
        return
    print(f"{found['nll_per_token']:.3f} nats per token")
    for name in ("loss", "gradient"):
        print(name, *(f"{part} {found[name][part]:.4g}" for part in ("v_d", "v_p", "v_r")))
    print(
        "90 % intervals",
        *(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in found["loss"]["intervals"].items()),
    )
    print("m, documents, tokens | variance of the loss: measured, error, formula | of the gradient: measured, formula")
    for row in found["steps"]:
        print(
            f"{row['m']} {row['documents']} {row['tokens']:,.0f} | {row['loss_variance']:.3g} {row['loss_error']:.1g} "
            f"{row['loss_predicted']:.3g} | {row['gradient_variance']:.3g} {row['gradient_predicted']:.3g}"
        )


if __name__ == "__main__":
    main()
