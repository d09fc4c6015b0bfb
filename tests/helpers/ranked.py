"""Objectives written down directly: one pair per forward, the formula of a group in plain loops."""

import math
from itertools import product

import torch
from datasets import Dataset

from helpers import tiny
from mrt_plugin.encoding import Encoder


def make_ranked(count: int = 5, responses: int = 4, first: int = 0) -> Dataset:
    """Groups of unequal K with scores, ties among them. Responses have equal first words; some continue another."""
    rows = []
    for index in range(first, first + count):
        prompt = "Name a fruit that grows on trees. " * (1 + index % 3) + f"Number {index}:"
        fruit = ["apple", "pear", "plum"][index % 3]
        pool = [f"The {fruit}", f"The {fruit} is a fruit", f"The {fruit} is a small red fruit", f"A dog {index}"]
        own = pool[: responses - index % 2]
        scores = [0.1, 0.7, 0.7, 0.3] if index % 3 else [2.0, -1.0, 0.5, 0.25]
        rows.append({"id": str(index), "prompt": prompt, "responses": own, "scores": scores[: len(own)]})
    return Dataset.from_list(rows)


def response_logits(model, row, tokenizer):
    """For each response of a group: the logits [L, V] that predict its trained tokens, and these tokens [L]."""
    for pairs in Encoder(tokenizer).encode_responses(row["prompt"], row["responses"], "inference"):
        logits, targets = [], []
        for pair in pairs:
            found = model(torch.tensor([pair.input_ids])).logits[0].double()
            places = [t for t in range(1, len(pair.input_ids)) if pair.trained[t]]
            logits += [found[t - 1] for t in places]
            targets += [pair.input_ids[t] for t in places]
        yield torch.stack(logits), torch.tensor(targets)


def log_probabilities(model, row, tokenizer) -> tuple[list[torch.Tensor], list[int]]:
    """The summed log-probability and the number of tokens of each response of a group."""
    found = list(response_logits(model, row, tokenizer))
    sums = [logits.log_softmax(-1).gather(1, targets[:, None]).sum() for logits, targets in found]
    return sums, [len(targets) for _, targets in found]


def slow_pro(sums, lengths, scores, sft_weight=0.05):
    """PRO of one group in plain loops."""
    ranked = [k for k, score in enumerate(scores) if score is not None and not math.isnan(score)]
    total = torch.zeros((), dtype=torch.float64)
    for k in ranked:
        below = [i for i in ranked if scores[i] < scores[k]]
        if not below:
            continue
        temperatures = [1 / (scores[k] - scores[i]) for i in below]
        own = torch.exp(sums[k] / lengths[k] / min(temperatures))
        others = [torch.exp(sums[i] / lengths[i] / t) for i, t in zip(below, temperatures, strict=True)]
        total = total - torch.log(own / (own + sum(others)))
    best = [k for k in ranked if scores[k] == max(scores[i] for i in ranked)]
    nll = -sum(sums[k] for k in best) / len(best)
    return total + sft_weight * (len(ranked) - 1) ** 2 * nll


def slow_plackett_luce(sums, lengths, scores, references=None, beta=0.1, length_normalize=False):
    """List-wise DPO of one group in plain loops."""
    rewards = []
    for number, own in enumerate(sums):
        ratio = own - (0 if references is None else references[number])
        rewards.append(beta * (ratio / lengths[number] if length_normalize else ratio))
    total = torch.zeros((), dtype=torch.float64)
    for k, i in product(range(len(scores)), repeat=2):
        if i == 0:
            below = [j for j in range(len(scores)) if scores[j] < scores[k]]
            if below:
                total = total - torch.log(
                    torch.exp(rewards[k]) / (torch.exp(rewards[k]) + sum(torch.exp(rewards[j]) for j in below))
                )
    return total


def figures(groups) -> dict[str, float]:
    """The logged figures of groups: for each its model scores, summed log-probabilities, lengths and scores."""
    nll = tokens = pairs = right = 0.0
    margins = []
    for rewards, sums, lengths, scores in groups:
        best = [k for k, score in enumerate(scores) if score == max(scores)]
        nll -= float(sum(sums[k] for k in best)) / len(best)
        tokens += sum(lengths[k] for k in best) / len(best)
        for k, i in product(range(len(scores)), repeat=2):
            if scores[k] > scores[i]:
                pairs += 1
                right += bool(rewards[k] > rewards[i])
                margins.append(float(rewards[k] - rewards[i]))
    return {"best_nll": nll / tokens, "ranking_accuracy": right / pairs, "margin": sum(margins) / pairs}


def flat_gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


def directly(groups: Dataset, objective: str, model=None, **settings):
    """Loss, gradient and figures of one step on `tiny.llama`, one pair at a time in double precision."""
    model, tokenizer = (model if model is not None else tiny.llama().train()), tiny.tokenizer()
    references = settings.pop("references", None)
    losses, seen = [], []
    for place, row in enumerate(groups):
        sums, lengths = log_probabilities(model, row, tokenizer)
        scores = row["scores"]
        if objective == "pro":
            losses.append(slow_pro(sums, lengths, scores, **settings))
            rewards = [own / length for own, length in zip(sums, lengths, strict=True)]
        else:
            known = None if references is None else references[place]
            losses.append(slow_plackett_luce(sums, lengths, scores, known, **settings))
            rewards = [
                settings.get("beta", 0.1)
                * (own - (0 if known is None else known[k]))
                / (lengths[k] if settings.get("length_normalize") else 1)
                for k, own in enumerate(sums)
            ]
        seen.append((rewards, sums, lengths, scores))
    loss = sum(losses) / len(losses)
    loss.backward()
    return float(loss), flat_gradient(model), figures(seen)


def token_directly(groups: Dataset, objective: str, beta: float = 0.7, model=None):
    """Loss and gradient of one step of a token loss on `tiny.llama`, one pair at a time."""
    model, tokenizer = (model if model is not None else tiny.llama().train()), tiny.tokenizer()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for row in groups:
        for logits, targets in response_logits(model, row, tokenizer):
            for own, target in zip(logits, targets, strict=True):
                log_p = own.log_softmax(-1)
                if objective == "dft":
                    total = total - log_p[target].exp().detach() * log_p[target]
                else:
                    q = (own / beta).softmax(-1).detach()
                    total = total + (q * (log_p - log_p[target])).sum()
                tokens += 1
    loss = total / tokens
    loss.backward()
    return float(loss), flat_gradient(model)
